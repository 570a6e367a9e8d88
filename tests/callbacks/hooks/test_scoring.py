"""Images are made by number, on any rank, and compared with the first real ones, which a file can hold."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_vision.callbacks.hooks._shares import shares
from lightning_vision.callbacks.hooks.making import Making
from lightning_vision.callbacks.hooks.scoring import Scoring
from support.data import labelled_images, plain_loader
from support.makers import Maker
from support.modules import Featured, Samples
from support.trainers import quiet_trainer


class Keeps(Scoring):
    """Keeps what it is given to score."""

    def __init__(self, **settings):
        plain = {"samples": 20, "real": None, "features": None, "weights": None, "statistics": None, "batch_size": 8}
        super().__init__(
            **plain | {"image_key": "image", "target_key": "target", "seed": 0, "every_n_epochs": 1} | settings
        )
        self.given, self.asked = [], []

    def refuse(self, real, made, width):
        self.asked.append((real, made, width))

    def score(self, real, made):
        self.given.append((real, made))
        return {"sum": float(made.sum())}


def fitted(module, callback, images=25, epochs=1, **options):
    plain = {"max_epochs": epochs, "limit_train_batches": 2, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(callbacks=[callback], **plain | options)
    trainer.fit(module, plain_loader(12), plain_loader(images))
    return trainer


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(("count", "size", "world"), [(20, 8, 1), (20, 8, 3), (5, 1, 2), (2, 8, 3), (64, 8, 4)])
def test_every_number_is_made_once_whatever_the_ranks(count, size, world, even):
    dealt = [shares(count, size, rank, world, even) for rank in range(world)]
    numbers = [[number for piece in pieces for number in piece] for pieces in dealt]

    assert sorted(number for them in numbers for number in them) == list(range(count))
    assert all(len(piece) <= size for pieces in dealt for piece in pieces)
    assert not even or max(map(len, numbers)) - min(map(len, numbers)) <= 1
    # Which images are made together is nothing that the number of ranks decides.
    assert even or {piece for pieces in dealt for piece in pieces} == set(shares(count, size, 0, 1, False))


def test_real_are_the_first_images_and_made_the_first_numbers():
    callback = Keeps(real=15)
    trainer = fitted(Maker(), callback)
    (real, made), (images, labels) = callback.given[0], labelled_images(25).tensors
    scale = trainer.lightning_module.scale.item()

    assert torch.equal(real, images[:15].flatten(1))
    assert torch.allclose(made, Maker(scale).sample(20, [*labels[:15], *labels[:5]]).flatten(1))
    assert callback.asked == [(15, 20, 64)]
    assert float(trainer.callback_metrics["val/sum"]) == pytest.approx(float(made.sum()), rel=1e-5)


def test_a_sanity_check_makes_a_few_asks_for_all_and_logs_nothing():
    callback = Keeps(samples=22, real=24)
    trainer = fitted(Maker(), callback, num_sanity_val_steps=1, max_steps=0)

    assert callback.asked == [(24, 22, 64)]
    assert [(len(real), len(made)) for real, made in callback.given] == [(6, 8)]
    assert "val/sum" not in trainer.callback_metrics


def test_each_validation_of_a_stranger_sees_images_of_the_same_draws():
    class Noise(Featured):
        def sample(self, count):
            return torch.randn(count, 1, 8, 8)

    callback = Keeps()
    fitted(Noise(), callback, epochs=2)
    (_, first), (_, second) = callback.given

    assert torch.equal(first, second)
    # Pieces of one seed are not alike.
    assert not torch.equal(first[:8], first[8:16])


def test_two_ranks_score_what_one_process_scores(two_ranks):
    def run(kind, rank, world):
        torch.manual_seed(0)
        callback, module = Keeps(real=21), kind()
        val = DataLoader(Subset(labelled_images(25), range(rank, 25, world)), 4)
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False} if world == 2 else {}
        trainer = quiet_trainer(callbacks=[callback], **options)
        trainer.validate(module, val, verbose=False)
        return [it.tolist() for it in callback.given[0]] if callback.given else [], trainer.callback_metrics["val/sum"]

    def on_a_rank():
        return [run(kind, torch.distributed.get_rank(), 2) for kind in (Maker, Samples)]

    left, right = two_ranks(on_a_rank)
    for kind, (given, total), (others, same) in zip((Maker, Samples), left, right, strict=True):
        (real, made), alone = run(kind, 0, 1)

        # One rank computes, both know.
        assert others == [] and float(total) == float(same) == pytest.approx(float(alone), rel=1e-6)
        assert torch.equal(torch.tensor(given[0]), torch.tensor(real)) and len(real) == 21
        assert torch.allclose(torch.tensor(given[1]), torch.tensor(made), atol=1e-6)


def test_a_refusal_of_the_first_rank_is_everybodys(two_ranks, tmp_path):
    def run():
        (tmp_path / "real.safetensors").write_bytes(b"no such file")
        val = DataLoader(labelled_images(8), 4)
        callback = Keeps(statistics=str(tmp_path / "real.safetensors"))
        trainer = quiet_trainer(callbacks=[callback], strategy="ddp", devices=2)
        try:
            trainer.validate(Maker(), val, verbose=False)
        except ValueError as error:
            return str(error)

    left, right = two_ranks(run)

    assert left == right and left.startswith("Keeps: statistics ") and "no safetensors file" in left


def test_a_file_holds_the_real_ones_for_later_runs(tmp_path):
    path = tmp_path / "new" / "real.safetensors"
    first, second = Keeps(statistics=str(path)), Keeps(statistics=str(path), real=9)
    fitted(Maker(), first, epochs=2)
    quiet_trainer(callbacks=[second]).test(Maker(), plain_loader(12, shuffle=True), verbose=False)

    assert all(torch.equal(real, labelled_images(25).tensors[0][:20].flatten(1)) for real, _ in first.given)
    assert torch.equal(second.given[0][0], first.given[0][0][:9])
    assert [it.name for it in path.parent.iterdir()] == ["real.safetensors"]
    # With their labels.
    assert torch.equal(
        second.given[0][1], Maker().sample(20, (labelled_images(25).tensors[1][:9].tolist() * 3)[:20]).flatten(1)
    )


def test_a_file_of_other_features_is_refused_before_the_first_step(tmp_path):
    path = str(tmp_path / "real.safetensors")
    fitted(Maker(), Keeps(statistics=path))
    module, flat = Maker(), nn.Flatten()
    with pytest.raises(ValueError) as caught:
        fitted(module, Keeps(statistics=path, features=flat), num_sanity_val_steps=1)

    assert str(caught.value).startswith(
        f"Keeps: statistics {path!r} were taken with features pixels, here there are fea"
    )
    assert str(caught.value).endswith("; name another file, or delete this one to have it written anew.")
    assert module.trainer.global_step == 0


class Answers(Featured):
    """Answers what it is told to."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def sample(self, count):
        return self.answer(count)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda count: torch.zeros(count, 1, 8), r"sample\(8\) of Answers answered \(8, 1, 8\); let it return images"),
        (
            lambda count: torch.zeros(3, 1, 8, 8),
            r"sample\(8\) of Answers answered \(3, 1, 8, 8\); let it return images",
        ),
        (lambda count: [1], r"sample\(8\) of Answers answered a list; let it return images \(count, C, H, W\)\.$"),
        (
            lambda count: torch.zeros(count, 1, 8, 8).byte(),
            r"answered torch\.uint8; let it return floating-point images",
        ),
        (
            lambda count: torch.zeros(count, 1, 9, 8),
            r"Answers makes images \(1, 9, 8\) and the real ones are \(1, 8, 8\)",
        ),
    ],
)
def test_what_are_no_images_is_refused_in_the_sanity_check(answer, message):
    with pytest.raises(ValueError, match=message):
        fitted(Answers(answer), Keeps(), num_sanity_val_steps=1)


def test_a_module_that_makes_no_images_is_refused_at_set_up():
    with pytest.raises(ValueError) as caught:
        fitted(Featured(), Keeps())

    assert str(caught.value) == (
        "Keeps: Featured has no sample(count), so it makes no images; give it a method of that name which returns "
        "normalised images (count, C, H, W), or leave this callback out."
    )


def test_real_images_that_are_bytes_are_refused():
    loader = plain_loader(12)
    loader.dataset.tensors = (loader.dataset.tensors[0].byte(), loader.dataset.tensors[1])

    class Bytes(Maker):
        def validation_step(self, batch, batch_idx):
            pass

    with pytest.raises(ValueError, match=r"^Keeps: a batch holds torch\.uint8 \(6, 1, 8, 8\) where normalised images"):
        quiet_trainer(callbacks=[Keeps()]).validate(Bytes(), loader, verbose=False)


def test_what_is_not_finite_is_told_and_the_training_goes_on():
    callback = Keeps()
    with pytest.warns(UserWarning, match="Keeps: some features are not finite, so nothing was scored"):
        trainer = fitted(Maker(float("nan")), callback)

    assert trainer.global_step == 2 and callback.given == [] and "val/sum" not in trainer.callback_metrics


def test_a_rehearsal_scores_a_few():
    callback = Keeps()
    trainer = fitted(Maker(), callback, fast_dev_run=True)

    assert callback.asked == [] and [(len(real), len(made)) for real, made in callback.given] == [(6, 8)]
    assert "val/sum" in trainer.callback_metrics


def test_a_fit_without_a_validation_is_told():
    with pytest.warns(UserWarning, match="Keeps: no validation was scored in this fit, so there is no number"):
        fitted(Maker(), Keeps(), limit_val_batches=0)


def test_only_what_a_module_names_is_given_to_it():
    asked = []

    class Seeded(Featured):
        def sample(self, count, seed):
            asked.append((count, seed))
            return torch.zeros(count, 1, 8, 8)

    fitted(Seeded(), Keeps(seed=5))

    assert asked == [(8, 5), (8, 13), (4, 21)]
    assert not Making.numbered(Seeded()) and Making.numbered(Maker())
