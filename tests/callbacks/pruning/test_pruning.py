"""Pruning equals torch's, bit for bit, and a loop written by hand; what is pruned stays pruned beside everything else.

Conformance (resume under all conditions, neutral run, pairs) is proved in `conformance/`, the seam that holds masks in
`hooks/test_masks.py`, each criterion in its own test.
"""

import csv
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.utils import prune
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from lightning_vision.callbacks import EMA, SAM, ExactResume, Pruning
from lightning_vision.callbacks.hooks.sparsity import chosen_weights
from lightning_vision.callbacks.pruning.gradual import cubic_sparsity
from lightning_vision.callbacks.pruning.n_of_m import keep_n_of_m
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

LAYERS = ("network.0.weight", "network.5.weight")  # 36 and 360 weights


class Adam(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class Nesterov(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)


class Wide(Plain):
    """Three layers of 72, 2,304 and 5,120 weights; the last ones begin far smaller than the first."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
        with torch.no_grad():
            self.network[5].weight.mul_(0.01)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Reports go to the working folder where there is no logger."""
    monkeypatch.chdir(tmp_path)


def loader():
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return ResumableLoader(labelled_images(60), 6, *ranks)


def run(*callbacks, kind=Plain, **options):
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    return record(module, loader, callbacks, **{"max_epochs": 2} | options)


def fitted(*callbacks, kind=Plain, **options):
    torch.manual_seed(0)
    module = kind()
    quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 1} | options).fit(module, loader())
    return module


def zeros(state):
    """Exact zeros of each layer's weight and their sum."""
    counts = [int((value == 0).sum()) for name, value in state.items() if name.endswith("weight") and value.ndim > 1]
    return [*counts, sum(counts)]


class Watch(Callback):
    """Zeros after each batch and in each validation."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(zeros(pl_module.state_dict())[-1])

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validated.append(zeros(pl_module.state_dict())[-1])


def torchs_masks(module, amount, layers=("0", "5")):
    """What `global_unstructured` makes of the layers of `module.network`, which stay as they are."""
    network = torch.nn.Sequential(*module.network)
    parameters = [(network[int(it)], "weight") for it in layers]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=amount)
    masks = {f"network.{it}.weight": network[int(it)].weight_mask.bool() for it in layers}
    for layer, name in parameters:
        prune.remove(layer, name)
    return masks


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.99, 0.12345])
@pytest.mark.parametrize("values", ["drawn", "ties"])
def test_row_192_masks_are_those_of_torchs_global_unstructured(sparsity, values):
    def module():
        made = Plain()
        if values == "ties":
            with torch.no_grad():
                for name in LAYERS:
                    made.get_parameter(name).mul_(8).round_().div_(8)
        return made

    callback = Pruning(sparsity=sparsity)
    torch.manual_seed(0)
    pruned = module()
    quiet_trainer(callbacks=[callback], max_steps=1).fit(pruned, loader())
    torch.manual_seed(0)
    expected = torchs_masks(module(), sparsity)

    assert expected.keys() == callback.kept_masks.keys()
    assert all(torch.equal(expected[name], callback.kept_masks[name]) for name in LAYERS)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.777, 0.9, 0.99])
def test_row_192_the_count_of_zeros_is_exact(sparsity):
    result = run(Pruning(sparsity=sparsity), kind=Adam)

    assert round(sparsity * 396) == zeros(result.state["weights"])[-1]


@pytest.mark.filterwarnings("ignore:Pruning. nothing is left")
def test_row_192_a_floor_prevents_the_collapse_that_plain_pruning_suffers():
    """Of 7,496 weights 7 stay at 99.9%; without a floor the head, whose weights are small, loses all of them."""
    plain, floored = Pruning(sparsity=0.999), Pruning(sparsity=0.999, min_weights=2)
    sizes = (72, 2304, 5120)
    gone = zeros(fitted(plain, kind=Wide, max_steps=1).state_dict())
    kept = zeros(fitted(floored, kind=Wide, max_steps=1).state_dict())

    assert gone[2] == 5120
    assert all(size - count >= 2 for size, count in zip(sizes, kept[:3], strict=True))
    assert gone[3] == kept[3] == 7496 - 7


@pytest.mark.parametrize("kind", [Adam, Nesterov])
def test_row_192_pruned_weights_stay_zero_after_steps_and_through_checkpoints(kind, tmp_path):
    watch = Watch()
    whole = ModelCheckpoint(tmp_path, filename="whole", every_n_epochs=1)
    light = ModelCheckpoint(tmp_path, filename="light", every_n_train_steps=7, save_weights_only=True)
    run(Pruning(), watch, whole, light, kind=kind)
    again = fitted(Pruning(), kind=kind, max_epochs=1)
    quiet_trainer(callbacks=[Pruning()], max_epochs=3).fit(again, loader(), ckpt_path=tmp_path / "whole.ckpt")

    assert watch.trained == [356] * 20
    for name in ("whole", "light"):
        weights = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert weights.keys() == Plain().state_dict().keys()
        assert zeros(weights)[-1] == 356
    assert zeros(again.state_dict())[-1] == 356


def test_a_floor_takes_from_the_other_layers_in_the_order_of_magnitude():
    """Each layer keeps its 5 largest, the rest of the 40 are the largest of all others."""
    callback = Pruning(sparsity=0.9, min_weights=20)
    torch.manual_seed(0)
    module = Plain()
    before = {name: module.get_parameter(name).detach().abs().clone() for name in LAYERS}
    quiet_trainer(callbacks=[callback], max_steps=1).fit(module, loader())
    reserved = {}
    for name, value in before.items():
        reserved[name] = torch.zeros(value.numel(), dtype=torch.bool)
        reserved[name][value.flatten().topk(20).indices] = True
    flat = torch.cat([value.flatten() for value in before.values()])
    order = flat.masked_fill(torch.cat(list(reserved.values())), torch.inf).topk(40).indices
    expected = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True)

    assert torch.equal(expected, torch.cat([callback.kept_masks[name].flatten() for name in LAYERS]))


def by_hand(kind, sparsity, begin, end, every, mutant=""):
    """The run of `run`, pruned along the cubic schedule by torch's own choice of weights."""
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    scheduler = configured["lr_scheduler"]["scheduler"] if isinstance(configured, dict) else None
    weights = [module.get_parameter(name) for name in LAYERS]
    masks = [torch.ones_like(it) for it in weights]
    data, step = loader(), 0
    points = [*range(begin + every, end, every), end]
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            F.cross_entropy(module(image), target).backward()
            for weight, mask in zip(weights, masks, strict=True):
                weight.grad *= mask
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            step += 1
            with torch.no_grad():
                if step - (mutant == "late") in points:
                    power = 1 if mutant == "linear" else 3
                    share = sparsity * (1 - (1 - (step - begin) / (end - begin)) ** power)
                    flat = torch.cat([(it * mask).flatten() for it, mask in zip(weights, masks, strict=True)])
                    # Those that are gone go first.
                    flat[torch.cat([mask.flatten() for mask in masks]) == 0] = -1
                    size = flat.abs() if mutant == "revives" else flat.abs() * flat.ne(-1) - flat.eq(-1).float()
                    keep = torch.ones_like(flat)
                    keep[size.topk(round(share * len(flat)), largest=False).indices] = 0
                    masks = [it.view(w.shape) for it, w in zip(keep.split([36, 360]), weights, strict=True)]
                    for weight, mask in zip(weights, masks, strict=True):
                        for value in optimizer.state[weight].values():
                            if torch.is_tensor(value) and value.shape == weight.shape:
                                value *= mask
                for weight, mask in zip(weights, masks, strict=True):
                    weight *= mask
    return torch.cat([value.flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize("kind", [Plain, Adam, Nesterov])
def test_a_gradual_run_equals_a_loop_written_by_hand(kind):
    ours = run(Pruning(sparsity=0.8, begin_step=2, end_step=15, every_n_steps=4), kind=kind).state["weights"]

    assert torch.equal(by_hand(kind, 0.8, 2, 15, 4), torch.cat([value.flatten() for value in ours.values()]))


@pytest.mark.parametrize("mutant", ["linear", "late", "revives"])
def test_a_wrong_loop_is_noticed(mutant):
    ours = run(Pruning(sparsity=0.8, begin_step=2, end_step=15, every_n_steps=4)).state["weights"]
    wrong = by_hand(Plain, 0.8, 2, 15, 4, mutant)

    assert (wrong - torch.cat([value.flatten() for value in ours.values()])).abs().max() > 1e-3


def test_the_schedule_prunes_at_its_steps_and_ends_exactly():
    """After steps 6, 10, 14 and 15: round(396 s) by the cubic; validations see what was pruned, not one epoch later."""
    watch = Watch()
    torch.manual_seed(0)
    trainer = quiet_trainer(
        callbacks=[Pruning(sparsity=0.8, begin_step=2, end_step=15, every_n_steps=4), watch], max_epochs=2
    )
    trainer.fit(Plain(), loader(), loader())
    at = [round(396 * 0.8 * (1 - (1 - done / 13) ** 3)) for done in (4, 8, 12)]

    assert [0] * 5 + [at[0]] * 4 + [at[1]] * 4 + [at[2]] + [317] * 6 == watch.trained
    assert [0, at[1], 317] == watch.validated  # the first is the sanity check
    assert cubic_sparsity(0, 0.9, 10, 20) == 0.0
    assert cubic_sparsity(20, 0.9, 10, 20) == cubic_sparsity(99, 0.9, 10, 20) == 0.9


def test_steps_are_counted_not_micro_batches():
    watch = Watch()
    run(Pruning(begin_step=2), watch, accumulate_grad_batches=3, max_epochs=1)

    assert watch.trained == [0] * 5 + [356] * 5


@pytest.mark.parametrize("saving", [{"every_n_train_steps": 4}, {"every_n_epochs": 1}], ids=["inside", "epoch's end"])
def test_a_resumed_run_equals_the_straight_one(tmp_path, saving):
    def go(name, **how):
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, **saving)
        pruning = Pruning(criterion="random", sparsity=0.8, end_step=18, every_n_steps=3)
        return run(pruning, EMA(decay=0.5), ExactResume(), writer, kind=Adam, **how)

    straight, killed = go("straight"), go("killed", kill_at=12)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed) == []
    assert zeros(straight.state["weights"])[-1] == 317


def test_a_file_of_a_run_without_it_is_pruned_when_training_goes_on(tmp_path):
    run(ModelCheckpoint(tmp_path, filename="dense", every_n_train_steps=4, save_top_k=1), ExactResume(), max_steps=4)
    watch = Watch()
    run(Pruning(), watch, ExactResume(), ckpt_path=tmp_path / "dense.ckpt", max_epochs=1)

    assert watch.trained == [356] * 6


def resumed(tmp_path, before, after):
    """Zeros and masks at the end of a run of six steps that goes on with other settings for four."""
    writer = ModelCheckpoint(tmp_path, filename="before", every_n_train_steps=6, save_top_k=1)
    run(Pruning(**before), writer, ExactResume(), max_steps=6)
    pruning = Pruning(**after)
    end = run(pruning, ExactResume(), ckpt_path=tmp_path / "before.ckpt", max_steps=10)
    return zeros(end.state["weights"]), pruning


def test_a_run_that_goes_on_with_a_higher_sparsity_has_it(tmp_path):
    masked, pruning = resumed(tmp_path, {"sparsity": 0.5}, {"sparsity": 0.9})

    assert 356 == masked[-1] == round(396 * pruning.sparsity_now)


def test_a_run_that_goes_on_with_a_schedule_that_is_past_has_its_end(tmp_path):
    before, after = {"sparsity": 0.5, "end_step": 4, "every_n_steps": 1}, {"sparsity": 0.9, "end_step": 5}

    assert resumed(tmp_path, before, after)[0][-1] == 356


def test_a_run_that_goes_on_with_other_layers_prunes_those_and_keeps_what_went(tmp_path):
    (first, head, _), _ = resumed(
        tmp_path, {"sparsity": 0.5, "include": ["*.0"]}, {"sparsity": 0.5, "include": ["*.5"]}
    )

    assert (first, head) == (18, 180)


def test_a_run_that_goes_on_with_a_pattern_revives_nothing(tmp_path):
    before = {"sparsity": 0.5, "include": ["*.5"]}
    (_, head, _), pruning = resumed(tmp_path, before, {"pattern": "2:4", "include": ["*.5"]})
    mask = pruning.kept_masks["network.5.weight"]

    assert head > 180
    assert int(mask.unflatten(1, (-1, 4)).sum(dim=2).max()) <= 2


def test_a_run_that_goes_on_with_a_lower_sparsity_is_told_that_nothing_comes_back(tmp_path):
    with pytest.warns(UserWarning, match="the checkpoint was pruned to a sparsity of 0.9, above sparsity=0.5"):
        masked, _ = resumed(tmp_path, {"sparsity": 0.9}, {"sparsity": 0.5})

    assert masked[-1] == 356


def test_nothing_revives_beside_averages_and_sharpness():
    """The average, which is scored and saved, and each of SAM's perturbed networks are as sparse as the weights."""
    perturbed = []

    class Looks(Plain):
        def training_step(self, batch, batch_idx):
            perturbed.append(zeros(self.state_dict())[-1])
            return super().training_step(batch, batch_idx)

    ema = EMA(decay=0.9)
    module = fitted(Pruning(), ema, SAM(rho=0.5), kind=Looks)

    assert perturbed == [356] * 20
    assert zeros(ema.average)[-1] == zeros(module.state_dict())[-1] == 356


def test_clipping_measures_the_gradient_of_what_is_left():
    norms, heard = [], []

    class Heard(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            squares = [pl_module.get_parameter(name).grad.square() for name in LAYERS]
            heard.append(sum(float(it.sum()) for it in squares))
            masks = trainer.callbacks[0].kept_masks
            norms.append(sum(float((it * masks[name]).sum()) for it, name in zip(squares, LAYERS, strict=True)))

    run(Pruning(), Heard(), max_epochs=1, gradient_clip_val=0.1, accumulate_grad_batches=2)

    assert norms == heard


def test_two_ranks_hold_the_same_masks(two_ranks):
    def masked():
        masks = []
        for settings in ({}, {"criterion": "random", "end_step": 4, "every_n_steps": 2}):
            callback = Pruning(**settings)
            result = run(callback, kind=Adam, strategy="ddp", devices=2, use_distributed_sampler=False, max_epochs=1)
            masks.append(torch.cat([it.flatten() for it in callback.kept_masks.values()]))
            masks.append(torch.cat([result.state["weights"][name].flatten() for name in LAYERS]))
        return masks

    first, second = two_ranks(masked)

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    assert [int((it == 0).sum()) for it in first] == [356] * 4


def test_each_layer_loses_the_same_share_if_asked_by_layer():
    module = fitted(Pruning(sparsity=0.75, scope="layer"))
    expected = [prune.l1_unstructured(nn.Linear(n, 1), "weight", 0.75).weight_mask.eq(0).sum() for n in (36, 360)]

    assert [*map(int, expected), 297] == zeros(module.state_dict())


def test_random_pruning_draws_from_its_seed():
    def masks(seed):
        callback = Pruning(criterion="random", sparsity=0.5, seed=seed)
        fitted(callback, max_steps=1)
        return torch.cat([it.flatten() for it in callback.kept_masks.values()])

    first, other = masks(0), masks(1)

    assert torch.equal(first, masks(0))
    assert 0.3 < float((first != other).float().mean()) < 0.7


class Patterned(Plain):
    """Kernels of 4 and 8 input channels, of 1, and a head of 32 inputs."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
        )


def test_a_pattern_of_two_in_four_is_right_by_hand():
    torch.manual_seed(0)
    module = Patterned()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    callback = Pruning(pattern="2:4")
    quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, loader())
    masks = callback.kept_masks
    kernels, head = (f"network.{layer}.weight" for layer in (1, 4))
    places = [(kernels, (out, slice(None), row, column)) for out in range(8) for row in range(3) for column in range(3)]
    places += [(head, (out, slice(start, start + 4))) for out in range(10) for start in range(0, 32, 4)]

    assert list(masks) == ["network.1.weight", "network.4.weight"]
    for name, place in places:
        values, kept = before[name][place], masks[name][place]
        assert sorted(values[kept].abs().tolist()) == sorted(values.abs().tolist())[2:]
    assert zeros(module.state_dict()) == [0, 144, 160, 304]


def test_torchs_compressed_format_of_two_in_four_loses_nothing():
    """It keeps two values of four and where they stood; what has a third is not given back."""
    weights = {"dense": torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).half()}
    weights["pruned"] = weights["dense"] * keep_n_of_m(weights["dense"], 2, 4)
    there_and_back = {
        name: sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight))
        for name, weight in weights.items()
    }

    assert torch.equal(there_and_back["pruned"], weights["pruned"])
    assert not torch.equal(there_and_back["dense"], weights["dense"])


def test_patterns_choose_layers_by_name():
    module = Wide()

    assert list(chosen_weights("Pruning", module, None, ["*.2"])) == ["network.0.weight", "network.5.weight"]
    assert list(chosen_weights("Pruning", module, ["network.2.weight"])) == ["network.2.weight"]
    assert list(chosen_weights("Pruning", module, ["network.[25]"], ["*.5"])) == ["network.2.weight"]
    assert zeros(fitted(Pruning(include=["network.2"]), kind=Wide).state_dict()) == [0, 2074, 0, 2074]


def test_weights_that_layers_share_are_counted_once_and_others_are_left():
    class Shares(Plain):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
            self.network[2].weight = self.network[1].weight
            self.extra = nn.Parameter(torch.ones(3, 3))

        def forward(self, image):
            return self.network(image) + self.extra.sum()

    module = fitted(Pruning(sparsity=0.5), kind=Shares)

    assert int((module.network[1].weight == 0).sum() + (module.network[3].weight == 0).sum()) == (4096 + 640) // 2
    assert bool((module.extra != 0).all())


def test_the_table_says_what_is_left_of_each_layer(tmp_path, capsys):
    logger = CSVLogger(tmp_path)
    callback = Pruning(sparsity=0.5, end_step=8, every_n_steps=4)
    fitted(callback, logger=logger)
    folder = tmp_path / "lightning_logs" / "version_0"
    rows = list(csv.DictReader((folder / "report" / "pruning.csv").open()))
    kept = [int(callback.kept_masks[name].sum()) for name in LAYERS]
    # A kernel of 9 weights at 3 x 3 places of 4 maps, a head of 36 x 10: a product and a sum each.
    dense = [2 * 9 * 4 * 9, 2 * 360]
    left = [round(flops * count / size) for flops, count, size in zip(dense, kept, (36, 360), strict=True)]
    logged = [row for row in csv.DictReader((folder / "metrics.csv").open()) if row["pruning/sparsity"]]

    assert [row["layer"] for row in rows] == ["network.0", "network.5", "total"]
    assert [*map(str, kept), "198"] == [row["kept"] for row in rows]
    assert [*map(str, dense), str(sum(dense))] == [row["dense_flops"] for row in rows]
    assert [*map(str, left), str(sum(left))] == [row["effective_flops"] for row in rows]
    assert rows[2]["sparsity"] == "0.500000"
    assert [round(0.4375 * 396) / 396, 0.5] == pytest.approx([float(row["pruning/sparsity"]) for row in logged])
    assert "total" in capsys.readouterr().out


def test_a_fit_that_ends_before_the_schedule_is_warned_of():
    with pytest.warns(UserWarning, match="the fit ended after 10 optimizer steps, but masks change until step 50"):
        fitted(Pruning(begin_step=50))


def test_a_fit_that_will_end_before_the_schedule_is_warned_of_before_it_trains():
    class Idle(Plain):
        def on_train_batch_start(self, *_):
            return -1

    with pytest.warns(UserWarning, match="training ends after 10 optimizer steps, and masks change until step 50"):
        fitted(Pruning(begin_step=50), kind=Idle)


REFUSED = {
    "sparsity": ({"sparsity": 1.0}, "Pruning: sparsity is 1.0; give a share from 0 (dense) to below 1."),
    "negative": ({"sparsity": -0.1}, "Pruning: sparsity is -0.1; give a share from 0 (dense) to below 1."),
    "criterion": (
        {"criterion": "magnitud"},
        "Pruning: there is no criterion 'magnitud'; did you mean magnitude?",
    ),
    "no criterion": (
        {"criterion": ["x"]},
        "Pruning: there is no criterion ['x']; there are magnitude, random, synflow, movement, rate_distortion.",
    ),
    "scope": ({"scope": "block"}, "Pruning: scope is 'block'; give 'global' or 'layer'."),
    "begin": ({"begin_step": -1}, "Pruning: begin_step is -1; give a whole number of at least 0."),
    "end": (
        {"begin_step": 5, "end_step": 5},
        "Pruning: end_step is 5; give a whole number of at least 6.",
    ),
    "every": ({"every_n_steps": 0}, "Pruning: every_n_steps is 0; give a whole number of at least 1."),
    "floor": ({"min_weights": -1}, "Pruning: min_weights is -1; give a whole number of at least 0."),
    "share": ({"reactivation": 2}, "Pruning: reactivation is 2; give a number from 0 to 1."),
    "pattern": (
        {"pattern": "4:2"},
        "Pruning: pattern is '4:2'; give N:M with 0 < N < M, as '2:4', in quotation marks.",
    ),
    "pattern in YAML": (
        {"pattern": 124},
        "Pruning: pattern is 124; give N:M with 0 < N < M, as '2:4', in quotation marks.",
    ),
    "pattern and sparsity": (
        {"pattern": "2:4", "sparsity": 0.9, "min_weights": 4},
        "Pruning: pattern='2:4' says how much goes and when, which sparsity=0.9, min_weights=4 would change; give "
        "sparsity=0.5, min_weights=0.",
    ),
    "pattern and schedule": (
        {"pattern": "2:4", "end_step": 9},
        "Pruning: pattern='2:4' says how much goes and when, which end_step=9 would change; give end_step=None "
        "(null in YAML).",
    ),
    "list": (
        {"include": "layer4"},
        "Pruning: include is 'layer4'; give a list of shell patterns, as ['layer4.*'].",
    ),
    "a number": (
        {"include": 5},
        "Pruning: include is 5; give a list of shell patterns, as ['layer4.*'].",
    ),
    "observing": (
        {"criterion": "movement"},
        "Pruning: criterion='movement' looks at the gradients of earlier steps, and before step 0 there are none; give "
        "begin_step=, or end_step= for a schedule.",
    ),
}


@pytest.mark.parametrize(("settings", "sentence"), REFUSED.values(), ids=REFUSED)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        Pruning(**settings)

    assert sentence == str(refusal.value)


UNFIT = {
    "pattern": (
        {"include": ["network.3"]},
        "Pruning: include has 'network.3', which matches no Linear or convolutional layer of Plain; did you mean "
        "network.5 or network.0?",
    ),
    "nothing alike": (
        {"exclude": ["head*"]},
        "Pruning: exclude has 'head*', which matches no Linear or convolutional layer of Plain; they begin network.0, "
        "network.5.",
    ),
    "all": (
        {"exclude": ["*"]},
        "Pruning: include=None and exclude=['*'] leave no layer; widen one of them.",
    ),
    "floor": (
        {"sparsity": 0.99, "min_weights": 3},
        "Pruning: sparsity=0.99 leaves 4 of 396 weights, and min_weights=3 needs 6 in 2 layers; lower one of them.",
    ),
    "nothing left": (
        {"sparsity": 0.9999},
        "Pruning: sparsity=0.9999 leaves 0 of 396 weights, and min_weights=0 needs 1 in 2 layers; lower one of them.",
    ),
    "groups": (
        {"pattern": "2:4", "include": ["network.0"]},
        "Pruning: network.0.weight has 1 inputs, which are no groups of 4 for pattern='2:4'; name other layers with "
        "include=, or give sparsity= in its place.",
    ),
}


@pytest.mark.parametrize(("settings", "sentence"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_module_is_refused_before_the_first_step(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        fitted(Pruning(**settings))

    assert sentence == str(refusal.value)


def test_a_module_without_such_layers_is_refused():
    class Bare(Plain):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))

    with pytest.raises(ValueError, match="Bare has no Linear or convolutional layer when training starts"):
        fitted(Pruning(), kind=Bare)


def test_a_tenth_of_the_weights_still_learn_digits():
    """Nearly all of 359 unseen digits, after five epochs; chance is a tenth of them. The study has five seeds."""
    seed_everything(0, verbose=False)
    adam = partial(torch.optim.AdamW, lr=0.01)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, optimizer=adam)
    data = Digits(batch_size=64)
    quiet_trainer(callbacks=[Pruning(end_step=40, every_n_steps=10)], max_epochs=5, limit_val_batches=0).fit(
        module, datamodule=data
    )
    (scores,) = quiet_trainer().test(module, datamodule=data, verbose=False)
    chosen = chosen_weights("Pruning", module)

    assert sum(int((it == 0).sum()) for it in chosen.values()) == round(0.9 * sum(it.numel() for it in chosen.values()))
    assert scores["test/acc"] > 0.9


class Twice(Adam):
    """A layer under two names."""

    def __init__(self):
        super().__init__()
        self.network.insert(5, middle := nn.Linear(36, 36))
        self.network.insert(6, middle)


@pytest.mark.parametrize("criterion", ["synflow", "rate_distortion"])
def test_criteria_that_ask_the_network_leave_a_layer_with_two_names_to_its_optimizer(criterion):
    module = Twice()
    before = {name: id(it) for name, it in module.named_parameters(remove_duplicate=False)}
    trainer = quiet_trainer(callbacks=[Pruning(sparsity=0.5, criterion=criterion)], max_steps=2)

    trainer.fit(module, loader())

    assert before == {name: id(it) for name, it in module.named_parameters(remove_duplicate=False)}
