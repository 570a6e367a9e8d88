"""SAM, ASAM and LookSAM equal loops written from their papers, bit for bit, in every way Lightning takes a step.

Resume, undo and the pairs with other callbacks are proved in `conformance/`, the seam alone in `hooks/test_ascent.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_vision.callbacks import SAM
from lightning_vision.callbacks.sharpness.sam import (
    asam_perturbation,
    looksam_direction,
    looksam_gradient,
    sam_perturbation,
)
from support.compare import distance, seeded
from support.modules import Plain, TwoOptimizers
from support.sam_by_hand import asam, batches_of, fit, sam, train

RHO = 0.1


class Adaptive(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return super().configure_optimizers() | {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.8), "interval": "step"},
        }


def half(init_scale):
    return torch.amp.GradScaler("cpu", init_scale=init_scale)


@pytest.mark.parametrize(
    ("kind", "method", "by_hand", "options"),
    [
        pytest.param(Plain, SAM(RHO), {}, {}, id="fp32"),
        pytest.param(Adaptive, SAM(RHO), {}, {}, id="AdamW"),
        pytest.param(Plain, SAM(0.5, adaptive=True), {"perturbation": asam}, {}, id="ASAM"),
        pytest.param(Plain, SAM(RHO), {"dtype": torch.bfloat16}, {"precision": "bf16-mixed"}, id="bf16"),
        pytest.param(Plain, SAM(RHO), {"accumulate": 4}, {"accumulate_grad_batches": 4}, id="short last window"),
        pytest.param(Plain, SAM(RHO), {"clip": 0.1}, {"gradient_clip_val": 0.1}, id="clipping"),
        pytest.param(
            Plain,
            SAM(RHO),
            {"clip": 0.1, "accumulate": 3, "dtype": torch.bfloat16},
            {"gradient_clip_val": 0.1, "accumulate_grad_batches": 3, "precision": "bf16-mixed"},
            id="all three",
        ),
    ],
)
def test_it_equals_a_loop_written_by_hand(kind, method, by_hand, options):
    run = fit(seeded(kind), method, **options)

    assert distance(run.state["weights"], train(seeded(kind), **by_hand)) == 0.0
    assert run.state["steps"][0] == -(-10 // by_hand.get("accumulate", 1))


@pytest.mark.parametrize(
    ("init_scale", "accumulate", "clip"), [(2.0**10, 1, None), (2.0**26, 1, None), (2.0**26, 3, 0.1)]
)
def test_it_equals_the_loop_in_half_precision_through_overflows(init_scale, accumulate, clip):
    ours, theirs = half(init_scale), half(init_scale)
    plugin = MixedPrecision("16-mixed", "cpu", ours)
    run = fit(seeded(Plain), SAM(RHO), plugins=[plugin], accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    expected = train(seeded(Plain), dtype=torch.half, scaler=theirs, accumulate=accumulate, clip=clip)

    assert distance(run.state["weights"], expected) == 0.0
    assert ours.get_scale() == theirs.get_scale()
    assert (ours.get_scale() < init_scale) == (init_scale > 2**20)


def on_two_ranks():
    from torch import distributed as dist

    found = {}
    for name, options, by_hand in [
        ("synchronised", {}, {}),
        ("rank-local", {"synchronise": False}, {"local": True}),
        ("accumulate and clip", {}, {"accumulate": 3, "clip": 0.1}),
        ("rank-local, accumulate and clip", {"synchronise": False}, {"local": True, "accumulate": 3, "clip": 0.1}),
    ]:
        run = fit(
            seeded(Plain),
            SAM(RHO, **options),
            batches=lambda: batches_of(dist.get_rank(), 2),
            strategy="ddp",
            devices=2,
            use_distributed_sampler=False,
            accumulate_grad_batches=by_hand.get("accumulate", 1),
            gradient_clip_val=by_hand.get("clip"),
        )
        expected = train(seeded(Plain), ranks=2, **by_hand)
        found[name] = (distance(run.state["weights"], expected), run.state["weights"])
    return found


def test_two_processes_equal_the_loop_with_either_ascent(two_ranks):
    first, second = two_ranks(on_two_ranks)

    for name, (difference, weights) in first.items():
        assert (name, difference, second[name][0]) == (name, 0.0, 0.0)
        trained = {key for key in weights if "running" not in key}
        assert all(torch.equal(weights[key], second[name][1][key]) for key in trained)
    assert distance(first["synchronised"][1], first["rank-local"][1]) > 1e-4


def wrong_sign(weights, gradients):
    return [-it for it in sam(weights, gradients, RHO)]


def per_tensor_norm(weights, gradients):
    return [RHO * it / it.norm() for it in gradients]


@pytest.mark.parametrize("mutant", [None, wrong_sign, per_tensor_norm], ids=lambda it: getattr(it, "__name__", "none"))
def test_a_wrong_ascent_is_noticed(mutant):
    run = fit(seeded(Plain), SAM(RHO))

    assert distance(run.state["weights"], train(seeded(Plain), mutant)) > 1e-3


class WithClosures(TwoOptimizers):
    def training_step(self, batch, batch_idx):
        image, target = batch
        for optimizer in self.optimizers():

            def closure(optimizer=optimizer):
                loss = F.cross_entropy(self(image), target)
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.log("train/loss", loss)
                return loss

            optimizer.step(closure=closure)


def two_optimizers_by_hand(module):
    trunk, head = module.configure_optimizers()
    batches = list(batches_of())
    torch.manual_seed(1)
    for image, target in batches:
        for optimizer in (trunk, head):

            def backward(optimizer=optimizer, image=image, target=target):
                optimizer.zero_grad()
                F.cross_entropy(module(image), target).backward()

            weights = [it for group in optimizer.param_groups for it in group["params"]]
            others = [it for it in module.parameters() if id(it) not in set(map(id, weights))]
            draws = torch.get_rng_state()
            backward()
            kept = [None if it.grad is None else it.grad.clone() for it in others]
            buffers = {name: it.clone() for name, it in module.network.named_buffers()}
            place = [it.detach().clone() for it in weights]
            with torch.no_grad():
                for weight, step in zip(weights, sam(weights, [it.grad for it in weights], RHO), strict=True):
                    weight += step
            torch.set_rng_state(draws)
            backward()
            with torch.no_grad():
                for weight, value in zip(weights, place, strict=True):
                    weight.copy_(value)
            module.network.load_state_dict(buffers, strict=False)
            for other, gradient in zip(others, kept, strict=True):
                other.grad = gradient
            optimizer.step()
    return module.state_dict()


def test_manual_optimisation_with_two_optimizers_equals_the_loop_through_closures():
    run = fit(seeded(WithClosures), SAM(RHO))

    assert distance(run.state["weights"], two_optimizers_by_hand(seeded(WithClosures).train())) == 0.0
    assert run.state["steps"] == (20, 1)


def test_manual_optimisation_without_a_closure_is_refused():
    with pytest.raises(ValueError, match=r"SAM: `optimizer.step\(\)` came without a closure"):
        fit(seeded(TwoOptimizers), SAM(RHO))


# ---------------------------------------------------------------------------------------------------------------------
# LookSAM.
# ---------------------------------------------------------------------------------------------------------------------


def test_the_direction_is_what_of_the_sharp_gradient_is_orthogonal_to_the_plain_one():
    """On 1/2 w'Hw with e = rho g/||g|| all is known: g = Hw, g_s = H(w + e)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(7, 7, dtype=torch.double, generator=generator)
    hessian, weight = root @ root.T, torch.randn(7, dtype=torch.double, generator=generator)
    plain = hessian @ weight
    sharp = hessian @ (weight + 0.3 * plain / plain.norm())
    direction = looksam_direction([sharp[:3], sharp[3:]], [plain[:3].clone(), plain[3:].clone()])
    direction = torch.cat(direction)
    parallel = plain * (sharp @ plain) / (plain @ plain)

    assert direction @ plain == pytest.approx(0, abs=1e-12)
    assert torch.allclose(parallel + direction, sharp, atol=1e-13)
    (reused,) = looksam_gradient([plain.clone()], [direction], alpha=0.7)
    added = reused - plain
    assert added.norm() == pytest.approx(0.7 * plain.norm())
    assert added @ direction == pytest.approx(added.norm() * direction.norm())


def looksam_by_hand(module, every, alpha):
    """Algorithm 1 on one long vector, whose sums round otherwise than the callback's."""
    setup = module.configure_optimizers()
    optimizer, scheduler = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    weights, direction = list(module.parameters()), torch.zeros(())
    for number, (image, target) in enumerate(batches_of()):

        def gradient(image=image, target=target):
            optimizer.zero_grad()
            F.cross_entropy(module(image), target).backward()
            return nn.utils.parameters_to_vector([it.grad for it in weights])

        plain = gradient()
        step = plain + alpha * plain.norm() / direction.norm() * direction if number % every else None
        if step is None:
            place = nn.utils.parameters_to_vector(weights).detach()
            buffers = {name: it.clone() for name, it in module.network.named_buffers()}
            nn.utils.vector_to_parameters(place + RHO * plain / plain.norm(), weights)
            step = gradient()
            nn.utils.vector_to_parameters(place, weights)
            module.network.load_state_dict(buffers, strict=False)
            cosine = step @ plain / (step.norm() * plain.norm())
            direction = step - step.norm() * cosine * plain / plain.norm()
        for weight, part in zip(weights, step.split([it.numel() for it in weights]), strict=True):
            weight.grad = part.view_as(weight)
        optimizer.step()
        scheduler.step()
    return module.state_dict()


@pytest.mark.parametrize(("every", "alpha"), [(2, 0.7), (5, 0.7), (4, 0.2)])
def test_looksam_follows_its_algorithm(every, alpha):
    run = fit(seeded(Plain, 0.0), SAM(RHO, every_n_steps=every, alpha=alpha))
    expected = looksam_by_hand(seeded(Plain, 0.0).train(), every, alpha)

    assert distance(run.state["weights"], expected) < 2e-5
    assert distance(run.state["weights"], fit(seeded(Plain, 0.0), SAM(RHO)).state["weights"]) > 1e-3


def test_looksam_every_step_is_sam():
    runs = [fit(seeded(Plain), SAM(RHO, every_n_steps=1, alpha=alpha)).state["weights"] for alpha in (0.7, 0.1)]

    assert distance(*runs) == distance(runs[0], train(seeded(Plain))) == 0.0


def test_an_overflow_leaves_no_trace_in_the_direction():
    method = SAM(RHO, every_n_steps=3)
    plugin = MixedPrecision("16-mixed", "cpu", half(2.0**26))
    run = fit(seeded(Plain), method, plugins=[plugin], max_epochs=3)

    assert all(torch.isfinite(it).all() for it in run.state["weights"].values())
    assert all(torch.isfinite(it).all() for it in method.state_dict()["kept"].values())
    assert set(method.state_dict()["kept"]) == {name for name, _ in Plain().named_parameters()}


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics, and refusals.
# ---------------------------------------------------------------------------------------------------------------------


def test_a_zero_gradient_perturbs_nothing():
    for precision in (torch.float16, torch.float32, torch.float64):
        zeros = [torch.zeros(3, dtype=precision), torch.zeros((), dtype=precision)]
        assert all(it.eq(0).all() for it in sam_perturbation([it.clone() for it in zeros], 0.1))
        assert all(it.eq(0).all() for it in asam_perturbation(zeros, [it.clone() for it in zeros], 0.1, 0.01))


@pytest.mark.parametrize("gradient", [torch.full((4,), 2e-7), torch.full((1000, 1000), 4e2)], ids=["small", "large"])
def test_half_precision_gradients_of_any_size_perturb_by_rho(gradient):
    """Their norm, or one over it, does not fit into float16."""
    gradient = gradient.half()
    weight = torch.ones_like(gradient)
    (plain,) = sam_perturbation([gradient.clone()], 0.05)
    (adaptive,) = asam_perturbation([weight], [gradient.clone()], 0.05, 0.0)
    (same,) = looksam_gradient([gradient.clone()], [gradient.clone()], 0.5)

    assert plain.float().norm().item() == pytest.approx(0.05, rel=1e-3)
    assert adaptive.float().norm().item() == pytest.approx(0.05, rel=1e-3)
    assert torch.allclose(same.float(), 1.5 * gradient.float(), rtol=1e-3, atol=6e-8)
    (orthogonal,) = looksam_direction([3 * gradient], [gradient.clone()])
    assert orthogonal.norm() < 1e-2 * gradient.float().norm()


class HalfHead(Plain):
    """A linear layer, which is all that float16 weights need to learn on a processor."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("every", [1, 2])
def test_half_precision_weights_are_perturbed(every):
    plain = fit(seeded(HalfHead), precision="16-true").state["weights"]
    run = fit(seeded(HalfHead), SAM(0.5, every_n_steps=every), precision="16-true").state["weights"]

    assert all(it.dtype == torch.float16 for it in run.values())
    assert 1e-3 < distance(run, plain) < 1.0


def test_adaptive_distances_do_not_depend_on_the_scale_of_weights():
    """With eta = 0, w -> c w and g -> g / c (a network that computes the same) gives e -> c e."""
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(5, dtype=torch.double, generator=generator) for _ in range(2))
    (plain,) = asam_perturbation([weight], [gradient.clone()], 0.5, 0.0)
    (scaled,) = asam_perturbation([8 * weight], [gradient / 8], 0.5, 0.0)

    assert torch.allclose(8 * plain, scaled, rtol=1e-14)
    assert (plain / weight).norm() == pytest.approx(0.5)


def test_biases_and_normalisation_can_be_left_out():
    method, weights = SAM(RHO, skip_bn_bias=True), [torch.ones(2, 3), torch.ones(3), torch.ones(())]
    matrix, *skipped = next(method.ascend(weights, [torch.ones_like(it) for it in weights], 0))

    assert matrix.norm() == pytest.approx(RHO)
    assert [it.abs().sum().item() for it in skipped] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "SAM: rho is -0.1; give a finite number of at least 0."),
        ({"rho": float("nan")}, "SAM: rho is nan; give a finite number of at least 0."),
        ({"rho": float("inf")}, "SAM: rho is inf; give a finite number of at least 0."),
        ({"alpha": -1.0}, "SAM: alpha is -1.0; give a finite number of at least 0."),
        ({"eta": -1.0}, "SAM: eta is -1.0; give a finite number of at least 0."),
        ({"every_n_steps": 0}, "SAM: every_n_steps is 0; give a whole number of at least 1."),
        ({"every_n_steps": 2.5}, "SAM: every_n_steps is 2.5; give a whole number of at least 1."),
        (
            {"every_n_steps": 2, "synchronise": False},
            "SAM: every_n_steps is 2, which reuses a direction that all processes must share; leave synchronise=True, "
            "or give every_n_steps=1.",
        ),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        SAM(**settings)

    assert message == str(error.value)
