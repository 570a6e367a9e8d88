"""Channels leave by importance and cost, stay gone, and are cut out after the fit; the parent teaches what is left.

Conformance (resume under all conditions, ranks, pairs) is proved in `conformance/`, cutting in `test_shrink`, the
knapsack in `test_knapsack`.
"""

import itertools
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
import torch_pruning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lightning_vision.backbones  # noqa: F401  (registers the networks)
from lightning_vision.callbacks import EMA, StructuredPruning, kd_loss
from lightning_vision.callbacks.pruning._channels import Cut
from lightning_vision.callbacks.pruning._choice import channel_importance, channels_to_cut
from lightning_vision.callbacks.pruning._costs import flop_costs, latency_costs, latency_table
from lightning_vision.callbacks.pruning._groups import channel_groups
from lightning_vision.callbacks.pruning.inner_distillation import inner_distillation_loss
from lightning_vision.callbacks.pruning.shrink import shrink
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer

IMAGES = labelled_images(60).tensors[0]


class Residual(Plain):
    """The project's small residual network on one channel."""

    def __init__(self):
        super().__init__()
        self.network = timm.create_model("resnet8_cifar", num_classes=10, in_chans=1)


def loader():
    return ResumableLoader(labelled_images(60), 6)


def trained(callback, *others, kind=Plain, **options):
    torch.manual_seed(3)
    module = kind()
    trainer = quiet_trainer(callbacks=[callback, *others], **{"max_epochs": 1} | options)
    trainer.fit(module, loader())
    return module, trainer


def flops(model, images):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def with_gradients(name, images):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, in_chans=images.shape[1])
    F.cross_entropy(network(images), torch.arange(len(images))).backward()
    return network.eval()


def importance_in(network, groups):
    weights = dict(network.named_parameters())
    return [channel_importance(it, weights, {name: w.grad for name, w in weights.items()}) for it in groups]


def test_row_167_taylor_importance_of_a_zero_weight_channel_is_zero():
    torch.manual_seed(0)
    module, images = Residual().train(), IMAGES[:8]
    groups = channel_groups(module, images)
    unit = module.network.stages[0][0]
    with torch.no_grad():
        for tensor in (unit.conv1.weight, unit.bn1.weight, unit.bn1.bias):
            tensor[5] = 0
        unit.conv2.weight[:, 7] = 0
    F.cross_entropy(module(images), torch.arange(8)).backward()
    found = importance_in(module, groups)[0]

    assert found[5] == found[7] == 0
    assert (found[[0, 1, 2, 3, 4, 6]] > 0).all()


def test_importance_is_how_the_loss_changes_where_a_channel_fades():
    """It is the derivative of the loss by a factor on the channel where it is read, behind batch norm too."""
    torch.manual_seed(0)
    module, images, target = Residual().double().train(), IMAGES[:8].double(), torch.arange(8)
    groups = channel_groups(module, images)
    F.cross_entropy(module(images), target).backward()
    found = importance_in(module, groups)[1]
    gate = torch.ones(1, 32, 1, 1, dtype=torch.float64, requires_grad=True)
    module.network.stages[1][0].act1.register_forward_hook(lambda part, inputs, output: output * gate)
    F.cross_entropy(module(images), target).backward()

    assert torch.allclose(found, gate.grad.flatten().abs(), rtol=1e-9)
    # The rows that make a channel say nothing: batch norm undoes their scale.
    weight = module.network.stages[1][0].conv1.weight
    assert float((weight.grad * weight).sum(dim=(1, 2, 3)).abs().max()) < 1e-4 * float(found.max())


@pytest.mark.parametrize(
    ("name", "side", "budget"),
    [("resnet20_cifar", 16, 0.5), ("resnet18", 32, 0.3), ("mobilenetv3_small_050", 64, 0.5)],
)
def test_row_167_the_network_that_is_really_cut_meets_the_budget(name, side, budget):
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    network = with_gradients(name, images)
    groups = channel_groups(network, images)
    whole = flops(network, images)
    gone = channels_to_cut(groups, importance_in(network, groups), flop_costs(network, groups, images), budget)
    Cut(network, gone)

    assert budget - 0.01 < flops(network, images) / whole <= budget


def test_at_equal_flops_it_keeps_more_importance_than_torch_prunings_own_pruner():
    """Theirs ranks channels of all layers by importance and does not look at what they cost."""
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = with_gradients("resnet20_cifar", images)
    groups = channel_groups(network, images)
    importance = {group.name: it for group, it in zip(groups, importance_in(network, groups), strict=True)}
    gone = channels_to_cut(groups, list(importance.values()), flop_costs(network, groups, images), 0.5)
    ours = sum(float(importance[it.name].sum() - importance[it.name][gone[it]].sum()) for it in groups)
    names, whole = {part: name for name, part in network.named_modules()}, flops(network, images)
    pruner = torch_pruning.pruner.BasePruner(
        network,
        images,
        lambda group: importance[names[group[0].dep.target.module]][group[0].idxs].float(),
        global_pruning=True,
        pruning_ratio=0.9,
        iterative_steps=60,
        ignored_layers=[
            it for it, name in names.items() if isinstance(it, (nn.Conv2d, nn.Linear)) and name not in importance
        ],
    )
    left = {name: it.clone() for name, it in importance.items()}
    for _ in range(60):
        if flops(network, images) <= 0.5 * whole:
            break
        for group in pruner.step(interactive=True):
            name, channels = names[group[0].dep.target.module], group[0].idxs
            stays = [channel for channel in range(len(importance[name])) if channel not in channels]
            importance[name] = left[name] = importance[name][stays]
            group.prune()
    theirs = sum(float(it.sum()) for it in left.values())

    assert 0.4 < flops(network, images) / whole <= 0.5
    assert ours > theirs > 0


def test_the_choice_equals_the_best_of_all_on_a_chain_of_products():
    """3 and 4 channels between three layers: all 12 widths are tried, each with its most important channels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    images = torch.randn(2, 1, 12, 12)
    groups = channel_groups(network, images)
    costs = flop_costs(network, groups, images)
    hits = 0
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        importance = [torch.rand(it.size, generator=random, dtype=torch.float64) for it in groups]
        gone = channels_to_cut(groups, importance, costs, 0.5)
        kept = sum(float(it.sum() - it[gone[group]].sum()) for group, it in zip(groups, importance, strict=True))
        best = max(
            sum(
                float(it.sort(descending=True).values[:width].sum())
                for it, width in zip(importance, widths, strict=True)
            )
            for widths in itertools.product(range(1, 4), range(1, 5))
            if costs.total(torch.tensor(widths, dtype=torch.float64).numpy()) <= 0.5 * costs.total(costs.sizes)
        )
        hits += kept == pytest.approx(best)

        assert kept <= best + 1e-9
        assert kept >= 0.8 * best
    assert hits >= 15


def test_latency_is_interpolated_and_a_function_of_its_table():
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    images = torch.randn(2, 1, 12, 12)
    groups = channel_groups(network, images)
    table = latency_table(network, groups, images)
    by_hand = {"0": [[1.0], [0.5, 2.0], [1.0, 4.0]], "2": [[0.5, 1.0], [1.0, 1.0, 3.0]]}
    costs = latency_costs(network, groups, by_hand)

    assert list(table) == ["0", "2"]
    assert [len(rows) for rows in table.values()] == [6, 2]
    assert min(seconds for rows in table.values() for row in rows[1:] for seconds in row[1:]) > 0
    assert costs.total(torch.tensor([8.0]).double().numpy()) == 7.0
    assert costs.total(torch.tensor([6.0]).double().numpy()) == 5.0
    assert costs.marginal(torch.tensor([6.0]).double().numpy()).tolist() == [1.0]


def test_row_167_identical_parent_and_child_have_no_inner_distillation_loss():
    torch.manual_seed(0)
    maps = [torch.randn(4, 3, 5, 5), torch.randn(4, 7)]

    assert float(inner_distillation_loss(maps, maps)) == 0.0
    assert float(kd_loss(maps[1], maps[1])) == 0.0
    assert float(inner_distillation_loss(maps, [it + 1 for it in maps])) == pytest.approx(1.0)
    assert float(inner_distillation_loss(maps[:1], [maps[0] + 2], [lambda own: own + 1])) == pytest.approx(1.0)


def test_a_lost_channel_is_not_compared_and_the_rest_is_averaged():
    child = torch.ones(2, 4, 3, 3)
    child[:, 1] = 0

    assert float(inner_distillation_loss([child], [torch.full((2, 4, 3, 3), 3.0)])) == pytest.approx(4.0)


def test_soft_answers_are_compared_as_the_formula_says():
    random = torch.Generator().manual_seed(0)
    child, parent = torch.randn(5, 10, generator=random), torch.randn(5, 10, generator=random)
    p, q = (parent / 3).softmax(dim=1), (child / 3).softmax(dim=1)
    expected = 9 * (p * (p.log() - q.log())).sum(dim=1).mean()

    assert float(kd_loss(child, parent, 3.0)) == pytest.approx(float(expected), rel=1e-5)


class Watch(Callback):
    """Weights and terms after each batch."""

    def __init__(self):
        self.terms, self.widths = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.terms.append({name: float(value) for name, value in trainer.callback_metrics.items() if "distil" in name})
        self.widths.append(tuple(pl_module.network[0].weight.shape))


def test_the_parent_teaches_from_the_cut_on_and_the_fit_ends_with_a_narrower_network():
    watch = Watch()
    callback = StructuredPruning(importance_batches=3, inner_weight=1.0, logits_weight=1.0)
    module, trainer = trained(callback, watch)
    dense = Plain().network
    small = [module.network[0].out_channels, module.network[1].num_features, module.network[5].in_features]

    assert [sum(it.values()) > 0 for it in watch.terms] == [False] * 3 + [True] * 7
    assert set(watch.widths) == {(4, 1, 3, 3)}
    assert small == [2, 2, 18]
    assert flops(module.network.eval(), IMAGES[:1]) <= 0.5 * flops(dense, IMAGES[:1])
    assert [type(it) for it in module.network] == [type(it) for it in dense]
    assert len(trainer.predict(module, loader())) == 10


def test_files_are_whole_and_masked_and_shrink_to_the_network_that_the_fit_left(tmp_path):
    writer = ModelCheckpoint(tmp_path, save_last=True)
    module, trainer = trained(
        StructuredPruning(importance_batches=3), writer, enable_checkpointing=True, default_root_dir=tmp_path
    )
    again = Plain()
    again.load_state_dict(torch.load(writer.last_model_path, weights_only=True)["state_dict"])
    zeros = (again.network[5].weight == 0).float().mean()
    scored = trainer.predict(module, loader())
    from_file = trainer.predict(module, loader(), ckpt_path=writer.last_model_path)

    assert float(zeros) == 0.5
    assert distance(shrink(again.eval(), IMAGES[:2]).state_dict(), module.state_dict()) == 0.0
    assert max(float((a - b).abs().max()) for a, b in zip(scored, from_file, strict=True)) < 1e-6
    assert module.network[0].out_channels == 2


def test_a_second_fit_goes_on_at_full_width_and_is_cut_again():
    module, trainer = trained(StructuredPruning(importance_batches=3), max_epochs=1)
    before = module.network[0].weight.clone()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())

    assert trainer.global_step == 20
    assert module.network[0].weight.shape == before.shape
    assert not torch.equal(module.network[0].weight, before)


def test_a_network_that_another_callback_cut_again_is_refused_in_a_sentence():
    first = StructuredPruning(importance_batches=3)
    module, _ = trained(first)
    quiet_trainer(callbacks=[StructuredPruning(importance_batches=3)], max_epochs=1).fit(module, loader())

    with pytest.raises(ValueError, match="was cut again since it was first cut"):
        quiet_trainer(callbacks=[first], max_epochs=1).fit(module, loader())


def test_a_run_that_goes_on_with_another_budget_is_told_that_the_cut_stays(tmp_path):
    writer = ModelCheckpoint(tmp_path, filename="cut", every_n_train_steps=5, save_top_k=1)
    trained(StructuredPruning(importance_batches=3), writer, enable_checkpointing=True, max_steps=5)
    trainer = quiet_trainer(callbacks=[StructuredPruning(0.3, importance_batches=3)], max_epochs=1)

    with pytest.warns(UserWarning, match="channels were cut for budget=0.5 and stay so, whatever budget=0.3 asks for"):
        trainer.fit(module := Plain(), loader(), ckpt_path=tmp_path / "cut.ckpt")

    assert module.network[0].out_channels == 2


def test_the_average_of_a_cut_network_is_cut_too():
    ema = EMA(half_life=3)
    module, _ = trained(StructuredPruning(importance_batches=3), ema)
    small = ema.average["network.0.weight"]
    left = small[small.flatten(1).any(dim=1)]

    assert torch.equal(module.network[0].weight, left)
    assert len(left) == 2


def test_an_exception_leaves_the_network_at_its_full_width():
    class Fails(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 6:
                raise ZeroDivisionError

    torch.manual_seed(3)
    module = Plain()
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(callbacks=[StructuredPruning(importance_batches=3), Fails()], max_epochs=1).fit(module, loader())

    assert module.network[0].out_channels == 4
    assert float((module.network[5].weight == 0).float().mean()) == 0.5


def test_the_least_important_channels_go_and_others_would_be_noticed():
    """Four channels of one cost: the two that a hand-written loop finds least important are masked."""
    watch = []

    class Masked(Callback):
        def on_train_end(self, trainer, pl_module):
            watch.append((pl_module.network[0].weight.flatten(1) == 0).all(dim=1))

    torch.manual_seed(3)
    hand = Plain(dropout=0.0)
    torch.manual_seed(3)
    module = Plain(dropout=0.0)
    quiet_trainer(callbacks=[StructuredPruning(importance_batches=3), Masked()], max_epochs=1).fit(module, loader())
    optimizer, batches = hand.configure_optimizers()["optimizer"], loader()
    batches.sampler.set_epoch(0)
    total = torch.zeros(4)
    for image, target in itertools.islice(batches, 3):
        optimizer.zero_grad()
        F.cross_entropy(hand(image), target).backward()
        head = hand.network[5].weight
        total += (head * head.grad).view(10, 4, 9).sum(dim=(0, 2)).abs().detach()
        optimizer.step()

    assert watch[0].nonzero().flatten().tolist() == sorted(total.argsort()[:2].tolist())


def test_bad_settings_are_refused_in_a_sentence(monkeypatch):
    for settings, message in [
        ({"budget": 0}, r"^StructuredPruning: budget is 0; give the fraction of the cost that stays, in \(0, 1\]\.$"),
        ({"cost": "energy"}, r"^StructuredPruning: cost is 'energy'; give 'flops' or 'latency'\.$"),
        ({"solver": "best"}, r"^StructuredPruning: solver is 'best'; give 'dp' or 'greedy'\.$"),
        ({"importance_batches": 0}, r"^StructuredPruning: importance_batches is 0; give a whole number of at least 1"),
        ({"floor": 2}, r"^StructuredPruning: floor is 2; give a number from 0 to 1\.$"),
        ({"inner_weight": -1}, r"^StructuredPruning: inner_weight is -1; give a finite number of at least 0"),
        ({"inner_layers": 3}, r"^StructuredPruning: inner_layers is 3; give a pattern"),
    ]:
        with pytest.raises(ValueError, match=message):
            StructuredPruning(**settings)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r"^cutting channels of StructuredPruning needs torch-pruning; pip"):
        StructuredPruning()


def test_what_cannot_be_done_is_refused_before_the_first_step():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for settings, change, message in [
        ({"budget": 0.05}, None, r"^StructuredPruning: a budget of 0.05 cannot be met: .* 0\.250 of the whole is left"),
        ({"include": ["layer9"]}, None, r"^StructuredPruning: include has 'layer9', which matches no Linear or conv"),
        (
            {"inner_layers": "neck", "inner_weight": 1.0},
            None,
            r"^StructuredPruning: inner_layers 'neck' matches none of",
        ),
        ({}, linear, r"^StructuredPruning: no channels of Plain can be cut in the layers that include and exclude"),
    ]:
        torch.manual_seed(0)
        module = Plain()
        module.network = change or module.network
        trainer = quiet_trainer(callbacks=[StructuredPruning(**settings)], max_epochs=1)
        with pytest.raises(ValueError, match=message):
            trainer.fit(module, loader())

        assert trainer.global_step == 0
