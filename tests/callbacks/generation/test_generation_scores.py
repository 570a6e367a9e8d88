"""Scores equal torchmetrics' and are those of the images that pass by and of the numbered ones that the module makes.

Distances and shares themselves are proved in `test_scores.py`, how images are made and gathered in
`hooks/test_scoring.py`, that training sees nothing of it in `conformance/`.
"""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_vision.callbacks import EMA, GenerationScores, manifold_scores, score_features
from support.data import labelled_images, plain_loader
from support.makers import Maker
from support.modules import Samples
from support.trainers import quiet_trainer

NAMES = {"fid", "kid", "precision", "recall", "density", "coverage"}


class Same(nn.Module):
    """Features are what it is given."""

    num_features = 6

    def forward(self, rows):
        return rows.flatten(1)


def clouds(real=90, made=70):
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=random, dtype=torch.float64)
    draw = [torch.randn(count, 6, generator=random, dtype=torch.float64) for count in (real, made)]
    return draw[0] @ mixed, draw[1] @ mixed + 0.3


def scored(module, callback, images=90, callbacks=()):
    trainer = quiet_trainer(callbacks=[callback, *callbacks], max_epochs=1, limit_train_batches=2)
    trainer.fit(module, plain_loader(12), plain_loader(images))
    return {name: float(it) for name, it in trainer.callback_metrics.items() if name.rpartition("/")[2] in NAMES}


def test_the_frechet_distance_is_torchmetrics():
    (real, made), theirs = clouds(), FrechetInceptionDistance(feature=Same())
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True), theirs.update(made, real=False)

    assert score_features(real, made)["fid"] == pytest.approx(float(theirs.compute()), rel=1e-9)
    # The mutant leaves the mean out.
    assert score_features(real, made - made.mean(0) + real.mean(0))["fid"] < 0.9 * float(theirs.compute())


@pytest.mark.parametrize(("size", "subsets"), [(20, 5), (50, 3)])
def test_the_kernel_distance_is_torchmetrics(size, subsets):
    (real, made), theirs = clouds(), KernelInceptionDistance(feature=Same(), subsets=subsets, subset_size=size)
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True), theirs.update(made, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = float(theirs.compute()[0])
    found = score_features(real, made, kid_subsets=subsets, kid_subset_size=size, seed=3)["kid"]

    assert found == pytest.approx(expected, rel=1e-9)
    assert score_features(real, made, kid_subsets=subsets, kid_subset_size=size, seed=4)["kid"] != pytest.approx(found)
    # A kernel is no distance: it has an origin.
    assert score_features(real - 1, made - 1, kid_subsets=subsets, kid_subset_size=size, seed=3)["kid"] != found


def test_the_four_shares_are_those_of_balls_around_images():
    real, made = clouds()
    found, expected = score_features(real, made, k=3), vars(manifold_scores(real, made, 3))

    assert {name: found[name] for name in expected} == expected
    assert found["precision"] != found["recall"] and score_features(real, made, k=4)["coverage"] != found["coverage"]


def test_of_few_images_what_can_be_told_is_told_where_that_is_allowed():
    few = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    with pytest.raises(
        ValueError, match=r"^there are 4 real and 4 made images, and with 5 neighbours each needs 6; gi"
    ):
        score_features(few, few)
    with pytest.raises(
        ValueError, match=r"^there are 6 real and 90 made images and 6 features, whose covariance needs 7"
    ):
        score_features(few[[0, 1, 2, 3, 0, 1]], clouds()[0].float(), k=2)

    assert set(score_features(few, few, allow_few=True)) == {"fid", "kid"}
    assert set(score_features(few, few, k=2, allow_few=True)) == NAMES


def test_what_is_logged_is_the_score_of_the_first_real_images_and_of_the_numbered_made_ones():
    module = Maker(scale=1.3)
    found = scored(module, GenerationScores(samples=70, real=80, seed=2, kid_subsets=4, kid_subset_size=40))
    images, labels = labelled_images(90).tensors
    made = Maker(scale=module.scale.item()).sample(70, labels[:70], seed=2)
    expected = score_features(images[:80].flatten(1), made.flatten(1), 5, 4, 40, 2)

    assert found == {f"val/{name}": pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in expected.items()}
    wrong = score_features(images[10:].flatten(1), made.flatten(1), 5, 4, 40, 2)
    assert abs(wrong["fid"] - expected["fid"]) > 1e-2


def test_images_that_are_like_the_real_ones_score_better():
    good, shifted = (scored(Maker(scale), GenerationScores(samples=90)) for scale in (1.0, 2.0))

    assert good["val/fid"] < 0.5 * shifted["val/fid"] and good["val/kid"] < shifted["val/kid"]
    assert good["val/coverage"] > shifted["val/coverage"]


def test_they_have_the_labels_of_the_real_ones_so_that_classes_have_the_same_shares():
    module, loader = Maker(), plain_loader(30)
    loader.dataset.tensors[1][3] = -100
    quiet_trainer(callbacks=[GenerationScores(samples=40, allow_few=True)]).validate(module, loader, verbose=False)
    known = [it for it in loader.dataset.tensors[1].tolist() if it >= 0]

    assert torch.cat([it["label"] for it in module.asked]).tolist() == (known + known)[:40]


def test_a_module_without_classes_is_given_no_labels():
    module = Maker(num_classes=0)
    scored(module, GenerationScores(samples=70, batch_size=40))

    assert {it["label"] for it in module.asked} == {None}
    # The sanity check makes a few.
    assert [(it["count"], it["first"]) for it in module.asked] == [(40, 0), (40, 0), (30, 40)]


def test_a_line_says_what_numbers_were_taken_of(capsys):
    ema = EMA(decay=0.5)
    trainer = quiet_trainer(callbacks=[ema, GenerationScores(samples=66)], max_epochs=1, limit_train_batches=2)
    trainer.fit(Maker(), plain_loader(12), plain_loader(90))
    trained = capsys.readouterr().out
    quiet_trainer(callbacks=[GenerationScores(samples=66, seed=3)]).test(Maker(), plain_loader(72), verbose=False)

    assert trained.splitlines() == [
        "val: 66 made images (seed 0, weights averaged by EMA, 7 network calls an image) beside 66 real ones, by pixels"
    ]
    assert capsys.readouterr().out.splitlines() == [
        "test: 66 made images (seed 3, weights as trained, 7 network calls an image) beside 66 real ones, by pixels"
    ]


def test_scored_are_the_averaged_weights():
    def run(*callbacks):
        module = Maker()
        return scored(module, GenerationScores(samples=70), callbacks=callbacks)["val/fid"], module.scale.item()

    # After the fit the module holds the average.
    (plain, raw), (ours, average) = run(), run(EMA(decay=0.5))
    again = quiet_trainer(callbacks=[GenerationScores(samples=70)])

    assert abs(raw - average) > 1e-3 and plain != pytest.approx(ours, rel=1e-3)
    assert again.validate(Maker(average), plain_loader(90), verbose=False)[0]["val/fid"] == pytest.approx(
        ours, rel=1e-5
    )


@pytest.mark.parametrize("kind", [Maker, Samples])
def test_two_processes_score_what_one_does(kind, two_ranks):
    def scores(rank, world):
        torch.manual_seed(0)
        val = DataLoader(Subset(labelled_images(91), range(rank, 91, world)), 8)
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False} if world == 2 else {}
        callback = GenerationScores(samples=85, kid_subset_size=50, kid_subsets=4)
        trainer = quiet_trainer(callbacks=[callback], **options)
        trainer.validate(kind(), val, verbose=False)
        return {name: float(it) for name, it in trainer.callback_metrics.items() if name != "val/loss"}

    left, right = two_ranks(lambda: scores(torch.distributed.get_rank(), 2))

    assert len(left) == 6
    assert left == right == {name: pytest.approx(value, rel=1e-6, abs=1e-7) for name, value in scores(0, 1).items()}


def test_too_few_images_are_refused_before_the_first_step():
    module = Maker()
    with pytest.raises(ValueError) as caught:
        scored(module, GenerationScores(samples=100), images=60)

    assert str(caught.value) == (
        "GenerationScores: there are 60 real and 100 made images and 64 features, whose covariance needs 65 images; "
        "give more images with samples= and real=, or say with allow_few=True that numbers are compared within this "
        "run alone."
    )
    assert module.trainer.global_step == 0
    assert set(scored(Maker(), GenerationScores(samples=100, allow_few=True), images=60)) == {
        f"val/{it}" for it in NAMES
    }


def test_with_a_name_numbers_have_it_too():
    assert "val/pixels/fid" in scored(Maker(), GenerationScores(samples=70, name="pixels"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples is 1; give a whole number of at least 2."),
        ({"real": 1}, "real is 1; give a whole number of at least 2."),
        ({"batch_size": 0}, "batch_size is 0; give a whole number of at least 1."),
        ({"neighbours": 0}, "neighbours is 0; give a whole number of at least 1."),
        ({"kid_subsets": 0}, "kid_subsets is 0; give a whole number of at least 1."),
        ({"kid_subset_size": 1}, "kid_subset_size is 1; give a whole number of at least 2."),
        ({"allow_few": 1}, "allow_few is 1; give True or False."),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0."),
        ({"weights": "a.pth"}, "weights is 'a.pth', a file for features='inception'; leave it out."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        GenerationScores(**settings)

    assert str(caught.value) == f"GenerationScores: {message}"
