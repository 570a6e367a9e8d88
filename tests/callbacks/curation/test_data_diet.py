"""Data diet: EL2N by hand, GraNd against autograd and a closed form, wrong labels found, a loop written out."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler, get_worker_info

from lightning_vision.callbacks import DataDiet
from lightning_vision.callbacks.curation.scores import el2n, grand, hardest_samples, read_scores, write_scores
from lightning_vision.datamodules import Digits
from support.compare import distance
from support.data import labelled_images, plain_loader
from support.modules import Plain, small_network
from support.trainers import quiet_trainer

from .conftest import SAMPLES, in_sixes, loop


def test_row_92_el2n_by_hand() -> None:
    """Shares 1/2, 1/4, 1/4 and a right label: sqrt(1/4 + 1/16 + 1/16); a wrong one: sqrt(1/4 + 9/16 + 1/16)."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log().expand(2, 3)

    assert torch.allclose(el2n(logits, torch.tensor([0, 1])), torch.tensor([6.0, 14.0]).sqrt() / 4)


def test_el2n_of_soft_labels_is_that_of_their_classes() -> None:
    logits, classes = torch.randn(5, 10), torch.arange(5)

    assert torch.equal(el2n(logits, F.one_hot(classes, 10).float()), el2n(logits, classes))


@pytest.mark.parametrize("last", [False, True])
def test_row_92_grand_equals_a_loop_of_autograd(last: bool) -> None:
    torch.manual_seed(0)
    network = small_network().eval()
    images, targets = labelled_images(7)[:]
    weights = list(network[-1].parameters()) if last else list(network.parameters())
    expected = []
    for image, target in zip(images, targets, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(network(image[None]), target[None]), weights)
        expected.append(torch.cat([it.flatten() for it in gradients]).norm())

    assert torch.allclose(grand(network, images, targets, last), torch.stack(expected), rtol=1e-5)


def test_row_92_grand_of_a_linear_network_has_a_closed_form() -> None:
    """The gradient is (p - y) [x, 1]^T, whose norm is EL2N sqrt(||x||^2 + 1)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images, targets = labelled_images(7)[:]

    expected = el2n(network(images), targets) * (images.flatten(1).square().sum(1) + 1).sqrt()
    assert torch.allclose(grand(network, images, targets), expected, rtol=1e-5)


def test_grand_in_parts_is_grand(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = small_network().eval()
    images, targets = labelled_images(7)[:]
    whole_batch = grand(network, images, targets)
    monkeypatch.setattr("lightning_vision.callbacks.curation.scores._AT_ONCE", 900)

    assert torch.allclose(grand(network, images, targets), whole_batch, rtol=1e-6)


@pytest.mark.parametrize(("keep", "drop"), [(0.5, 0.0), (0.3, 0.1), (0.01, 0.0), (1.0, 0.0)])
def test_row_92_exactly_round_f_n_samples_are_kept(keep: float, drop: float) -> None:
    scores = torch.rand(101, generator=torch.Generator().manual_seed(0))
    kept = hardest_samples(scores, keep, drop)

    assert len(kept) == round(keep * 101)
    above = (scores > scores[kept].max()).sum()
    assert above == round(drop * 101) and (scores > scores[kept].min()).sum() == above + len(kept) - 1


def with_flips() -> tuple[TensorDataset, Tensor]:
    """600 digits, of which a tenth have another label, and which."""
    data = Digits()
    data.setup("fit")
    fetched = data.train_set.fetch(torch.arange(600))
    generator = torch.Generator().manual_seed(0)
    flipped = torch.rand(600, generator=generator) < 0.1
    shift = torch.randint(1, 10, (600,), generator=generator)
    targets = torch.where(flipped, (fetched.target + shift) % 10, fetched.target)
    return TensorDataset(data.normalise(fetched.image), targets), flipped


@pytest.mark.parametrize("score", ["el2n", "grand"])
def test_row_92_wrong_labels_rank_among_the_top_scores(score: str, tmp_path: Path) -> None:
    samples, flipped = with_flips()
    seed_everything(0, verbose=False)
    diet = DataDiet(1.0, score, score_epoch=4)
    trainer = quiet_trainer(max_epochs=5, callbacks=[diet], default_root_dir=tmp_path)
    trainer.fit(Plain(dropout=0.0), DataLoader(samples, 16, shuffle=True))

    assert roc_auc_score(flipped, diet.found) > 0.9
    assert torch.equal(read_scores([tmp_path / "report" / "data_diet.csv"]), diet.found)


def by_hand(keep: int) -> Any:
    """The loop's choice: after two epochs the samples of largest error, asked in evaluation mode."""
    scores: list[Tensor] = []

    def chooses(module: Plain) -> Any:
        images, targets = labelled_images(SAMPLES).tensors

        def batches(epoch: int, losses: Tensor, every: list[list[int]]) -> list[list[int]]:
            if epoch < 2:
                return every
            if not scores:
                module.eval()
                shares = module.network(images).softmax(1)
                module.train()
                scores.append((shares - F.one_hot(targets, 10)).square().sum(1).sqrt())
            order = scores[0].argsort(descending=True).tolist()
            return in_sixes(sorted(order[:keep] if keep > 0 else order[keep:]))

        return batches

    return chooses


@pytest.mark.parametrize("keep", [14, -14], ids=["as the paper", "a mutant that keeps the easiest"])
def test_training_equals_a_loop_written_by_hand(keep: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = Plain(dropout=0.0)
    theirs = deepcopy(ours)
    diet = DataDiet(keep_fraction=14 / SAMPLES, score_epoch=2)
    trainer = quiet_trainer(max_epochs=6, callbacks=[diet], limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(ours, plain_loader(SAMPLES))
    loop(theirs, by_hand(keep)(theirs), 6)

    difference = distance(ours.state_dict(), theirs.state_dict())
    assert difference == 0.0 if keep > 0 else difference > 1e-3


def trained(diet: DataDiet, folder: Path, **options: Any) -> Trainer:
    trainer = quiet_trainer(max_epochs=2, callbacks=[diet], default_root_dir=folder, **options)
    trainer.fit(Plain(), plain_loader(SAMPLES))
    return trainer


def test_files_of_other_runs_are_meant_and_leave_samples_out_at_once(tmp_path: Path) -> None:
    first, second = torch.rand(2, SAMPLES, generator=torch.Generator().manual_seed(0))
    files = [str(tmp_path / "0.csv"), str(tmp_path / "1.csv")]
    for file, scores in zip(files, (first, second), strict=True):
        write_scores(Path(file), scores)
    diet = DataDiet(0.4, score_files=files)
    trainer = trained(diet, tmp_path)

    assert DataDiet(score_files=files[0]).score_files == (files[0],)
    assert torch.allclose(diet.found, (first + second) / 2) and trainer.global_step == 2 * 2
    assert not (tmp_path / "report").exists()


def test_files_of_other_data_are_refused_before_the_first_batch(tmp_path: Path) -> None:
    write_scores(tmp_path / "0.csv", torch.rand(5))
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")

    with pytest.raises(
        ValueError, match=r"^DataDiet: there are scores of 5 samples, and the training set has 29; give"
    ):
        trained(DataDiet(score_files=[str(tmp_path / "0.csv")]), tmp_path)
    for name in ("1.csv", "2.csv"):
        with pytest.raises(ValueError, match=f"^DataDiet: .*{name} cannot be read as scores of samples"):
            trained(DataDiet(score_files=[str(tmp_path / name)]), tmp_path)


def test_what_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^DataDiet: keep_fraction=0.5 and drop_top_fraction=0.6 keep none .*; give"):
        DataDiet(0.5, drop_top_fraction=0.6)
    with pytest.raises(ValueError, match=r"^DataDiet: score is 'loss'; give 'el2n' or 'grand'"):
        DataDiet(score="loss")  # type: ignore[arg-type]  # as a YAML may


def test_a_network_without_a_last_layer_says_so() -> None:
    with pytest.raises(ValueError, match=r"without nn\.Linear has no last layer"):
        grand(nn.Flatten(), torch.ones(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), last_layer_only=True)


def test_the_last_layer_is_the_one_called_last_not_the_one_registered_last() -> None:
    torch.manual_seed(0)
    images, targets = labelled_images(7)[:]
    module = Plain(dropout=0.0).eval()
    expected = grand(module, images, targets, last_layer_only=True)
    module.auxiliary = nn.Linear(4, 10)

    assert torch.equal(grand(module, images, targets, last_layer_only=True), expected) and expected.min() > 0


class Other(Plain):
    """Answers and labels of another kind than `Plain`'s.

    Args:
        answer: Of the logits `(B, 10)`.
        label: Of the classes `(B,)`.
    """

    def __init__(self, answer: Any = lambda it: it, label: Any = lambda it: it) -> None:
        super().__init__(dropout=0.0)
        self.answer, self.label = answer, label

    def forward(self, images: Tensor) -> Any:
        return self.answer(super().forward(images))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.asked = self.network(batch[0])
        return self.asked.square().mean()

    def train_dataloader(self) -> Any:
        images, targets = labelled_images(SAMPLES).tensors
        return DataLoader(TensorDataset(images, self.label(targets)), 6)


@pytest.mark.parametrize("score", ["el2n", "grand"])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: Other(lambda it: it[:, :1]), r"Other answers \(6, 1\) to a batch of 6 and not logits \(6, K\) of two"),
        (lambda: Other(lambda it: {"logits": it}), "Other answers dict to a batch of 6 and not logits"),
        (lambda: Other(label=lambda it: it[:, None]), r"labels of these logits are classes, int64 \(6,\), .* \(6, 1\)"),
        (lambda: Other(label=lambda it: it.float()), r"labels of these logits .* \(6,\) torch.float32; say"),
        (
            lambda: Other(label=lambda it: it - 100),
            "labels reach from -100 to -[0-9]*, and the classes of Other from 0",
        ),
        (lambda: Other(label=lambda it: F.one_hot(it, 10) * 2), r"labels \(6, 10\) are no shares of classes, for not"),
    ],
    ids=["one logit", "dict", "column", "floats", "ignored", "several classes"],
)
def test_what_is_no_classification_is_refused_before_the_first_batch(module: Any, said: str, score: Any) -> None:
    module = module()
    with pytest.raises(ValueError, match=f"^DataDiet: {said}"):
        quiet_trainer(max_epochs=3, callbacks=[DataDiet(score=score, score_epoch=2)], limit_val_batches=0).fit(module)

    assert not hasattr(module, "asked")


def test_a_module_without_a_forward_is_refused_before_the_first_batch() -> None:
    class Steps(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        configure_optimizers = Plain.configure_optimizers

    for network in ("", "network"):
        trainer = quiet_trainer(max_epochs=3, callbacks=[DataDiet(score_epoch=2, network=network)])
        with nullcontext() if network else pytest.raises(ValueError, match=r"^DataDiet: Steps has no forward of im"):
            trainer.fit(Steps(), plain_loader(SAMPLES))
        assert trainer.global_step == (5 + 5 + 3 if network else 0)


def test_repeated_samples_are_refused_before_the_first_batch_and_may_be_scored() -> None:
    for keep in (0.5, 1.0):
        sampler = WeightedRandomSampler(torch.ones(SAMPLES), SAMPLES)
        loader = DataLoader(labelled_images(SAMPLES), 6, sampler=sampler)
        trainer = quiet_trainer(max_epochs=3, callbacks=[diet := DataDiet(keep, score_epoch=2)])
        refused = pytest.raises(ValueError, match=r"^DataDiet: .*WeightedRandomSampler gives samples more than once")
        with refused if keep < 1 else nullcontext():
            trainer.fit(Plain(), loader)
        assert trainer.global_step == (0 if keep < 1 else 15) and (diet.found is None) == (keep < 1)


class Drawing(TensorDataset):
    """Adds noise of a generator of its own."""

    def __init__(self) -> None:
        super().__init__(*labelled_images(SAMPLES).tensors)
        self.rng = torch.Generator().manual_seed(0)

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image + torch.randn(1, generator=self.rng), target


def test_scoring_leaves_a_dataset_with_a_stream_of_its_own_where_it_was() -> None:
    found = []
    for callbacks in ([], [DataDiet(1.0, score_epoch=1)]):
        torch.manual_seed(0)
        module = Plain(dropout=0.0)
        quiet_trainer(max_epochs=3, callbacks=callbacks, limit_val_batches=0).fit(module, DataLoader(Drawing(), 6))
        found.append(module.state_dict())

    assert distance(*found) == 0.0


class Opened(TensorDataset):
    """Can be read where `open_it` was called, in a worker."""

    def __getitem__(self, index: int) -> Any:
        return self.file[index]


def open_it(worker: int) -> None:
    data = get_worker_info().dataset  # type: ignore[union-attr]  # it is a worker
    data.file = labelled_images(SAMPLES)


def test_samples_of_a_dataset_that_is_opened_in_its_workers_are_scored() -> None:
    loader = DataLoader(Opened(torch.zeros(SAMPLES)), 15, num_workers=1, worker_init_fn=open_it)
    diet = DataDiet(1.0, score_epoch=0)
    quiet_trainer(max_epochs=1, callbacks=[diet], limit_val_batches=0).fit(Plain(), loader)

    assert diet.found is not None and diet.found.isfinite().all()


def test_a_second_fit_of_the_same_trainer_goes_on_with_the_scores_of_the_first(tmp_path: Path) -> None:
    diet = DataDiet(0.5, score_epoch=1)
    trainer, found = trained(diet, tmp_path), diet.found
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Plain(), plain_loader(SAMPLES))

    assert diet.found is found and trainer.global_step == 5 + 3 + 3


def test_a_training_that_ends_before_samples_are_scored_is_warned_about(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"^DataDiet: score_epoch=10 comes after the last of 2 epochs, .*; give a small"
    ):
        trained(DataDiet(), tmp_path)


def test_a_score_that_nobody_has_is_the_lowest() -> None:
    assert hardest_samples(torch.tensor([0.2, float("nan"), 0.1]), 0.67).tolist() == [0, 2]


@pytest.mark.parametrize("last", [False, True])
def test_grand_is_that_of_single_precision_where_training_is_mixed(last: bool, tmp_path: Path) -> None:
    diet = DataDiet(1.0, "grand", score_epoch=0, last_layer_only=last)
    torch.manual_seed(0)
    module = Plain(dropout=0.0)
    expected = grand(deepcopy(module.network).eval(), *labelled_images(SAMPLES)[:], last)
    trainer = quiet_trainer(max_epochs=1, callbacks=[diet], precision="bf16-mixed", default_root_dir=tmp_path)
    trainer.fit(module, plain_loader(SAMPLES))

    assert torch.allclose(diet.found, expected, rtol=1e-5)
