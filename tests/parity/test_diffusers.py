"""Diffusion's steps are those of diffusers' schedulers, and its networks can be learned in the place of ours."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from lightning_vision.generation import EDM, Diffusion, DiffusionModel, ddim, ddpm, dpm_solver_2m, euler
from lightning_vision.generation.networks.from_diffusers import FromDiffusers
from support.generators import tiny_diffusion

KINDS = {"noise": "epsilon", "data": "sample", "v": "v_prediction"}
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def normal(seed: int) -> Tensor:
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def said(x: Tensor, time: Tensor, label: object = None) -> Tensor:
    """What a network might answer, a function of x alone."""
    return 0.4 * x + 0.3 * x.flip(-1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_shares_of_both_schedules_are_theirs(schedule):
    theirs = DDPMScheduler(beta_schedule=SCHEDULES[schedule]).alphas_cumprod

    torch.testing.assert_close(Diffusion(schedule).shares.float(), theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("step", [999, 500, 1])
def test_a_step_of_ddpm_is_theirs(step, prediction, variance):
    process, x, fresh = Diffusion(prediction=prediction), normal(0), normal(1)
    numbers = torch.tensor([step, step - 1])
    ours = ddpm(
        process.denoiser(said, numbers), x, *process.alpha_and_sigma(numbers), variance=variance, draw=lambda x: fresh
    )
    theirs = DDPMScheduler(prediction_type=KINDS[prediction], variance_type=f"fixed_{variance}", clip_sample=False)
    theirs.alphas_cumprod, theirs.alphas = process.shares, _factors(process.shares)
    theirs.betas = 1 - theirs.alphas
    quiet = theirs.step(said(x, None), step, x, generator=torch.Generator().manual_seed(2)).prev_sample
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    width = theirs._get_variance(step) ** 0.5

    torch.testing.assert_close(ours, quiet + width * (fresh - drawn), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", KINDS)
def test_a_step_of_ddim_is_theirs(prediction, eta):
    process, x, fresh = Diffusion("cosine", prediction=prediction), normal(0), normal(1)
    theirs = DDIMScheduler(prediction_type=KINDS[prediction], clip_sample=False)
    theirs.alphas_cumprod = process.shares
    theirs.set_timesteps(20)
    step = 600
    numbers = torch.tensor([step, step - 50])
    ours = ddim(process.denoiser(said, numbers), x, *process.alpha_and_sigma(numbers), eta=eta, draw=lambda x: fresh)
    expected = theirs.step(said(x, None), step, x, eta=eta, variance_noise=fresh).prev_sample

    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_ten_steps_of_dpm_solver_are_theirs():
    process = Diffusion(prediction="noise")
    theirs = DPMSolverMultistepScheduler(timestep_spacing="trailing", final_sigmas_type="zero")
    theirs.set_timesteps(10)
    numbers = process.sampling_steps(10)
    assert torch.equal(theirs.timesteps, numbers[:-1])
    x = normal(0)
    ours = dpm_solver_2m(process.denoiser(said, numbers), x, *process.alpha_and_sigma(numbers))
    for step in theirs.timesteps:
        x = theirs.step(said(x, None), step, x).prev_sample

    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_steps_of_euler_along_a_flow_are_theirs():
    """Their time is the share of noise, and their velocity leads there."""
    theirs, x = FlowMatchEulerDiscreteScheduler(), normal(0).float()
    theirs.set_timesteps(8, sigmas=torch.linspace(1, 1 / 8, 8).numpy())
    ours = euler(said, x, 1 - theirs.sigmas)
    for step in theirs.timesteps:
        x = theirs.step(-said(x, None), step, x).prev_sample

    torch.testing.assert_close(ours, x)


def test_edms_factors_levels_and_steps_are_theirs():
    process, x = EDM(data_std=0.5), normal(0)
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(6)
    torch.testing.assert_close(process.times(6), theirs.sigmas, rtol=1e-5, atol=1e-6)
    start = 80 * x
    ours = euler(process.velocity(said), start, process.times(6).double())
    x = start
    for sigma, step in zip(theirs.sigmas[:-1].double(), theirs.timesteps, strict=True):
        # 0.25 ln(sigma) is what their network is told, too.
        assert step.item() == pytest.approx(0.25 * sigma.log().item(), rel=1e-5)
        x = theirs.step(said(theirs.precondition_inputs(x, sigma), None), step, x).prev_sample

    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-4)


def test_a_step_that_forgets_the_noise_it_exchanges_is_noticed():
    process, x = Diffusion("cosine"), normal(0)
    numbers = torch.tensor([600, 550])
    alphas, sigmas = process.alpha_and_sigma(numbers)
    data, noise = process.denoiser(said, numbers)(x, 0)
    right = ddim(process.denoiser(said, numbers), x, alphas, sigmas, eta=1.0, draw=torch.zeros_like)

    assert (alphas[1] * data + sigmas[1] * noise - right).abs().max() > 1e-2


def _factors(shares):
    return torch.cat([shares[:1], shares[1:] / shares[:-1]])


def unet(**settings):
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **small | blocks | settings)


def test_their_network_is_asked_as_they_ask_it():
    theirs = unet(num_class_embeds=4).eval()
    model = tiny_diffusion(network=theirs, network_settings=None)
    x, time, label = torch.randn(2, 1, 8, 8), torch.tensor([0.25, 0.5]), torch.tensor([1, 3])

    expected = theirs(x, torch.tensor([250.0, 500.0]), class_labels=label).sample
    assert torch.equal(model.network(x, time, label), expected)
    assert torch.equal(model.network(x, time), theirs(x, 1000 * time, class_labels=torch.tensor([3, 3])).sample)
    assert model.sample(2, guidance=1.0).shape == (2, 1, 8, 8)


def test_their_network_without_labels_or_with_too_few_rows():
    plain = DiffusionModel(unet(), in_channels=1, image_size=8, steps=2)

    assert isinstance(plain.network, FromDiffusers)
    assert plain.sample(1).shape == (1, 1, 8, 8)
    for rows in (None, 3):
        said = rf"tells {rows or 0} labels apart and num_classes is 3; build it with num_class_embeds=4"
        with pytest.raises(ValueError, match=said):
            tiny_diffusion(network=unet(num_class_embeds=rows), network_settings=None)
