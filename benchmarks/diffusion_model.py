"""A training step and sampling beside bare loops of the same network, and beside diffusers' pipeline."""

from collections.abc import Callable

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from lightning_vision.generation import Diffusion, DiffusionModel

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

SETTINGS = {"channels": 32, "multiples": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 32}


def rows(quick: bool) -> list[Row]:
    """Digits of 8 pixels, 128 in a step, 256 sampled.

    Args:
        quick: One repetition with a few images.
    """
    count, images, steps = (1, 8, 3) if quick else (15, 256, 10)
    torch.manual_seed(0)
    model = DiffusionModel(network_settings=SETTINGS, num_classes=10, in_channels=1, image_size=8, steps=steps)
    data, label = torch.randn(images // 2, 1, 8, 8), torch.randint(10, (images // 2,))
    found = [_row("training step", "a bare loop", *_steps(model, data, label), count, "<= 1.05")]
    noise, labels = torch.randn(images, 1, 8, 8), torch.arange(images) % 10

    def sample() -> Tensor:
        return model.sample(images, label=labels)

    @torch.no_grad()
    def bare() -> Tensor:
        x = noise
        for number in range(steps):
            x = x + model.network(x, torch.full((images,), number / steps), labels) / steps
        return x

    found.append(
        _row(f"{steps} steps of Euler, {images} images", f"{steps} bare calls", sample, bare, count, "<= 1.03")
    )
    return [*found, *(_pipeline(size, steps, count) for size in ((2,) if quick else (4, 64)))]


def _steps(model: DiffusionModel, data: Tensor, label: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def descend(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def ours() -> None:
        descend(model.losses(data, label, torch.Generator().manual_seed(0))["loss"])

    def bare() -> None:
        noise, time = torch.randn_like(data), torch.rand(len(data))
        t = time.view(-1, 1, 1, 1)
        hidden = torch.where(torch.rand(len(data)) < 0.1, 10, label)
        said = model.network((1 - t) * noise + t * data, time, hidden)
        descend((said - (data - noise)).square().mean())

    return ours, bare


def _pipeline(images: int, steps: int, count: int) -> Row:
    """Both ask one network of diffusers', at a few of 1,000 noisings."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    pipeline = DDPMPipeline(network, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    model = DiffusionModel(network, Diffusion(), in_channels=1, image_size=8, sampler="ddpm", steps=steps)

    def ours() -> Tensor:
        return model.pixels(model.sample(images))

    def theirs() -> object:
        return pipeline(batch_size=images, num_inference_steps=steps, output_type="np")

    what = f"{steps} steps of DDPM, {images} images, diffusers' network"
    return _row(what, "diffusers' `DDPMPipeline`", ours, theirs, count, "<= 0.90")


def _row(what: str, against: str, ours: Callable[[], object], peer: Callable[[], object], count: int, bar: str) -> Row:
    times = take_turns({"ours": unprepared(ours), "peer": unprepared(peer)}, count)
    return Row.slowdown(what, against, times["ours"]["cpu"], times["peer"]["cpu"], "cpu", bar)
