"""Robust pruning: HSIC and ADMM against their definitions, training against loops written by hand.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import ExactResume, Pruning, RobustPruning, kd_loss
from lightning_vision.callbacks.pruning.robust_pruning import (
    admm_projection,
    gaussian_kernel,
    hsic,
    linear_kernel,
)
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

OFF = {"kd_weight": 0.0, "lambda_x": 0.0, "lambda_y": 0.0}
HSIC_SETTINGS = OFF | {"lambda_x": 3.0, "lambda_y": 5.0}


def loader():
    return ResumableLoader(labelled_images(60), 6)


def trained(*callbacks, kind=Plain, **options):
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options)
    trainer.fit(module, loader())
    return module


def naive_kernel(samples, sigma):
    """Two loops, as it is written in the paper: exp(-|a - b|^2 / (2 (sigma sqrt d)^2))."""
    flat = samples.double().flatten(1)
    found = torch.empty(len(flat), len(flat), dtype=torch.float64)
    for i, a in enumerate(flat):
        for j, b in enumerate(flat):
            found[i, j] = torch.exp(-((a - b) ** 2).sum() / (2 * sigma**2 * flat.shape[1]))
    return found


def naive_hsic(kernel, other):
    """tr(K H L H) / (n - 1)^2 with H = 1 - 1/n as a matrix."""
    count = len(kernel)
    centring = torch.eye(count, dtype=torch.float64) - 1 / count
    return torch.trace(kernel @ centring @ other @ centring) / (count - 1) ** 2


def two_samples(count=12):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, 3, generator=draws, dtype=torch.float64)
    return x, x[:, 0] ** 2 + 0.3 * torch.randn(count, 3, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.0])
def test_row_191_hsic_equals_the_naive_trace(sigma):
    x, y = two_samples()
    kernel, other = gaussian_kernel(x, sigma), gaussian_kernel(y, sigma)
    wrong = (kernel * other).sum() / (len(x) - 1) ** 2

    assert torch.allclose(kernel, naive_kernel(x, sigma), rtol=1e-12)
    assert torch.allclose(hsic(kernel, other), naive_hsic(naive_kernel(x, sigma), naive_kernel(y, sigma)), rtol=1e-10)
    assert torch.allclose(hsic(linear_kernel(y), kernel), naive_hsic(y @ y.T, naive_kernel(x, sigma)), rtol=1e-10)
    assert abs(wrong - hsic(kernel, other)) > 0.1 * hsic(kernel, other)


def test_row_191_hsic_is_invariant_to_a_joint_permutation_and_not_to_that_of_one():
    x, y = two_samples()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    kernel = gaussian_kernel(x, 1.0)

    assert torch.allclose(
        hsic(kernel, gaussian_kernel(y, 1.0)),
        hsic(gaussian_kernel(x[order], 1.0), gaussian_kernel(y[order], 1.0)),
        rtol=1e-12,
    )
    assert hsic(kernel, gaussian_kernel(y[order], 1.0)) < 0.9 * hsic(kernel, gaussian_kernel(y, 1.0))


@pytest.mark.parametrize("constant", [0.0, 3.7, 1e4])
def test_row_191_hsic_with_a_constant_is_zero(constant):
    x, _ = two_samples()
    same = torch.full((len(x), 4), constant)

    assert hsic(gaussian_kernel(x), gaussian_kernel(same)).abs() < 1e-12
    assert hsic(gaussian_kernel(same), gaussian_kernel(x)).abs() < 1e-12


def test_equal_samples_have_finite_gradients():
    x = torch.ones(4, 3, requires_grad=True)
    hsic(gaussian_kernel(x), linear_kernel(torch.eye(4))).backward()

    assert x.grad.tolist() == [[0.0] * 3] * 4


def test_the_dependence_of_a_single_sample_is_zero():
    assert hsic(gaussian_kernel(torch.ones(1, 3)), linear_kernel(torch.ones(1, 2))) == 0


def test_row_191_the_projection_of_admm_keeps_the_largest():
    draws = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(5, 7, generator=draws), "b": torch.randn(3, 2, 2, generator=draws)}
    found = admm_projection(weights, 11)
    flat, projected = (torch.cat([it[name].flatten() for name in weights]) for it in (weights, found))
    largest = set(flat.abs().argsort(descending=True)[:11].tolist())

    assert set(projected.nonzero().squeeze(1).tolist()) == largest
    assert torch.equal(projected[projected != 0], flat[sorted(largest)])


@pytest.mark.parametrize("rho", [0.0, 0.05])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.37])
def test_row_191_the_final_mask_has_exactly_the_wanted_sparsity(rho, sparsity):
    pruning = Pruning(sparsity, begin_step=8)
    module = trained(RobustPruning(rho=rho, admm_steps=3), pruning)
    zeros = sum(int((module.network[place].weight == 0).sum()) for place in (0, 5))

    assert zeros == sum(int((~it).sum()) for it in pruning.kept_masks.values()) == round(sparsity * 396)


def distilled(kd_weight, temperature, mutant=""):
    """Ordinary distillation of a pruned network from what it was, written by hand: two epochs, masks from the start."""
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    teacher = copy.deepcopy(module).eval()
    weights = {name: it for name, it in module.named_parameters() if it.ndim > 1}
    threshold = torch.cat([it.detach().abs().flatten() for it in weights.values()]).sort().values[198]
    masks = {name: it.detach().abs() >= threshold for name, it in weights.items()}
    if mutant == "a pruned teacher":
        teacher = module
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for name, weight in weights.items():
        weight.data.mul_(masks[name])
    data = loader()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            logits = module(image)
            flags = teacher.training
            with torch.no_grad():
                soft = teacher.eval()(image).div(temperature).softmax(dim=1)
            teacher.train(flags)
            ours = (logits / temperature).log_softmax(dim=1)
            term = (soft * (soft.log() - ours)).sum(dim=1).mean()
            if mutant == "the other divergence":
                term = (ours.exp() * (ours - soft.log())).sum(dim=1).mean()
            scale = 1 if mutant == "no T^2" else temperature**2
            (F.cross_entropy(logits, target) + kd_weight * scale * term).backward()
            for name, weight in weights.items():
                weight.grad.mul_(masks[name])
            optimizer.step()
            schedule.step()
            for name, weight in weights.items():
                weight.data.mul_(masks[name])
    return module.state_dict()


def test_row_191_without_lambda_it_is_ordinary_distillation():
    """Bit for bit but for the order of a sum: the loop takes the mean of other products."""
    module = trained(RobustPruning(kd_weight=0.7, temperature=4.0, lambda_x=0.0, lambda_y=0.0), Pruning(0.5))

    assert distance(distilled(0.7, 4.0), module.state_dict()) < 2e-6


@pytest.mark.parametrize("mutant", ["a pruned teacher", "no T^2", "the other divergence"])
def test_wrong_distillation_is_noticed(mutant):
    assert distance(distilled(0.7, 4.0, mutant), distilled(0.7, 4.0)) > 1e-4


def test_the_divergence_equals_its_definition():
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = ((it / 3).softmax(dim=1) for it in (teacher, student))
    by_hand = 9 * (p * (p / q).log()).sum(dim=1).mean()

    assert torch.allclose(by_hand, kd_loss(student, teacher, 3.0))


def test_the_bottleneck_equals_a_loop_by_hand():
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    kept = {}
    for place in (0, 5):
        module.network[place].register_forward_hook(lambda _, __, out, place=place: kept.update({place: out}))
    data = loader()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            loss = F.cross_entropy(module(image), target)
            x, y = naive_kernel(image, 5.0), F.one_hot(target, 10).double()
            for layer in kept.values():
                kernel = naive_kernel(layer, 5.0)
                loss = loss + (3.0 * naive_hsic(kernel, x) - 5.0 * naive_hsic(kernel, y @ y.T)).float()
            loss.backward()
            optimizer.step()
            schedule.step()
    ours = trained(RobustPruning(**HSIC_SETTINGS))

    assert distance(module.state_dict(), ours.state_dict()) < 1e-4
    assert distance(trained().state_dict(), ours.state_dict()) > 1e-2
    flipped = trained(RobustPruning(**OFF | {"lambda_x": 5.0, "lambda_y": 3.0}))
    assert distance(flipped.state_dict(), ours.state_dict()) > 1e-3


def test_admm_equals_a_loop_by_hand():
    """W, Z, U of the scaled form: Z <- top k of W + U, U <- U + W - Z after every third step; masks come at step 14."""
    rho, names = 0.5, ("network.0.weight", "network.5.weight")
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    named = dict(module.named_parameters())

    def largest(values):
        flat = torch.cat([values[name].flatten() for name in names])
        threshold = flat.abs().sort(descending=True).values[396 - 277 - 1]
        return {name: values[name] * (values[name].abs() >= threshold) for name in names}

    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    z = largest({name: named[name].detach().clone() for name in names})
    u = {name: torch.zeros_like(z[name]) for name in names}
    data, step, masks = loader(), 0, {}
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            loss = F.cross_entropy(module(image), target)
            if not masks:
                loss = loss + rho / 2 * sum((named[name] - z[name] + u[name]).pow(2).sum() for name in names)
            loss.backward()
            for name, mask in masks.items():
                named[name].grad.mul_(mask)
            optimizer.step()
            schedule.step()
            step += 1
            for name, mask in masks.items():
                named[name].data.mul_(mask)
            if step % 3 == 0 and not masks:
                moved = {name: named[name].detach() + u[name] for name in names}
                z = largest(moved)
                u = {name: moved[name] - z[name] for name in names}
            if step == 14:
                masks = {name: it != 0 for name, it in largest({n: named[n].detach() for n in names}).items()}
                for name, mask in masks.items():
                    named[name].data.mul_(mask)
                    optimizer.state[named[name]]["momentum_buffer"].mul_(mask)
    ours = trained(RobustPruning(**OFF, rho=rho, admm_steps=3), Pruning(0.7, begin_step=14))

    assert distance(module.state_dict(), ours.state_dict()) < 1e-5
    assert distance(trained(Pruning(0.7, begin_step=14)).state_dict(), ours.state_dict()) > 1e-2


@pytest.mark.parametrize(
    ("saving", "kill_at"), [({"every_n_train_steps": 4}, 6), ({"every_n_epochs": 1}, 12)], ids=["inside", "epoch's end"]
)
def test_a_resumed_run_has_the_same_teacher_and_projection(tmp_path, saving, kill_at):
    def go(name, **how):
        torch.manual_seed(0)
        module = Plain()
        torch.manual_seed(1)
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, **saving)
        callbacks = [RobustPruning(rho=0.1, admm_steps=3), Pruning(0.5, begin_step=14), ExactResume(), writer]
        return record(module, loader, callbacks, max_epochs=2, default_root_dir=tmp_path, **how)

    straight, killed = go("straight"), go("killed", kill_at=kill_at)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed) == []


def test_the_teacher_is_no_part_of_the_module(tmp_path):
    callback = RobustPruning()
    module = trained(callback, Pruning(0.5), default_root_dir=tmp_path)

    assert module.state_dict().keys() == Plain().state_dict().keys()
    assert len(list(module.parameters())) == len(list(Plain().parameters()))
    torch.manual_seed(0)
    assert distance(dict(Plain().state_dict()), callback.teacher) == 0.0


def test_two_ranks_end_with_one_network(two_ranks):
    def found():
        torch.manual_seed(0)
        module = Plain()
        rank = torch.distributed.get_rank()
        train = ResumableLoader(labelled_images(60), 6, rank, 2)
        callbacks = [RobustPruning(rho=0.1, admm_steps=2), Pruning(0.5, begin_step=6)]
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 2}
        quiet_trainer(callbacks=callbacks, **options).fit(module, train)
        return torch.cat([it.detach().flatten() for it in module.parameters()])

    first, second = two_ranks(found)

    assert torch.equal(first, second)


BAD = [
    ({"kd_weight": -1.0}, "RobustPruning: kd_weight is -1.0; give a finite number of at least 0."),
    ({"temperature": 0.0}, "RobustPruning: temperature is 0.0; give a number above 0."),
    ({"sigma": 0}, "RobustPruning: sigma is 0; give a number above 0."),
    ({"lambda_x": float("nan")}, "RobustPruning: lambda_x is nan; give a finite number of at least 0."),
    ({"admm_steps": 0}, "RobustPruning: admm_steps is 0; give a whole number of at least 1."),
    (
        {"layers": 3},
        "RobustPruning: layers is 3; give a pattern such as 'blocks.*.act', or a list of them.",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        RobustPruning(**settings)

    assert str(refusal.value) == sentence


class Scalars(Plain):
    def forward(self, image):
        return super().forward(image).mean(dim=1)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).mean()


REFUSED = {
    "no such network": (
        {"network": "net"},
        {},
        "RobustPruning: Plain has no part 'net'; name with network= one of its `named_modules()`, such as 'network', "
        "'network.0', 'network.1', 'network.2', 'network.3'.",
    ),
    "no such layer": (
        {"network": "network", "layers": ["7*"]},
        {},
        "RobustPruning: layers '7*' matches none of the layers; there are 0, 1, 2.",
    ),
    "ADMM without pruning": (
        {"rho": 0.1},
        {},
        "RobustPruning: rho=0.1 pulls weights towards what Pruning will leave, until it does; add "
        "Pruning(sparsity=..., begin_step=...) with a begin_step above 0, no end_step and no pattern, or give rho=0.",
    ),
    "manual optimisation": (
        {},
        {"kind": TwoOptimizers},
        "RobustPruning: TwoOptimizers optimises manually, so its training_step returns no loss to add a term to; use "
        "automatic optimization, or leave it out.",
    ),
    "no logits": (
        {},
        {"kind": Scalars},
        "RobustPruning: the network answers with (6,) and not with logits (B, K); name with network= the part of the "
        "module that does.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case):
    settings, how, sentence = REFUSED[case]
    with pytest.raises(ValueError) as refusal:
        trained(RobustPruning(**settings), **how)

    assert str(refusal.value) == sentence


def test_training_without_pruning_is_warned_of():
    with pytest.warns(UserWarning, match="nothing on this Trainer prunes"):
        trained(RobustPruning(), max_epochs=1)
