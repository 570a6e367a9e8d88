"""The targets seam in a Trainer: what is mixed, for whom, what is refused, and that nothing is left behind."""

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import CheckpointError, checkpoint
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from lightning_vision.callbacks.hooks._mixed_labels import resolved
from lightning_vision.callbacks.hooks.targets import Mix, Targets
from lightning_vision.classification.losses import binary_cross_entropy
from support.data import ResumableLoader, labelled_images
from support.modules import DictBatches, Plain, TwoOptimizers
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*in the `DataLoader` will be")


@dataclass(frozen=True)
class Draw:
    partner: np.ndarray
    lam: float | np.ndarray


class Fading(Targets):
    """Fades each image into its partner."""

    neutral = ({"prob": 0.0},)

    def __init__(self, prob=1.0, targets="loss", num_classes=None, per_sample=False, seed=0, name=None):
        super().__init__(
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key="image",
            target_key="target",
            name=name,
        )
        self.per_sample = per_sample

    def draw(self, shape, random):
        return Draw(random.permutation(shape[0]), random.random(shape[0]) if self.per_sample else random.random())

    def mix(self, images, draw):
        partner = torch.from_numpy(draw.partner)
        lam = torch.as_tensor(draw.lam, dtype=torch.float32)
        shown = lam.view(-1, 1, 1, 1)
        return Mix(shown * images + (1 - shown) * images[partner], partner, lam if self.per_sample else float(draw.lam))


class Measured(Plain):
    """With metrics in its training step, one of them with lists, and what it was given."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.accuracy, self.auroc, self.seen = MulticlassAccuracy(10), MulticlassAUROC(10), []

    def training_step(self, batch, batch_idx):
        image, target = batch
        logits = self(image)
        self.accuracy(logits, target)
        self.auroc.update(logits, target)
        self.seen.append((logits.detach(), target))
        self.log("train/accuracy", (logits.argmax(1) == target).float().mean())
        return F.cross_entropy(logits, target)


def trainer_of(folder, callbacks, **options):
    defaults = {"default_root_dir": folder, "max_epochs": 1, "num_sanity_val_steps": 1}
    return quiet_trainer(callbacks=callbacks, **defaults | options)


def fit(folder, callbacks, module, compiled=False, collate=None, **options):
    trainer = trainer_of(folder, callbacks, **options)
    loaders = [ResumableLoader(labelled_images(n), 6, collate_fn=collate) for n in (33, 12)]
    trainer.fit(torch.compile(module, backend="eager") if compiled else module, *loaders)
    return trainer


def made(kind=Plain):
    torch.manual_seed(1)
    return kind(dropout=0.0)


def weights(module):
    return torch.cat([it.detach().flatten() for it in module.state_dict().values()])


def parameters(module):
    return torch.cat([it.detach().flatten() for it in module.parameters()])


def by_hand(mix_labels, method, accumulate=1, ranks=(0,)):
    """`Plain` trained by a loop: the formula for its loss in the place of labels that know it."""
    module = made()
    setting = module.configure_optimizers()
    optimizer, scheduler = setting["optimizer"], setting["lr_scheduler"]["scheduler"]
    batches = list(ResumableLoader(labelled_images(33), 6))
    for n, (image, target) in enumerate(batches):
        for rank in ranks:
            random = np.random.default_rng((0, rank, n))
            random.random()
            mix = method.mix(image, method.draw(image.shape, random))
            loss = mix_labels(module(mix.images), target, target[mix.partner], mix.lam) / accumulate
            (loss / len(ranks)).backward()
        if (n + 1) % accumulate == 0 or n + 1 == len(batches):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return weights(module) if len(ranks) == 1 else parameters(module)


def formula(z, own, twin, lam):
    if isinstance(lam, float):
        return lam * F.cross_entropy(z, own) + (1 - lam) * F.cross_entropy(z, twin)
    left, right = (F.cross_entropy(z, it, reduction="none") for it in (own, twin))
    return (lam * left + (1 - lam) * right).sum() / float(len(z))


@pytest.mark.parametrize(
    ("compiled", "accumulate", "per_sample"),
    [
        # Tracing costs seconds, so of the compiled ones that with most in it runs by default.
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] and case != (True, 4, True) else [])
        for case in itertools.product([False, True], [1, 4], [False, True])
    ],
)
def test_training_equals_a_loop_with_the_formula(tmp_path, per_sample, accumulate, compiled, compiler):
    method, module = Fading(per_sample=per_sample), made()
    fit(tmp_path, [method], module, compiled, accumulate_grad_batches=accumulate)

    assert torch.equal(by_hand(formula, method, accumulate), weights(module))


@pytest.mark.parametrize(
    "mutant",
    [
        lambda z, own, twin, lam: formula(z, own, twin, 1 - lam),
        lambda z, own, twin, lam: formula(z, own, own, lam),
        lambda z, own, twin, lam: formula(z, own, twin.roll(1), lam),
    ],
    ids=["share swapped", "own labels twice", "partner off by one"],
)
def test_a_wrong_mixture_is_noticed(tmp_path, mutant):
    module = made()
    fit(tmp_path, [Fading()], module)

    assert (by_hand(mutant, Fading()) - weights(module)).abs().max() > 1e-3


def test_dict_batches_and_two_optimizers_train_as_the_plain_module(tmp_path):
    def as_mapping(samples):
        return dict(zip(("image", "target"), torch.utils.data.default_collate(samples), strict=True))

    module = made(DictBatches)
    fit(tmp_path, [Fading()], module, collate=as_mapping)
    assert torch.equal(by_hand(formula, Fading()), weights(module))

    mixed, plain = made(TwoOptimizers), made(TwoOptimizers)
    fit(tmp_path, [Fading()], mixed)
    fit(tmp_path, [], plain)
    assert (weights(mixed) - weights(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])
def test_metrics_of_the_step_are_those_of_own_labels_and_plain(tmp_path, per_sample):
    module = Measured()
    trainer = fit(tmp_path, [Fading(per_sample=per_sample)], module)
    own = [target for _, target in ResumableLoader(labelled_images(33), 6)]
    accuracy, auroc = MulticlassAccuracy(10), MulticlassAUROC(10)
    for (logits, _), target in zip(module.seen, own, strict=True):
        accuracy.update(logits, target)
        auroc.update(logits, target)

    assert {Tensor} == {type(given) for _, given in module.seen}
    assert all(torch.equal(given, it) for (_, given), it in zip(module.seen, own, strict=True))
    assert torch.equal(accuracy.compute(), module.accuracy.compute())
    assert torch.equal(auroc.compute(), module.auroc.compute())
    assert {Tensor} == {type(it) for it in [module.accuracy.tp, *module.auroc.target, *module.auroc.preds]}
    last = (module.seen[-1][0].argmax(1) == own[-1]).float().mean()
    assert last == trainer.logged_metrics["train/accuracy"]


@pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])
def test_the_logged_loss_is_the_mixed_one(tmp_path, per_sample):
    class Reading(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            read.append((self(batch[0]).detach(), loss.item()))
            return loss

    read, method = [], Fading(per_sample=per_sample)
    trainer = fit(tmp_path, [method], made(Reading))
    expected, sizes = [], []
    for n, (image, own) in enumerate(ResumableLoader(labelled_images(33), 6)):
        random = np.random.default_rng((0, 0, n))
        random.random()
        mix = method.mix(image, method.draw(image.shape, random))
        expected.append(formula(read[n][0], own, own[mix.partner], mix.lam).item())
        sizes.append(len(own))

    assert expected == [loss for _, loss in read]
    assert expected[-1] == trainer.logged_metrics["train/loss_step"]
    assert abs(np.average(expected, weights=sizes) - trainer.logged_metrics["train/loss_epoch"]) < 1e-6


class Keeping(Plain):
    """Keeps its batches."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return super().training_step(batch, batch_idx)


def test_soft_and_sampled_labels_are_plain_tensors(tmp_path):
    for targets in ("soft", "sampled"):
        module, method = Keeping(), Fading(targets=targets, num_classes=10)
        fit(tmp_path, [method], module)
        for n, (_, own) in enumerate(ResumableLoader(labelled_images(33), 6)):
            random = np.random.default_rng((0, 0, n))
            random.random()
            draw = method.draw((len(own), 1, 8, 8), random)
            twin, found = own[torch.from_numpy(draw.partner)], module.seen[n][1]
            if targets == "soft":
                lam = torch.tensor(draw.lam, dtype=torch.float32)
                expected = lam * F.one_hot(own, 10).float() + (1 - lam) * F.one_hot(twin, 10).float()
            else:
                expected = torch.where(torch.from_numpy(random.random(len(own))) < draw.lam, own, twin)
            assert torch.equal(expected, found)
            assert Tensor is type(found)
            assert expected.dtype is found.dtype


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_mixture_with_a_label_that_nobody_knows_is_unknown(per_sample):
    rng = torch.Generator().manual_seed(0)
    labels = torch.rand(24, 5, generator=rng).round().masked_fill(torch.rand(24, 5, generator=rng) < 0.3, float("nan"))
    batch, z = [torch.rand(24, 1, 8, 8), labels.clone()], torch.randn(24, 5, requires_grad=True)
    made = {}
    for targets in ("soft", "sampled", "loss"):
        method = Fading(targets=targets, num_classes=5, per_sample=per_sample)
        made[targets] = method.change(batch, np.random.default_rng(0))[1]
    random = np.random.default_rng(0)
    random.random()
    unknown = labels.isnan() | labels[torch.from_numpy(random.permutation(24))].isnan()
    with made["loss"].mixture.live():
        mixed = resolved(binary_cross_entropy(z, made["loss"]))
    gradient = torch.autograd.grad(mixed, z)[0]
    soft = torch.autograd.grad(binary_cross_entropy(z, made["soft"]), z)[0]

    assert not torch.equal(labels.isnan(), unknown)
    assert all(torch.equal(unknown, it.isnan()) for it in made.values())
    assert torch.equal(unknown, gradient == 0)
    assert torch.allclose(soft, gradient, atol=1e-8)
    assert torch.equal(labels.isnan(), batch[1].isnan())


def test_soft_labels_are_probabilities_in_batches_that_are_not_mixed_too(tmp_path):
    module, method = Keeping(), Fading(prob=0.5, targets="soft", num_classes=10)
    fit(tmp_path, [method], module)
    own = list(ResumableLoader(labelled_images(33), 6))
    mixed = [np.random.default_rng((0, 0, n)).random() < 0.5 for n in range(len(own))]

    assert set(mixed) == {True, False}
    for drawn, (_, found), (_, labels) in zip(mixed, module.seen, own, strict=True):
        assert (found.dtype, found.shape) == (torch.float32, (len(labels), 10))
        assert torch.equal(found, F.one_hot(labels, 10).float()) is not drawn


@pytest.mark.parametrize("targets", ["loss", "soft", "sampled"])
def test_a_batch_of_one_is_left_alone(targets):
    class Undrawn(Fading):
        def draw(self, shape, random):
            raise AssertionError

    batch = [torch.rand(1, 1, 8, 8), torch.tensor([3])]
    images, labels = Undrawn(targets=targets, num_classes=10).change(batch, np.random.default_rng(0))

    assert images is batch[0]
    assert torch.equal(F.one_hot(batch[1], 10).float() if targets == "soft" else batch[1], labels)
    assert Tensor is type(labels)


def test_soft_labels_of_one_are_mixed_by_the_loss_of_another(tmp_path):
    module = made()
    fit(tmp_path, [Fading(name="a"), Fading(targets="soft", num_classes=10, name="b")], module)
    other = made()
    fit(tmp_path, [Fading(targets="soft", num_classes=10, name="b"), Fading(name="a")], other)

    assert torch.equal(weights(module), weights(other))


def test_probability_zero_installs_nothing(tmp_path):
    off, none = made(), made()
    method = Fading(prob=0.0)
    trainer = fit(tmp_path, [method], off)
    fit(tmp_path, [], none)

    assert torch.equal(weights(none), weights(off))
    assert method.state_dict() == {"batches": 0}
    assert not {"batch_to_device", "training_step"} & vars(trainer.strategy).keys()


def test_two_processes_mix_their_own_batches(two_ranks, tmp_path):
    def run(folder):
        results = []
        for strategy in ("ddp", "ddp_find_unused_parameters_true"):
            module = made()
            fit(folder, [Fading()], module, strategy=strategy, devices=2, use_distributed_sampler=False)
            results.append(parameters(module))
        return results

    expected = by_hand(formula, Fading(), ranks=(0, 1))
    for of_rank in two_ranks(run, tmp_path):
        for found in of_rank:
            assert torch.equal(expected, found)


class Bare(Plain):
    """Its loss leaves torch."""

    def training_step(self, batch, batch_idx):
        rows = zip(self(batch[0]).log_softmax(1), batch[1].tolist(), strict=True)
        return -torch.stack([row[label] for row, label in rows]).mean()


class Pairs(Plain):
    def training_step(self, batch, batch_idx):
        z, y = self(batch[0]), batch[1]
        return ((z @ z.T).sigmoid() - (y[:, None] == y[None, :]).float()).square().mean()


@pytest.mark.parametrize(
    "callbacks, module, message",
    [
        (
            [Fading(name="a"), Fading(name="b")],
            Plain,
            "Fading: Fading mixes the loss too; keep one of them, or give one targets='soft' or targets='sampled', "
            "which is applied first.",
        ),
        (
            [Fading(targets="soft")],
            Plain,
            "Fading: targets='soft' needs the number of classes, and neither the module nor the datamodule has a "
            "num_classes; pass num_classes.",
        ),
        (
            [Fading()],
            Bare,
            "Fading: no loss of this step was computed by torch functions from the batch's labels (B = 6), so it "
            "cannot be mixed; pass targets='soft' or targets='sampled'.",
        ),
        (
            [Fading(per_sample=True)],
            Pairs,
            "Fading: sub compares the labels of different samples, whose shares differ; pass per_sample=False, "
            "targets='soft' or targets='sampled'.",
        ),
    ],
    ids=["two mixers", "no K", "unseen", "pairs"],
)
def test_what_cannot_be_mixed_is_refused_before_training(tmp_path, callbacks, module, message):
    module = made(module)
    before = weights(module)
    with pytest.raises(ValueError) as raised:
        fit(tmp_path, callbacks, module)

    assert message == str(raised.value)
    assert torch.equal(before[:40], weights(module)[:40])
    assert not {"batch_to_device", "training_step"} & vars(module.trainer.strategy).keys()
    assert "training_step" not in vars(module)


def first_that(is_mixed, prob=0.5):
    """A seed with which the first batch is, or is not, mixed."""
    return next(seed for seed in range(99) if (np.random.default_rng((seed, 0, 0)).random() < prob) is is_mixed)


@pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])
def test_an_unseen_loss_is_refused_at_the_first_step_also_if_that_is_not_mixed(tmp_path, per_sample):
    module = made(Bare)
    trainer = trainer_of(tmp_path, [Fading(prob=0.5, seed=first_that(False), per_sample=per_sample)])
    with pytest.raises(ValueError, match="Fading: no loss of this step was computed by torch functions"):
        trainer.fit(module, ResumableLoader(labelled_images(33), 6))

    assert trainer.global_step == 0


def test_a_first_batch_that_is_not_mixed_trains_as_without(tmp_path):
    mixed, plain = Keeping(), Keeping()
    plain.load_state_dict(mixed.state_dict())
    fit(tmp_path, [Fading(prob=0.5, seed=first_that(False))], mixed, limit_train_batches=1)
    fit(tmp_path, [], plain, limit_train_batches=1)

    assert torch.equal(weights(plain), weights(mixed))
    assert torch.equal(plain.seen[0][0], mixed.seen[0][0])
    assert torch.equal(plain.seen[0][1], mixed.seen[0][1])


def test_labels_that_leave_torch_beside_a_loss_are_warned_about_once_a_fit(tmp_path):
    class Leaving(Plain):
        def training_step(self, batch, batch_idx):
            rows = zip(self(batch[0]).log_softmax(1), batch[1].tolist(), strict=True)
            return super().training_step(batch, batch_idx) - torch.stack([row[label] for row, label in rows]).mean()

    method = Fading()
    expected = (
        "Fading: training_step reads labels out of torch (as `tolist()` and `item()` do), and what is computed from "
        "those is not mixed; if it enters a loss, pass targets='soft' or targets='sampled'."
    )
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path, [method], made(Leaving))
        assert [expected] == [text for it in caught if (text := str(it.message)).startswith("Fading")]


def test_metrics_and_logs_that_stay_in_torch_are_not_warned_about(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, [Fading()], Measured())

    assert not [text for it in caught if (text := str(it.message)).startswith("Fading")]


def test_a_loss_under_activation_checkpointing_is_refused_by_torch(tmp_path):
    """It is computed again in backward, when the step and with it the mixture is over."""

    class Again(Plain):
        def training_step(self, batch, batch_idx):
            return checkpoint(F.cross_entropy, self(batch[0]), batch[1], use_reentrant=False)

    with pytest.raises(CheckpointError):
        fit(tmp_path, [Fading()], made(Again))

    fit(tmp_path, [Fading(targets="soft", num_classes=10)], made(Again))


@pytest.mark.parametrize(
    "labels, message",
    [
        (
            torch.tensor([0, 3, 1, 1]),
            "Fading: targets='soft' with num_classes=2 takes labels from 0 to 1, and those of this batch run from 0 to "
            "3; give the num_classes of the data.",
        ),
        (
            torch.tensor([0, -1, 1, 1]),
            "Fading: targets='soft' with num_classes=2 takes labels from 0 to 1, and those of this batch run from -1 "
            "to 1; give the num_classes of the data.",
        ),
        (
            torch.rand(4),
            "Fading: targets='soft' takes integer labels (B,) or probabilities (B, K), got float32 (4,); pass "
            "targets='loss' or targets='sampled', or make the labels integers.",
        ),
    ],
    ids=["too large", "negative", "floats"],
)
def test_labels_that_have_no_probabilities_are_refused(labels, message):
    with pytest.raises(ValueError) as raised:
        Fading(targets="soft", num_classes=2).change([torch.rand(4, 1, 8, 8), labels], np.random.default_rng(0))

    assert message == str(raised.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda x, y: [x[0], y],
            "Fading: images must be a (B, C, H, W) tensor, floating or uint8, got float32 (1, 8, 8); say with "
            "image_key= which entry of the batch they are.",
        ),
        (
            lambda x, y: [x.long(), y],
            "Fading: images must be a (B, C, H, W) tensor, floating or uint8, got int64 (6, 1, 8, 8); say with "
            "image_key= which entry of the batch they are.",
        ),
        (
            lambda x, y: [x, y[:-1]],
            "Fading: labels must be a tensor of as many as there are images, 6, got int64 (5,); say with target_key= "
            "which entry of the batch they are.",
        ),
        (
            lambda x, y: [x, y.tolist()],
            "Fading: labels must be a tensor of as many as there are images, 6, got a list; say with target_key= which "
            "entry of the batch they are.",
        ),
        (
            lambda x, y: [x],
            "Fading: the batch is a list of 1 without labels; let the loader yield (images, labels), or a mapping "
            "whose keys are named by image_key= and target_key=.",
        ),
        (
            lambda x, y: {"image": x, "label": y},
            "Fading: the batch has no labels under 'target', its keys are 'image', 'label'; say with target_key= which "
            "one holds them.",
        ),
    ],
    ids=["image", "integers", "fewer", "list", "none", "key"],
)
def test_a_batch_of_something_else_is_refused_at_the_first_step(tmp_path, change, message):
    with pytest.raises(ValueError) as raised:
        fit(tmp_path, [Fading()], made(), collate=lambda it: change(*torch.utils.data.default_collate(it)),
            num_sanity_val_steps=0)  # fmt: skip

    assert message == str(raised.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prob": -0.1}, "Fading: prob is -0.1; give a number from 0 to 1."),
        ({"prob": 1.5}, "Fading: prob is 1.5; give a number from 0 to 1."),
        ({"targets": "hard"}, "Fading: targets is 'hard'; give 'loss', 'soft' or 'sampled'."),
        ({"num_classes": 0}, "Fading: num_classes is 0; give a whole number of at least 1."),
        ({"num_classes": 2.5}, "Fading: num_classes is 2.5; give a whole number of at least 1."),
    ],
    ids=["below", "above", "targets", "classes", "half a class"],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError) as raised:
        Fading(**settings)

    assert message == str(raised.value)
