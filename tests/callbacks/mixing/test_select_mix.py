"""SelectMix: peers, shares, training as by hand, what is left alone, and digits of which three in ten are mislabelled.

Whose label is in doubt is proved in `test_confident_learning.py`; resume, processes and the neutral run in
`tests/conformance`.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision import ImageClassifier
from lightning_vision.callbacks import DataDiet, SelectMix
from lightning_vision.callbacks.mixing.confident_learning import Doubt, label_doubt
from lightning_vision.callbacks.mixing.select_mix import given_share, select_peers
from lightning_vision.datamodules import Digits
from support.compare import distance
from support.data import labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer

# The last batch is short, so that the sampler is asked for its end by a Trainer, too.
SAMPLES, BATCH = 58, 12

# Two of class 0, one of them trusted, two trusted of class 1, one labelled 0 that looks like 1, one labelled 1 like 2.
BATCH_OF_SIX = Doubt(
    given=torch.tensor([0, 0, 1, 1, 0, 1]),
    predicted=torch.tensor([0, 0, 1, 1, 1, 2]),
    keep=torch.tensor([1.0, 1.0, 1.0, 1.0, 0.25, 0.4]),
    uncertain=torch.tensor([False, False, False, False, True, True]),
    trusted=torch.tensor([True, False, True, True, False, False]),
)


@pytest.mark.parametrize(
    ("which", "pick", "partner", "given"),
    [
        ([0.1, 0.1], [0.0, 0.0], [0, 2], [True, True]),
        ([0.1, 0.1], [0.9, 0.9], [0, 3], [True, True]),
        ([0.9, 0.9], [0.4, 0.4], [2, 2], [False, True]),  # of class 2 there is none, so it is the given one
        ([0.9, 0.9], [0.6, 0.6], [3, 3], [False, True]),
    ],
)
def test_a_peer_is_a_trusted_sample_of_the_drawn_class(
    which: list[float], pick: list[float], partner: list[int], given: list[bool]
) -> None:
    draws = [torch.tensor([0.5] * 4 + it) for it in (which, pick)]
    found, toward_given = select_peers(BATCH_OF_SIX, *draws)

    assert found.tolist() == [0, 1, 2, 3, *partner]
    assert toward_given[4:].tolist() == given


def test_without_a_trusted_sample_of_either_class_nobody_is_mixed() -> None:
    alone = Doubt(**{**vars(BATCH_OF_SIX), "trusted": torch.zeros(6, dtype=torch.bool)})
    partner, toward_given = select_peers(alone, torch.full((6,), 0.1), torch.full((6,), 0.5))

    assert partner.tolist() == list(range(6))
    assert not toward_given.any()


def test_peers_are_drawn_evenly_and_classes_as_probabilities_say() -> None:
    generator, partners = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        partners.append(select_peers(BATCH_OF_SIX, *torch.rand(2, 6, generator=generator))[0][4])
    share = torch.stack(partners).bincount(minlength=4) / 2000

    # Own class with probability 1/4; four standard errors.
    assert share[[0, 2, 3]].tolist() == pytest.approx([0.25, 0.375, 0.375], abs=4 * (0.25 / 2000) ** 0.5)
    assert share[1] == 0


def test_the_given_class_has_its_part_of_the_own_share_and_all_of_a_peer_of_its_class() -> None:
    lam = torch.tensor([0.3, 0.3, 0.3, 0.3, 0.6, 0.6])
    mixed = torch.tensor([False, False, False, False, True, True])
    share = given_share(BATCH_OF_SIX, lam, mixed, torch.tensor([False, False, False, False, False, True]))

    assert share.tolist() == pytest.approx([1, 1, 1, 1, 0.6 * 0.25, 0.6 * 0.4 + 0.4])
    # Who has no peer keeps its whole image, and the two classes that it may have.
    assert given_share(BATCH_OF_SIX, lam, mixed & False, mixed & False)[4:].tolist() == pytest.approx([0.25, 0.4])


def flipped(share: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels of which some are wrong, and probabilities that know better."""
    images, labels = labelled_images(SAMPLES).tensors
    generator = torch.Generator().manual_seed(5)
    wrong = torch.rand(SAMPLES, generator=generator) < share
    given = torch.where(wrong, (labels + 1) % 10, labels)
    logits = 3.0 * F.one_hot(labels, 10) + torch.randn(SAMPLES, 10, generator=generator)
    return images, given, logits.softmax(1)


def written(folder: Path, probabilities: Tensor) -> str:
    np.save(folder / "probabilities.npy", probabilities.numpy())
    return str(folder / "probabilities.npy")


class Reading(Plain):
    """Keeps what its training step was given."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((batch[0].clone(), batch[1].clone()))
        return super().training_step(batch, batch_idx)


def shuffled(images: Tensor, labels: Tensor) -> DataLoader[Any]:
    data = torch.utils.data.TensorDataset(images, labels)
    return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(7))


def fit(module: Plain, callbacks: list[Any], loader: DataLoader[Any], epochs: int = 3) -> None:
    quiet_trainer(max_epochs=epochs, callbacks=callbacks, limit_val_batches=0).fit(module, loader)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def right(logits: Tensor, given: Tensor, predicted: Tensor, share: Tensor) -> Tensor:
    own, other = (F.cross_entropy(logits, it, reduction="none") for it in (given, predicted))
    return (share * own + (1 - share) * other).mean()


def by_hand(module: Plain, images: Tensor, labels: Tensor, probabilities: Tensor, loss: Loss, epochs: int = 3) -> None:
    """The training of `Plain` on known probabilities, sample after sample, from the second epoch on."""
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    thresholds = [float(probabilities[labels == k, k].mean()) if (labels == k).any() else 2.0 for k in range(10)]
    positions, batches = shuffled(torch.arange(SAMPLES), labels), 0
    for epoch in range(epochs):
        for here, given in positions:
            random = np.random.default_rng((0, 0, batches))
            batches += 1
            random.random()
            drawn, (which, pick) = random.beta(1.0, 1.0, len(here)), random.random((2, len(here)))
            mixed, predicted, share = images[here].clone(), given.clone(), torch.ones(len(here))
            table = probabilities[here]
            best = table.argmax(1)
            trusted = [int(best[i]) == int(given[i]) and float(table[i, given[i]]) >= thresholds[given[i]] - 1e-6
                       for i in range(len(here))]  # fmt: skip
            for i in range(len(here)) if epoch > 0 else ():
                reached = [k for k in range(10) if float(table[i, k]) >= thresholds[k] - 1e-6]
                own, other = int(given[i]), int(best[i])
                if not reached or own == other or max(reached, key=lambda k: float(table[i, k])) == own:
                    continue
                keep = table[i, own] / (table[i, own] + table[i, other])
                order = (own, other) if which[i] < float(keep) else (other, own)
                peers = next((found for k in order if (found := [
                    j for j in range(len(here)) if trusted[j] and int(given[j]) == k])), [])  # fmt: skip
                predicted[i], share[i] = other, keep
                if peers:
                    peer, lam = peers[int(pick[i] * len(peers))], torch.tensor(drawn[i]).float()
                    mixed[i] = torch.lerp(images[here[peer]], images[here[i]], lam)
                    share[i] = lam.double() * keep + (1 - lam.double()) * float(given[peer] == own)
            optimizer.zero_grad()
            loss(module.network(mixed), given, predicted, share).backward()
            optimizer.step()
            scheduler.step()


def apart(tmp_path: Path, loss: Loss) -> float:
    images, labels, probabilities = flipped()
    torch.manual_seed(0)
    ours = Plain(dropout=0.0)
    theirs = deepcopy(ours)
    fit(ours, [SelectMix(probabilities=written(tmp_path, probabilities))], shuffled(images, labels))
    by_hand(theirs, images, labels, probabilities, loss)
    return distance(ours.state_dict(), theirs.state_dict())


def test_training_equals_a_loop_sample_by_sample(tmp_path: Path) -> None:
    assert apart(tmp_path, right) < 1e-6


def test_a_wrong_target_is_noticed(tmp_path: Path) -> None:
    def only_given(logits: Tensor, given: Tensor, predicted: Tensor, share: Tensor) -> Tensor:
        return F.cross_entropy(logits, given)

    def exchanged(logits: Tensor, given: Tensor, predicted: Tensor, share: Tensor) -> Tensor:
        return right(logits, predicted, given, share)

    def even(logits: Tensor, given: Tensor, predicted: Tensor, share: Tensor) -> Tensor:
        return right(logits, given, predicted, torch.where(given == predicted, 1.0, 0.5))

    assert all(apart(tmp_path, mutant) > 1e-3 for mutant in (only_given, exchanged, even))


def test_row_190_without_doubt_training_is_plain(tmp_path: Path) -> None:
    images, labels, _ = flipped(0.0)
    torch.manual_seed(0)
    mixed, plain = Plain(dropout=0.0), Plain(dropout=0.0)
    plain.load_state_dict(mixed.state_dict())
    sure = 0.91 * F.one_hot(labels, 10) + 0.009
    fit(mixed, [SelectMix(probabilities=written(tmp_path, sure), start_epoch=0)], shuffled(images, labels))
    fit(plain, [], shuffled(images, labels))

    assert distance(mixed.state_dict(), plain.state_dict()) == 0.0


def test_row_190_targets_sum_to_1_and_hold_the_classes_involved(tmp_path: Path) -> None:
    images, labels, probabilities = flipped()
    module = Reading()
    path = written(tmp_path, probabilities)
    mix = SelectMix(probabilities=path, start_epoch=0, targets="soft", num_classes=10)
    # A loss of probabilities takes these labels.
    fit(module, [mix], shuffled(images, labels), 1)
    doubt = label_doubt(probabilities, labels)
    for (here, given), (seen, target) in zip(shuffled(torch.arange(SAMPLES), labels), module.seen, strict=True):
        uncertain = doubt.uncertain[here]

        assert torch.allclose(target.sum(1), torch.ones(len(here)), atol=1e-6)
        involved = F.one_hot(given, 10) + F.one_hot(doubt.predicted[here], 10) > 0
        assert not target[~involved].any()
        assert torch.equal(target[~uncertain], F.one_hot(given, 10).float()[~uncertain])
        assert torch.equal(seen[~uncertain], images[here][~uncertain])
    assert doubt.uncertain.sum() > 5


def test_before_the_first_look_batches_are_plain_and_looks_come_as_asked() -> None:
    images, labels, _ = flipped()
    module = Reading()
    fit(module, [SelectMix(start_epoch=2, refresh_every=1, k_folds=2)], shuffled(images, labels), 3)
    positions = shuffled(torch.arange(SAMPLES), labels)
    order = [here for _ in range(3) for here, _ in positions]
    plain = [torch.equal(seen, images[here]) for here, (seen, _) in zip(order, module.seen, strict=True)]
    looks = {
        every: [it for it in range(8) if SelectMix(start_epoch=2, refresh_every=every).judges_in(it)]
        for every in (1, 3)
    }

    assert plain[:10] == [True] * 10
    assert not all(plain[10:])
    # As long as nothing was found every later epoch asks again.
    assert looks == {1: [2, 3, 4, 5, 6, 7], 3: [2, 3, 4, 5, 6, 7]}
    once, thrice = SelectMix(), SelectMix(start_epoch=2, refresh_every=3)
    once.judged = thrice.judged = torch.zeros(1, 5)
    assert not any(once.judges_in(epoch) for epoch in range(8))
    assert [epoch for epoch in range(9) if thrice.judges_in(epoch)] == [2, 5, 8]


@pytest.mark.parametrize("first", ["mix", "diet"])
def test_with_samples_left_out_each_batch_is_known_and_the_loader_is_given_back(first: str) -> None:
    images, labels, _ = flipped()
    loader = shuffled(images, labels)
    own = loader.batch_sampler.sampler  # type: ignore[union-attr]  # a BatchSampler
    diet, mix = DataDiet(keep_fraction=0.5, score_epoch=1), SelectMix(start_epoch=1, k_folds=2)
    found: list[bool] = []

    class Known(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if mix.here is not None:
                found.append(bool(torch.equal(Doubt.of(mix.here).given, batch[1])))
            return super().training_step(batch, batch_idx)

    fit(Known(dropout=0.0), [mix, diet] if first == "mix" else [diet, mix], loader)

    assert len(found) == 2 * 3
    assert all(found)
    assert loader.batch_sampler.sampler is own  # type: ignore[union-attr]


class MislabelledDigits(Digits):
    """Digits of which three in ten training images have another label; `flipped` says which."""

    def load(self) -> None:
        super().load()
        generator = torch.Generator().manual_seed(self.seed)
        labels = self.train_set.targets  # type: ignore[union-attr]  # an ArrayImages
        assert labels is not None
        chosen = torch.randperm(len(labels), generator=generator)[: round(0.3 * len(labels))]
        self.flipped = torch.zeros(len(labels), dtype=torch.bool)
        self.flipped[chosen] = True
        wrong = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
        self.train_set.targets = torch.where(self.flipped, wrong, labels)  # type: ignore[union-attr]


def scores(seed: int, epochs: int, callbacks: list[Any]) -> tuple[float, MislabelledDigits]:
    """Test accuracy of a ResNet-8, and the data."""
    seed_everything(seed, verbose=False)
    data = MislabelledDigits(batch_size=64, seed=seed)
    module = ImageClassifier("resnet8_cifar", 10, 1, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
    trainer = quiet_trainer(max_epochs=epochs, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"], data


def precision_and_recall(mix: SelectMix, data: MislabelledDigits) -> tuple[float, float]:
    assert mix.judged is not None
    found = Doubt.of(mix.judged).uncertain
    both = (found & data.flipped).sum()
    return float(both / found.sum()), float(both / data.flipped.sum())


def test_row_190_mislabelled_digits_are_found_and_the_others_learned_better() -> None:
    mix = SelectMix(start_epoch=1)
    ours, data = scores(0, 8, [mix])
    precision, recall = precision_and_recall(mix, data)
    plain, _ = scores(0, 8, [])

    assert precision > 0.85
    assert recall > 0.7
    assert ours > plain + 0.02


@pytest.mark.slow
def test_row_190_over_three_seeds_it_beats_plain_cross_entropy_on_mislabelled_digits() -> None:
    gains = []
    for seed in range(3):
        mix = SelectMix(start_epoch=1)
        ours, data = scores(seed, 16, [mix])
        precision, recall = precision_and_recall(mix, data)
        gains.append(ours - scores(seed, 16, [])[0])

        assert precision > 0.85
        assert recall > 0.7
    assert min(gains) > 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k_folds": 1}, r"^SelectMix: k_folds is 1; give a whole number of at least 2\.$"),
        ({"confidence_threshold": 1.5}, r"^SelectMix: confidence_threshold is 1\.5; give a number from 0 to 1\.$"),
        ({"alpha": -1.0}, r"^SelectMix: alpha is -1\.0; give a finite number of at least 0\.$"),
        ({"start_epoch": -1}, r"^SelectMix: start_epoch is -1; give a whole number of at least 0\.$"),
        ({"refresh_every": 0}, r"^SelectMix: refresh_every is 0; give a whole number of at least 1\.$"),
        ({"probabilities": "nowhere.npy"}, r"^SelectMix: nowhere.npy could not be read as probabilities \("),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectMix(**settings)


def test_a_file_of_other_samples_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    images, labels, probabilities = flipped()
    module = Reading()
    mix = SelectMix(probabilities=written(tmp_path, probabilities[:50]), start_epoch=9)
    with pytest.raises(
        ValueError, match=r"npy has probabilities of 50 samples, and the training set has 58; give those"
    ):
        fit(module, [mix], shuffled(images, labels))
    assert not module.seen


def test_a_module_without_forward_is_asked_for_the_part_that_has_one() -> None:
    class Steps(Plain):
        forward = LightningModule.forward

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

    images, labels, _ = flipped()
    with pytest.raises(
        ValueError, match=r"^SelectMix: Steps has no forward of images to ask for features; name with ne"
    ):
        fit(Steps(), [SelectMix()], shuffled(images, labels))
    fit(Steps(), [SelectMix(network="network", k_folds=2)], shuffled(images, labels))


def test_labels_that_are_no_classes_are_refused() -> None:
    images, _, probabilities = flipped()
    message = (
        r"^SelectMix: it needs a class for each training image, and the batches have no whole numbers \(B,\) as la"
    )
    with pytest.raises(ValueError, match=message):
        fit(Plain(), [SelectMix(start_epoch=0)], shuffled(images, probabilities))


@pytest.mark.parametrize(("unknown", "start"), [(-1, 0), (-100, 0), (-1, 9)])
@pytest.mark.parametrize("given", [False, True], ids=["cross validated", "a file"])
def test_labels_of_unknown_classes_are_refused_at_the_first_batch(
    unknown: int, start: int, given: bool, tmp_path: Path
) -> None:
    images, labels, probabilities = flipped()
    module = Reading()
    path = written(tmp_path, probabilities) if given else None
    message = f"^SelectMix: a label is {unknown}, which is no class, and it judges each training sample by its class; l"
    with pytest.raises(ValueError, match=message):
        fit(module, [SelectMix(probabilities=path, start_epoch=start)], shuffled(images, labels.clamp(max=8) + unknown))
    assert not module.seen


def test_a_file_of_fewer_classes_is_refused_at_set_up_or_with_the_first_label_beyond(tmp_path: Path) -> None:
    images, labels, probabilities = flipped()
    path, module, knows = written(tmp_path, probabilities[:, :4].softmax(1)), Reading(), Reading()
    knows.num_classes = 10  # type: ignore[assignment]  # of nobody but the callback
    message = (
        r"^SelectMix: .*npy has probabilities of 4 classes, and num_classes is 10; give a column for each class\.$"
    )
    with pytest.raises(ValueError, match=message):
        fit(knows, [SelectMix(probabilities=path)], shuffled(images, labels))
    with pytest.raises(
        ValueError, match=r"^SelectMix: a label is \d, and there are probabilities of 4 classes, 0 to 3;"
    ):
        fit(module, [SelectMix(probabilities=path, start_epoch=9)], shuffled(images, labels))
    assert not module.seen


@pytest.mark.parametrize("start", [0, 9])
def test_images_of_bytes_are_refused_by_name(start: int) -> None:
    class Converts(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0] / 255, batch[1]), batch_idx)

    images, labels, _ = flipped()
    with pytest.raises(ValueError, match=r"^SelectMix: images are uint8, and floating-point ones are asked for featu"):
        fit(Converts(), [SelectMix(start_epoch=start)], shuffled(images.mul(255).byte(), labels))
