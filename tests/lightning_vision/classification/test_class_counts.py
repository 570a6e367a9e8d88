"""Balanced weights come from the training images, reach every loss, and travel in the checkpoint."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.base.weights import load_checkpoint
from lightning_vision.callbacks import CutMix, MixUp
from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.class_counts import balanced_weights, pos_weight
from lightning_vision.datamodules import Digits
from support.compare import distance, seeded
from support.data import ResumableLoader
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

COUNTS = [30, 12, 6]
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class Tail(LightningDataModule):
    """Three classes, as a stranger writes a datamodule; `several` gives each image the labels up to its class."""

    def __init__(self, several=False, counts=COUNTS):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        target = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(48, generator=generator)]
        image = torch.randn(48, 1, 8, 8, generator=generator) + target[:, None, None, None]
        if several:
            target = (torch.arange(3) <= target[:, None]).float()
        self.train_set = TensorDataset(image, target)
        self.class_counts = {"train": dict(zip("abc", [48, 18, 6] if several else counts, strict=False))}

    def train_dataloader(self):
        return ResumableLoader(self.train_set, batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.train_set, batch_size=8)

    test_dataloader = val_dataloader


def small(**settings):
    return ImageClassifier("resnet8_cifar", num_classes=3, in_channels=1, optimizer=SGD, **settings)


def fitted(datamodule, callbacks=(), **settings):
    module = seeded(partial(small, **settings))
    quiet_trainer(max_epochs=2, callbacks=list(callbacks), limit_val_batches=0).fit(module, datamodule=datamodule)
    return module


def by_hand(datamodule, loss):
    """Weights after two epochs of a loop with `loss(logits, target)`."""
    network = seeded(small).network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    loader = datamodule.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for image, target in loader:
            optimizer.zero_grad()
            loss(network(image), target).backward()
            optimizer.step()
    return network.state_dict()


def test_balanced_weights_have_mean_one_over_the_images_and_equal_sums_over_classes():
    weights = balanced_weights(COUNTS)

    assert weights == pytest.approx([48 / 90, 48 / 36, 48 / 18])
    assert sum(weight * count for weight, count in zip(weights, COUNTS, strict=True)) == pytest.approx(48)
    assert [weight * count for weight, count in zip(weights, COUNTS, strict=True)] == pytest.approx([16] * 3)
    assert balanced_weights([7, 7]) == [1, 1]


def test_the_weight_of_a_yes_is_noes_over_yeses():
    assert pos_weight([10, 4], 12) == [0.2, 2.0]


def test_a_balanced_fit_is_torchs_weighted_cross_entropy_and_wrong_weights_are_not():
    weights = torch.tensor(balanced_weights(COUNTS))
    trained = fitted(Tail(), class_weights="balanced").network.state_dict()
    wrong = {
        "nothing": None,
        "frequencies": torch.tensor(COUNTS) / 48,
        "other order": weights.flip(0),
        "square root": weights.sqrt(),
    }

    assert distance(trained, by_hand(Tail(), partial(F.cross_entropy, weight=weights))) == 0.0
    assert distance(trained, fitted(Tail(), class_weights=weights.tolist()).network.state_dict()) == 0.0
    for name, weight in wrong.items():
        assert distance(trained, by_hand(Tail(), partial(F.cross_entropy, weight=weight))) > 1e-3, name


def test_balanced_labels_are_torchs_pos_weight_and_weights_of_both_answers_are_not():
    weights = torch.tensor([0 / 48, 30 / 18, 42 / 6])
    loss = F.binary_cross_entropy_with_logits
    trained = fitted(Tail(several=True), class_weights="balanced", loss="bce").network.state_dict()

    assert distance(trained, by_hand(Tail(several=True), partial(loss, pos_weight=weights))) == 0.0
    assert distance(trained, by_hand(Tail(several=True), partial(loss, weight=weights))) > 1e-3


def test_focal_loss_is_balanced_by_the_same_weights():
    listed = fitted(Tail(), class_weights=balanced_weights(COUNTS), loss="focal")

    assert distance(fitted(Tail(), class_weights="balanced", loss="focal").state_dict(), listed.state_dict()) == 0.0


@pytest.mark.parametrize("mixer", [MixUp(alpha=1.0), CutMix(alpha=1.0)], ids=["MixUp", "CutMix"])
def test_mixed_labels_are_weighed_and_adjusted_each_as_its_own(mixer):
    """The loss of a mix is lam L(y_a) + (1 - lam) L(y_b), each with its weights, on adjusted logits."""
    weights, prior = torch.tensor(balanced_weights(COUNTS)), torch.tensor(COUNTS) / 48
    found = []

    class Watched(ImageClassifier):
        def training_step(self, batch, batch_idx):
            self.seen = [self(batch[0]).detach(), batch[1].own.clone()]
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            logits, own = self.seen
            drawn = mixer_shares[-1]
            both = (F.cross_entropy(logits + prior.log(), y, weight=weights) for y in (own, own[drawn.partner]))
            a, b = both
            found.append((float(outputs["loss"]), float(drawn.lam * a + (1 - drawn.lam) * b)))

    mixer_shares = []
    drawing = mixer.draw

    def draw(*args):
        mixer_shares.append(drawing(*args))
        return mixer_shares[-1]

    mixer.draw = draw
    module = Watched(
        "resnet8_cifar", num_classes=3, in_channels=1, optimizer=SGD, class_weights="balanced", logit_adjustment=1.0
    )
    quiet_trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=0, callbacks=[mixer]).fit(
        module, datamodule=Tail()
    )

    assert len(found) == 3
    for loss, expected in found:
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_checkpoint_evaluates_with_the_weights_of_its_training(loss):
    data = Tail(several=loss == "bce")
    module = small(class_weights="balanced", loss=loss, logit_adjustment=float(loss == "cross_entropy"))
    run = quiet_trainer(max_epochs=1, limit_val_batches=0)
    run.fit(module, datamodule=data)
    run.save_checkpoint("a.ckpt")
    loaded = ImageClassifier.load_from_checkpoint("a.ckpt", weights_only=True)
    losses = [
        quiet_trainer().test(each, DataLoader(data.train_set, batch_size=48), verbose=False)[0]["test/loss"]
        for each in (module, loaded)
    ]
    unweighted = small(loss=loss)
    unweighted.load_state_dict(module.state_dict())
    (plain,) = quiet_trainer().test(unweighted, DataLoader(data.train_set, batch_size=48), verbose=False)

    assert load_checkpoint("a.ckpt")["class_counts"] == {
        "classes": list(data.class_counts["train"].values()),
        "images": 48,
    }
    assert load_checkpoint("a.ckpt")["hyper_parameters"]["class_weights"] == "balanced"
    assert module.state_dict().keys() == small().state_dict().keys()
    assert losses[0] == losses[1] != pytest.approx(plain["test/loss"], rel=1e-3)
    if loss == "cross_entropy":
        assert torch.equal(loaded.balancing.adjustment.shift, module.balancing.adjustment.shift)


def test_a_balanced_run_resumes_exactly(tmp_path):
    settings = {"class_weights": "balanced", "logit_adjustment": 1.0}

    def run(datamodule, folder, **options):
        saver = ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1)
        module = seeded(partial(small, **settings))
        return record(module, None, [saver], datamodule=datamodule, max_epochs=3, limit_val_batches=0, **options)

    straight = run(Tail(), tmp_path / "straight")
    killed = run(Tail(), tmp_path / "killed", kill_at=8)
    # The weights are those of the file, also where the counts have changed.
    resumed = run(Tail(counts=[1, 1, 1]), tmp_path / "resumed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed) == []


def test_all_ranks_have_the_weights_of_the_first(two_ranks):
    def run():
        rank = torch.distributed.get_rank()
        data = Tail(counts=[COUNTS, [1, 1, 1]][rank])
        module = small(class_weights="balanced", logit_adjustment=1.0)
        quiet_trainer(max_steps=2, max_epochs=-1, limit_val_batches=0, strategy="ddp", devices=2).fit(
            module, datamodule=data
        )
        return module.criterion.weight.tolist(), module.balancing.adjustment.shift.tolist()

    first, second = two_ranks(run)

    assert first == second
    assert first[0] == pytest.approx(balanced_weights(COUNTS))


class Silent(Tail):
    def __init__(self):
        super().__init__()
        del self.class_counts


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (
            Silent,
            {"class_weights": "balanced"},
            r"^class_weights='balanced' counts the training images of each class, but Silent has no "
            r"class_counts\['train'\]; give it that attribute, or pass class_weights as a list of numbers$",
        ),
        (
            Silent,
            {"logit_adjustment": 0.5},
            r"^logit_adjustment=0.5 counts .* but Silent has no class_counts\['train'\]; give it that attribute",
        ),
        (
            partial(Tail, counts=[5, 0, 3]),
            {"class_weights": "balanced"},
            "^class_weights='balanced' cannot balance b of Tail, which has no training image of it; add some, "
            "leave the class out of the data, or pass class_weights as a list of numbers$",
        ),
        (
            partial(Tail, counts=[5, 3]),
            {"class_weights": "balanced"},
            r"^class_weights='balanced' needs 3 counts, but class_counts\['train'\] of Tail has 2; make num_classes",
        ),
    ],
    ids=["no counts", "no counts to adjust by", "an empty class", "other classes"],
)
def test_what_cannot_be_balanced_is_refused_before_training(data, settings, message):
    with pytest.raises(ValueError, match=message):
        quiet_trainer(max_epochs=1).fit(small(**settings), datamodule=data())


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"class_weights": "balanced"}, "class_weights='balanced'"),
        ({"logit_adjustment": 1.0}, "logit_adjustment=1.0"),
    ],
)
def test_what_a_sampler_balances_is_not_balanced_again(settings, setting):
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, **settings)
    message = (
        f"^sampler='balanced' of Digits draws every class equally often already, so {setting} would correct for rare "
        "classes twice; drop one of the two$"
    )
    with pytest.raises(ValueError, match=message):
        quiet_trainer(max_epochs=1).fit(module, datamodule=Digits(sampler="balanced"))


def test_a_fit_without_a_datamodule_is_refused():
    message = "but a fit without a datamodule has no class_counts"
    with pytest.raises(ValueError, match=message):
        quiet_trainer(max_epochs=1).fit(small(class_weights="balanced"), Tail().val_dataloader())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("even", "class_weights='even' is unknown; pass 'balanced' or 3 numbers"),
        ([1.0, -1.0, 1.0], r"class_weights must be finite and at least 0, got \[1.0, -1.0, 1.0\]"),
        ([1.0, float("nan"), 1.0], "class_weights must be finite and at least 0"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        small(class_weights=weights)
