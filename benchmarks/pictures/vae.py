"""The picture of the VAE: digits, what fixed and computed balances tell of them, and digits of fresh codes."""

from typing import Any

import torch
from matplotlib.figure import Figure

from lightning_vision.generation import VAE

from ._made_digits import grid_of
from ._trained_digits import digits

__all__ = ["draw"]

SHOWN, STEPS = 10, 400


def draw() -> Figure:
    """Digits that were not trained on, reconstructed in two ways, and samples of one and of both stages."""
    # About as a datamodule normalises them.
    images = 2.7 * digits()[0] - 0.8
    plain, computed = _trained(images, balance="beta"), _trained(images, two_stage=True)
    with torch.no_grad():
        rows = [
            ("image", images[:SHOWN]),
            ("beta 1", plain.reconstruct(images[:SHOWN])),
            ("computed", computed.reconstruct(images[:SHOWN])),
        ]
    two = computed.sample(SHOWN)
    computed.network.second = None
    rows += [("normal codes", computed.sample(SHOWN)), ("two stages", two)]
    return grid_of([(name, (it + 0.8) / 1.35 - 1) for name, it in rows])


def _trained(images: torch.Tensor, **settings: Any) -> VAE:
    """A small VAE after so many steps on 64 digits each, none of those that are shown."""
    sizes: dict[str, Any] = {"in_channels": 1, "image_size": 8, "latent_dim": 16, "channels": 8, "multiples": (1, 2)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(gamma_decay=0.95, second_dim=128, **sizes, **settings)
        adam = torch.optim.AdamW(vae.parameters(), 8e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 8e-3, STEPS)
        adam.register_step_post_hook(vae.follow)
        for _ in range(STEPS):
            batch = images[torch.randint(SHOWN, len(images), (64,))]
            adam.zero_grad()
            vae.losses(batch, None, torch.default_generator)["loss"].backward()
            adam.step()
            schedule.step()
    return vae.eval()
