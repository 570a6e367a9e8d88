"""TrAct: the closed form against least squares and the authors' layers, training against a loop written by hand.

Conformance (resume, processes, precision, undo, a neutral run) is proved in `conformance/`.
"""

import pytest
import torch
import torch.nn.functional as F
import torch_tract
from torch import nn

from lightning_vision.callbacks import TrAct, layer_columns, second_moment, tract_gradient
from lightning_vision.callbacks.hooks.first_layer import FirstLayer
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_row_77_a_large_lambda_gives_the_ordinary_gradient_over_lambda():
    moment = second_moment([normal(6, 40)])
    gradient = normal(3, 6, seed=1)

    assert torch.allclose(tract_gradient(gradient, moment, lam=1e9) * 1e9, gradient, rtol=1e-7)
    assert not torch.allclose(tract_gradient(gradient, moment, lam=0.1), gradient / 0.1, rtol=0.1)


def test_row_77_whitened_inputs_give_the_gradient_over_one_plus_lambda():
    orthogonal, _ = torch.linalg.qr(normal(40, 6))
    gradient = normal(3, 6, seed=1)
    moment = second_moment([orthogonal.T * 40**0.5])

    assert torch.allclose(tract_gradient(gradient, moment, lam=0.25), gradient / 1.25, rtol=1e-12)


def test_row_77_it_is_the_least_squares_solution_for_proposed_activations():
    """Least D of |D X + eta b G|^2 / b + lambda |D|^2, where b G is each position's own gradient of the summed loss."""
    inputs, outer, eta, lam = normal(6, 40), normal(3, 40, seed=1), 0.3, 0.1
    rows = torch.cat([inputs.T / 40**0.5, lam**0.5 * torch.eye(6, dtype=torch.float64)])
    proposed = torch.cat([-eta * 40**0.5 * outer.T, torch.zeros(6, 3, dtype=torch.float64)])
    solution = torch.linalg.lstsq(rows, proposed).solution.T

    ours = -eta * tract_gradient(outer @ inputs.T, second_moment([inputs]), lam)
    without_share = -eta * tract_gradient(outer @ inputs.T, inputs @ inputs.T, lam)

    assert torch.allclose(ours, solution, rtol=1e-10)
    assert not torch.allclose(without_share, solution, rtol=0.1)


def test_row_77_without_lambda_a_scale_of_the_inputs_leaves_the_change_of_activations():
    inputs, outer, scale = normal(6, 40), normal(3, 40, seed=1), 7.0

    def changes(a):
        scaled = a * inputs
        gradient = outer @ scaled.T
        return tract_gradient(gradient, second_moment([scaled]), 1e-12) @ scaled, gradient @ scaled

    (ours, plain), (ours_scaled, plain_scaled) = changes(1.0), changes(scale)

    assert torch.allclose(ours_scaled, ours, rtol=1e-8)
    assert torch.allclose(plain_scaled, scale**2 * plain, rtol=1e-8)


CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "padded, strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2)},
    "dilated": {"kernel_size": 2, "dilation": (2, 1), "padding": 1},
    "same": {"kernel_size": (4, 3), "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflected": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    "circular, same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
}


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_row_77_a_convolution_is_a_linear_layer_of_its_columns(settings):
    layer = nn.Conv2d(2, 5, bias=False, dtype=torch.float64, **settings)
    images = normal(4, 2, 7, 6)
    output = layer(images)

    columns = layer_columns(layer, images)

    assert torch.allclose(layer.weight.flatten(1) @ columns, output.transpose(0, 1).flatten(1), rtol=1e-10)
    assert columns.shape == (layer.weight[0].numel(), output[:, 0].numel())


def test_a_moment_in_parts_is_that_of_the_whole():
    columns = normal(6, 50)

    assert torch.allclose(second_moment(columns.split(13, dim=1)), columns @ columns.T / 50, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "size"),
    [(nn.Linear(6, 4), (9, 6)), (nn.Linear(6, 4), (2, 5, 6)), (nn.Conv2d(2, 4, 3, stride=2, padding=1), (3, 2, 6, 5))],
    ids=["linear", "tokens", "convolution"],
)
def test_the_gradient_is_that_of_the_authors_layer(layer, size):
    given = normal(*size, dtype=torch.float32)
    theirs = torch_tract.TrAct(layer, l=0.1)
    theirs(given).square().mean().backward()
    expected = theirs.weight.grad.clone()
    theirs.weight.grad = None
    layer(given).square().mean().backward()

    ours = tract_gradient(layer.weight.grad, second_moment([layer_columns(layer, given)]), 0.1)

    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-6)


def trained(callback, module=Plain, **options):
    torch.manual_seed(0)
    fitted = module(dropout=0.0)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], **options)
    trainer.fit(fitted, plain_loader(), plain_loader())
    return fitted


def by_hand(
    steps=20,
    change=lambda gradient, columns: (
        gradient @ torch.linalg.inv(columns @ columns.T / columns.shape[1] + 0.1 * torch.eye(9))
    ),
):
    torch.manual_seed(0)
    module = Plain(dropout=0.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    first = module.network[0]
    for _ in range(steps // 10):
        for images, target in plain_loader():
            optimizer.zero_grad()
            F.cross_entropy(module(images), target).backward()
            columns = F.unfold(images, 3, stride=2).transpose(0, 1).flatten(1)
            first.weight.grad = change(first.weight.grad.flatten(1), columns).reshape(first.weight.shape)
            optimizer.step()
            schedule.step()
    return module


def apart(left, right):
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_training_equals_a_loop_by_hand_and_a_wrong_one_is_noticed():
    ours = trained(TrAct(0.1))

    assert apart(ours, by_hand()) < 1e-5
    inverse = torch.linalg.inv
    eye = 0.1 * torch.eye(9)
    mutants = [
        lambda gradient, columns: gradient,
        lambda gradient, columns: gradient @ inverse(columns @ columns.T + eye),
        lambda gradient, columns: gradient @ inverse(columns @ columns.T / 6 + eye),
        lambda gradient, columns: gradient @ (columns @ columns.T / columns.shape[1] + eye),
    ]
    assert all(not apart(ours, by_hand(change=mutant)) < 1e-3 for mutant in mutants)


class Named(Plain):
    """Its first layer in the order of names is not the one that is called first."""

    def __init__(self, dropout=0.5):
        super().__init__(dropout)
        network, self.network = self.network, None
        self.auxiliary, self.network = nn.Linear(3, 3), network


def test_the_first_layer_is_the_one_that_is_called_first():
    found, named = TrAct(0.1), TrAct(0.1, layer="network.0")

    assert apart(trained(found, Named), trained(named, Named)) == 0.0
    assert apart(trained(found, Named), trained(TrAct(50.0), Named)) > 1e-3


class Twice(Plain):
    """Calls its network twice in a step, once without going back through it."""

    def training_step(self, batch, batch_idx):
        images, target = batch
        self(images.flip(0) * 3)
        return F.cross_entropy(self(images[:3]), target[:3]) + F.cross_entropy(self(images[3:]), target[3:])


def test_a_layer_called_several_times_has_one_moment_over_its_calls():
    seen = []

    class Watch(FirstLayer):
        neutral = "it is a test's and changes nothing, whatever is set"

        def admit(self, layer):
            return None

        def change(self, layer, gradient, given):
            seen.append([len(it) for it in given])
            return gradient

    trained(Watch(layer=None), Twice)

    assert seen == [[6, 3, 3]] * 20


class Grouped(Plain):
    def __init__(self, dropout=0.5):
        super().__init__(dropout)
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10))
        self.network[3].weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("network.9", "TrAct: Grouped has no layer 'network.9'; did you mean|begin"),
        ("network.1", "TrAct: network.1 of Grouped is a convolution in 2 groups, which see different inputs; name one"),
        ("network.2", "TrAct: network.2 of Grouped is a Flatten; name a Linear or Conv2d layer."),
        ("network.3", "TrAct: network.3 of Grouped has a frozen weight; thaw it, or leave the callback out."),
    ],
)
def test_a_layer_that_cannot_be_treated_is_refused_before_the_first_step(layer, message):
    with pytest.raises(ValueError, match=message):
        trained(TrAct(layer=layer), Grouped, num_sanity_val_steps=0)


@pytest.mark.parametrize("arguments", [{"lam": 0.0}, {"lam": -1.0}, {"lam": float("inf")}, {"layer": 3}, {"layer": ""}])
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^TrAct: (lam|layer) is .*; give a .*\.$"):
        TrAct(**arguments)


class Convless(Plain):
    def __init__(self, dropout=0.5):
        super().__init__(dropout)
        self.network = None
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, image):
        return image.flatten(1) @ self.weight


def test_a_module_without_such_a_layer_is_refused():
    with pytest.raises(ValueError, match="TrAct: Convless has no Linear or Conv2d layer when training starts"):
        trained(TrAct(), Convless)


def test_a_named_layer_that_training_does_not_call_is_told_of():
    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    trainer = quiet_trainer(callbacks=[TrAct(layer="spare")], max_epochs=1, limit_train_batches=1)
    with pytest.warns(UserWarning, match="^TrAct: spare was not called in the first training step, so nothing was"):
        trainer.fit(Unused(), plain_loader(6))
