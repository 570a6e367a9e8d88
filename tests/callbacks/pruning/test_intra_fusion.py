"""Intra-Fusion: plans are optimal, shapes those of usual pruning, and nothing changes where nothing goes."""

import copy

import ot
import pytest
import timm
import torch
import torch.nn.functional as F
import torch_pruning
from scipy.optimize import linear_sum_assignment
from torch import nn

from lightning_vision.callbacks.pruning._folding import folded_norms
from lightning_vision.callbacks.pruning._groups import channel_groups
from lightning_vision.callbacks.pruning.intra_fusion import intra_fusion, transport_plan
from support.compare import distance, seeded

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained(model):
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for it in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(it, 0.5, 1.5)
    return model.eval()


def residual():
    return trained(timm.create_model("resnet18", num_classes=5, channels=(8, 8, 16, 16)))


def plain():
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, stride=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 5),
        )
    )


def problem(n, m, seed):
    random = torch.Generator().manual_seed(seed)
    source, target = (torch.rand(it, generator=random, dtype=torch.float64) + 0.1 for it in (n, m))
    return torch.rand(n, m, generator=random, dtype=torch.float64), source / source.sum(), target / target.sum()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (12, 12), (40, 25)])
def test_row_271_a_plans_marginals_match_and_its_cost_is_pots(n, m):
    cost, source, target = problem(n, m, seed=n)
    plan = transport_plan(cost, source, target)
    expected = ot.emd(source.numpy(), target.numpy(), cost.numpy())

    assert torch.allclose(plan.sum(dim=1), source, atol=1e-9)
    assert torch.allclose(plan.sum(dim=0), target, atol=1e-9)
    assert float(plan.min()) >= 0
    assert float((plan * cost).sum()) == pytest.approx(float((expected * cost.numpy()).sum()), abs=1e-9)


def test_row_271_for_equal_sizes_the_cost_is_that_of_the_best_assignment():
    cost, _, _ = problem(15, 15, seed=3)
    uniform = torch.full((15,), 1 / 15, dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost.numpy())

    found = float((transport_plan(cost, uniform, uniform) * cost).sum())
    assert found == pytest.approx(cost.numpy()[rows, columns].mean(), abs=1e-9)


def test_a_plan_that_is_not_the_best_costs_more():
    cost, source, target = problem(8, 5, seed=1)

    best = float((transport_plan(cost, source, target) * cost).sum())
    assert float((torch.outer(source, target) * cost).sum()) > best + 1e-3


@pytest.mark.parametrize("kind", [plain, residual])
def test_row_271_sparsity_0_leaves_outputs_unchanged(kind):
    model = seeded(kind)
    before = {name: it.clone() for name, it in model.state_dict().items()}
    expected = model(IMAGES)

    assert torch.equal(intra_fusion(model, IMAGES, sparsity=0.0)(IMAGES), expected)
    assert distance(before, model.state_dict()) == 0.0


@pytest.mark.parametrize(
    ("kind", "sparsity", "fusing"),
    [(plain, 0.3, "sum"), (plain, 0.5, "mean"), (plain, 0.75, "sum"), (residual, 0.5, "sum")],
)
def test_row_271_shapes_are_those_of_plain_torch_pruning(kind, sparsity, fusing):
    model = seeded(kind)
    theirs = copy.deepcopy(model)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    head = list(theirs.modules())[-1]
    torch_pruning.pruner.BasePruner(theirs, IMAGES, importance, pruning_ratio=sparsity, ignored_layers=[head]).step()
    kinds = [type(part) for part in model.modules()]
    ours = intra_fusion(model, IMAGES, sparsity, fusing=fusing)

    assert {name: it.shape for name, it in ours.state_dict().items()} == {
        name: it.shape for name, it in theirs.state_dict().items()
    }
    assert ours is model
    assert [type(part) for part in ours.modules()] == kinds
    assert torch.isfinite(ours(IMAGES)).all()
    ours.train()(IMAGES).sum().backward()


def test_row_271_digits_without_fine_tuning_are_read_better_than_after_l1_pruning(monkeypatch):
    """Mean over seeds 0 and 1, a hundred steps; seeds 0 to 4 stand in the study."""
    from support import ROOT

    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_intra_fusion import ARMS, SPARSITIES, outcomes

    dropped, fused, *_ = ARMS
    each = [outcomes(seed, 100) for seed in (0, 1)]

    for sparsity in SPARSITIES[:2]:
        assert sum(it[fused, sparsity] for it in each) >= sum(it[dropped, sparsity] for it in each)


def doubled(network):
    """Every hidden channel twice, what reads it halved."""
    wide = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 5, 3)).eval()
    state = network.state_dict()
    for name, it in state.items():
        if name.startswith(("0.", "1.")) and it.ndim:
            state[name] = torch.cat([it, it])
        elif name == "3.weight":
            state[name] = torch.cat([it, it], dim=1) / 2
    wide.load_state_dict(state)
    return wide


def test_means_of_copies_are_the_network_without_them_and_sums_are_not():
    torch.manual_seed(0)
    small = trained(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3)))
    expected = small(IMAGES)
    # Of equal channels, those that stay must not be both copies of one: k-means finds each once.
    settings = {"importance": "l1", "fusing": "mean", "target": "cluster_centroid"}
    found = intra_fusion(doubled(small), IMAGES, 0.5, **settings)
    summed = intra_fusion(doubled(small), IMAGES, 0.5, **settings | {"fusing": "sum"})

    assert found[0].out_channels == 6
    assert torch.allclose(found(IMAGES), expected, atol=1e-4)
    assert not torch.allclose(summed(IMAGES), expected, atol=1e-1)


def test_a_linear_layer_is_fused_as_a_loop_by_hand_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double().requires_grad_(False)
    made, bias, read = model[0].weight.clone(), model[0].bias.clone(), model[2].weight.clone()
    values = made.abs().sum(dim=1) + read.abs().sum(dim=0)
    kept = sorted(values.argsort(descending=True)[:3].tolist())
    rows = torch.cat([made, bias[:, None], read.T], dim=1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    cost = (rows[:, None] - rows[kept]).abs().sum(dim=2)
    plan = torch.from_numpy(ot.emd([1 / 6] * 6, [1 / 3] * 3, cost.numpy()))
    given = plan / plan.sum(dim=1, keepdim=True)
    intra_fusion(model, torch.randn(2, 1, 3, 4, dtype=torch.float64), 0.5)

    assert torch.allclose(model[0].weight, given.T @ made, atol=1e-9)
    assert torch.allclose(model[0].bias, given.T @ bias, atol=1e-9)
    assert torch.allclose(model[2].weight, read @ given, atol=1e-9)


@pytest.mark.parametrize("kind", [plain, residual])
def test_folded_norms_change_no_output_and_are_taken_out_again(kind):
    model = seeded(kind)
    before = {name: it.clone() for name, it in model.state_dict().items()}
    expected = model(IMAGES)
    groups = channel_groups(model, IMAGES)
    with folded_norms(model, IMAGES, groups):
        folded = model(IMAGES)
        scales = [part.weight for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        assert all(bool((it == 1).all()) for it in scales)

    assert torch.allclose(folded, expected, atol=1e-5)
    assert distance(before, model.state_dict()) < 1e-5
    assert torch.is_grad_enabled()


class PreActivated(nn.Module):
    """The first convolution is read by a norm and by a shortcut past it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, image):
        found = self.first(image)
        return self.last(found + self.second(self.norm(found).relu()))


def test_a_norm_beside_which_a_shortcut_reads_the_layer_is_not_folded():
    torch.manual_seed(0)
    model = trained(PreActivated())
    before = {name: it.clone() for name, it in model.state_dict().items()}
    with folded_norms(model, IMAGES, channel_groups(model, IMAGES)):
        assert distance(before, model.state_dict()) == 0.0
    assert intra_fusion(model, IMAGES, 0.5)(IMAGES).shape == (4, 5, 14, 14)


def test_a_norm_of_scale_zero_is_fused_too():
    torch.manual_seed(0)
    model = seeded(plain)
    with torch.no_grad():
        model[1].weight[:] = 0
    expected = model(IMAGES)

    assert torch.allclose(intra_fusion(copy.deepcopy(model), IMAGES, 0.0)(IMAGES), expected)
    assert torch.isfinite(intra_fusion(model, IMAGES, 0.5)(IMAGES)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"importance": "l2", "p": 2.0},
        {"source_marginal": "importance", "target_marginal": "importance"},
        {"source_marginal": "radical", "fusing": "mean"},
        {"target": "cluster_centroid"},
        {"importance": "taylor"},
    ],
)
def test_settings_tell(settings):
    base = seeded(plain)
    F.cross_entropy(base(IMAGES), torch.arange(4)).backward()
    found = [copy.deepcopy(base), copy.deepcopy(base)]
    for to, graded in zip(found[1].parameters(), base.parameters(), strict=True):
        to.grad = graded.grad
    stream = torch.get_rng_state()
    left = intra_fusion(found[0], IMAGES, 0.5)(IMAGES)
    right = intra_fusion(found[1], IMAGES, 0.5, **settings)(IMAGES)

    assert not torch.allclose(left, right)
    assert torch.equal(torch.get_rng_state(), stream)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(768, 10)

    def forward(self, image):
        return self.layer(image.flatten(1)).argmax(dim=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"^intra_fusion: sparsity is 1\.0; give a fraction from 0 to less than 1\.$"),
        ({"sparsity": -0.1}, r"^intra_fusion: sparsity is -0\.1; give a fraction from 0 to less than 1\.$"),
        ({"p": 0.5}, r"^intra_fusion: p is 0\.5; give 1 or more\.$"),
        ({"importance": "l3"}, r"^intra_fusion: importance is 'l3'; give one of l1, l2, taylor\.$"),
        (
            {"target_marginal": "radical"},
            r"^intra_fusion: target_marginal is 'radical'; give one of uniform, importance\.$",
        ),
        (
            {"importance": "taylor"},
            r"^intra_fusion: the parameters have no gradients; call backward on a loss before\.$",
        ),
        ({"ignore": ["head"]}, r"^ignore='head' matches no layer of Sequential"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        intra_fusion(plain(), IMAGES, **{"sparsity": 0.5} | settings)


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"^the channels of Untraceable cannot be traced"):
        intra_fusion(Untraceable(), IMAGES, 0.5)
    with pytest.raises(ValueError, match=r"^intra_fusion: images are of shape \(3, 16\); give \(B, C, H, W\)\.$"):
        intra_fusion(plain(), IMAGES[0, :, 0], 0.5)
    with pytest.raises(ValueError, match=r"^transport_plan: marginals of 2 and 2 entries with sums 2 and 1 do not fit"):
        transport_plan(torch.zeros(2, 2), torch.ones(2), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"^transport_plan: the cost has entries that are not finite; give finite"):
        transport_plan(torch.full((1, 1), torch.nan), torch.ones(1), torch.ones(1))
