"""The same few samples are drawn after each validation, for files and loggers, and the run sees nothing of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from lightning_vision.callbacks import EMA
from lightning_vision.callbacks.hooks._metadata import class_names, normalised_by
from lightning_vision.callbacks.hooks.pictures import Pictures
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.resuming import record
from support.trainers import quiet_trainer


class Toy(Pictures):
    """Notes samples and weights; a picture is grey by the step."""

    title = "toy"

    def __init__(self, samples=5, every_n_epochs=1, image_key="image", target_key="target", name=None):
        fields = {"image_key": image_key, "target_key": target_key}
        super().__init__(samples=samples, **fields, every_n_epochs=every_n_epochs, name=name)
        self.drawn, self.weights = [], []

    def draw(self, pl_module, samples):
        self.drawn.append(samples)
        self.weights.append(pl_module.network[0].weight.detach().clone())
        return {"": np.full((8, 8, 3), len(self.drawn), dtype=np.uint8)}


class Forgetful(Toy):
    """Chooses anew each time."""

    def epoch_ends(self, trainer, pl_module, stage):
        super().epoch_ends(trainer, pl_module, stage)
        self._fixed.clear()


class Rude(Toy):
    """Leaves gradients, modes, hooks, statistics, draws and numbers behind."""

    def draw(self, pl_module, samples):
        pl_module.train()
        pl_module.network[0].register_forward_hook(lambda *_: None)
        images = samples.images.requires_grad_()
        F.cross_entropy(pl_module(images), torch.stack(samples.targets)).backward()
        assert images.grad.abs().sum() > 0
        images.requires_grad_(False)
        pl_module.requires_grad_(False)
        pl_module.log("val/loss", torch.rand(()))
        return super().draw(pl_module, samples)


class Fails(Rude):
    def draw(self, pl_module, samples):
        super().draw(pl_module, samples)
        raise RuntimeError("in the middle")


class FailsInFit(Fails):
    """Not in the sanity check; the second time in a fit it draws."""

    def draw(self, pl_module, samples):
        if pl_module.trainer.sanity_checking or len(self.drawn) == 3:
            return Toy.draw(self, pl_module, samples)
        return super().draw(pl_module, samples)


class Unguarded(Toy):
    def epoch_ends(self, trainer, pl_module, stage):
        with torch.enable_grad():
            pl_module(torch.ones(2, 1, 8, 8)).sum().backward()
        super().epoch_ends(trainer, pl_module, stage)


class Given(Dataset):
    """Batches as they are given."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Blind(Plain):
    """Looks at no batch."""

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step


def fit(callback, val=None, train=None, **options):
    torch.manual_seed(0)
    trainer = quiet_trainer(callbacks=[callback], **{"max_epochs": 3, "limit_train_batches": 3} | options)
    trainer.fit(Plain(), train or plain_loader(), val or plain_loader(30))
    return trainer


def validate(callback, *batches, module=None, **options):
    trainer = quiet_trainer(callbacks=[callback], **options)
    trainer.validate(module or Blind(), DataLoader(Given(*batches), batch_size=None), verbose=False)


def pictures(folder, pattern="*.png"):
    return sorted(it.relative_to(folder).as_posix() for it in folder.rglob(pattern))


@pytest.mark.parametrize(("kind", "same"), [(Toy, True), (Forgetful, False)])
def test_samples_stay_the_same_though_the_loader_shuffles(kind, same):
    callback = kind()
    fit(callback, DataLoader(labelled_images(30), 6, shuffle=True))
    first, second, third = (it.images for it in callback.drawn[1:])

    assert (torch.equal(first, second) and torch.equal(second, third)) is same
    assert len(callback.drawn[1].classes().unique()) == 5


def test_a_sanity_check_draws_and_throws_away(tmp_path):
    callback = Toy(samples=8)
    fit(callback, default_root_dir=tmp_path, max_epochs=1, num_sanity_val_steps=1)
    sanity, first = callback.drawn

    assert (len(sanity.images), len(first.images)) == (6, 8)
    assert pictures(tmp_path) == ["media/val/toy/step_00000003.png"]


def test_a_resumed_run_chooses_the_same_samples_again(tmp_path):
    straight, resumed = Toy(), Toy()
    trainer = fit(straight, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = quiet_trainer(callbacks=[resumed], max_epochs=3, limit_train_batches=3)
    again.fit(Plain(), plain_loader(), plain_loader(30), ckpt_path=tmp_path / "last.ckpt", weights_only=True)

    assert torch.equal(resumed.drawn[-1].images, straight.drawn[-1].images)
    assert resumed.state_dict() == {}


@pytest.mark.parametrize(("call", "stage"), [("validate", "val"), ("test", "test")])
def test_validate_and_test_draw_in_inference_mode(call, stage, tmp_path):
    callback = Rude(name="mine")
    trainer = quiet_trainer(callbacks=[callback], default_root_dir=tmp_path)
    getattr(trainer, call)(Plain(), plain_loader(18), verbose=False)

    assert pictures(tmp_path) == [f"media/{stage}/mine/step_00000000.png"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_is_drawn_equals_one_that_is_not(precision):
    def run(*callbacks):
        torch.manual_seed(0)
        # Validation falls into an accumulation window, whose gradients wait.
        options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "max_epochs": 2, "precision": precision}
        done = record(Plain(), lambda: (plain_loader(30), plain_loader(18)), callbacks, **options)
        return torch.cat([it.flatten() for it in done.state["weights"].values()]), done.rows, torch.rand(1)

    (plain, rows, draw), (drawn, same_rows, same_draw) = run(), run(Rude())
    noticed = run(Unguarded())

    assert torch.equal(plain, drawn)
    assert rows == same_rows
    assert torch.equal(draw, same_draw)
    assert (plain - noticed[0]).abs().max() > 1e-3


def test_an_exception_while_drawing_leaves_the_module_clean():
    module = Plain()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the middle"):
        quiet_trainer(callbacks=[Fails()]).validate(module, plain_loader(12), verbose=False)

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(it.requires_grad and it.grad is None for it in module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())
    assert "log" not in vars(module)


def test_what_cannot_be_drawn_while_fitting_is_told_once_and_the_training_goes_on(tmp_path, recwarn):
    callback = FailsInFit()
    trainer = fit(callback, max_epochs=5, default_root_dir=tmp_path)
    module = trainer.lightning_module

    assert (trainer.global_step, len(callback.drawn)) == (15, 6)
    assert pictures(tmp_path) == ["media/val/toy/step_00000009.png"]
    assert [str(it.message) for it in recwarn if "FailsInFit" in str(it.message)] == [
        "FailsInFit: a picture could not be drawn (in the middle); the training goes on without it, and the next one "
        "is tried again."
    ]
    assert all(it.requires_grad for it in module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())


@pytest.mark.parametrize("call", ["validate", "test", "fit"])
def test_what_cannot_be_drawn_is_raised_in_an_evaluation_and_in_the_sanity_check(call):
    trainer = quiet_trainer(callbacks=[Fails()], max_epochs=1)
    with pytest.raises(RuntimeError, match="in the middle"):
        loaders = [plain_loader(12)] * (2 if call == "fit" else 1)
        getattr(trainer, call)(Plain(), *loaders)

    assert trainer.global_step == 0


def test_averaged_weights_are_drawn():
    def run(*callbacks):
        torch.manual_seed(0)
        module, toy = Plain(), Toy()
        options = {"max_epochs": 1, "limit_train_batches": 6, "num_sanity_val_steps": 0}
        quiet_trainer(callbacks=[toy, *callbacks], **options).fit(module, plain_loader(), plain_loader(12))
        return toy.weights[0], module.network[0].weight.detach()

    (plain, trained), (drawn, average) = run(), run(EMA(decay=0.5))

    assert torch.equal(plain, trained)
    # After a fit the average stands in the module.
    assert torch.equal(drawn, average)
    assert not torch.equal(drawn, plain)


def test_two_with_names_write_apart_and_two_alike_are_refused(tmp_path):
    trainer = quiet_trainer(callbacks=[Toy(name="a"), Forgetful(name="b")], default_root_dir=tmp_path)
    trainer.validate(Plain(), plain_loader(12), verbose=False)

    assert pictures(tmp_path) == ["media/val/a/step_00000000.png", "media/val/b/step_00000000.png"]
    with pytest.raises(ValueError) as refusal:
        quiet_trainer(callbacks=[Toy(), Forgetful()]).validate(Plain(), plain_loader(12), verbose=False)

    assert str(refusal.value) == (
        "Toy: Forgetful also calls its pictures 'toy', and they would write the same files; give one of them another "
        "name."
    )
    quiet_trainer(callbacks=[Toy(every_n_epochs=0), Forgetful()]).validate(Plain(), plain_loader(12), verbose=False)


IMAGES = torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        (IMAGES, None),
        ((IMAGES,), None),
        ([IMAGES, torch.tensor([2, 0, 1, 3]), "more"], [0, 1, 2, 3]),
        ({"image": IMAGES, "target": torch.tensor([2, 0, 1, -1])}, None),
        ({"image": IMAGES}, None),
        ((list(IMAGES), [{"labels": torch.tensor([it])} for it in (3, 2, 1, 0)]), [0, 1, 2, 3]),
        ((IMAGES, ["a", "b", "c", "d"]), None),
        ((IMAGES, torch.zeros(4, 8, 8)), None),
    ],
    ids=["tensor", "images alone", "list", "mapping", "no labels", "detection", "words", "masks"],
)
def test_batches_of_every_kind_are_read(batch, labels):
    callback = Toy()
    validate(callback, batch)
    classes = callback.drawn[0].classes()

    assert len(callback.drawn[0].images) == 4
    assert (None if classes is None else classes.tolist()) == labels


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (
            (torch.rand(4, 7), torch.zeros(4)),
            "Toy: a batch holds (4, 7) where images (B, C, H, W), or a list of (C, H, W), are to be drawn; say with "
            "image_key= where they stand.",
        ),
        (
            {"pixels": IMAGES, "target": torch.zeros(4)},
            "Toy: the batch has no images under 'image', its keys are 'pixels', 'target'; say with image_key= which "
            "one holds them.",
        ),
        (
            (["a.png", "b.png"], torch.zeros(2)),
            "Toy: a batch holds () where images (B, C, H, W), or a list of (C, H, W), are to be drawn; say with "
            "image_key= where they stand.",
        ),
    ],
)
def test_batches_without_images_are_refused(batch, sentence):
    with pytest.raises(ValueError) as refusal:
        validate(Toy(), batch)

    assert str(refusal.value) == sentence


def test_a_missing_label_key_is_told(recwarn):
    validate(Toy(target_key="label"), {"image": IMAGES, "target": torch.zeros(4)})

    assert [str(it.message) for it in recwarn if "Toy" in str(it.message)] == [
        "Toy: batches have no labels under 'label', their keys are 'image', 'target'; the pictures show none, unless "
        "target_key= says where they stand."
    ]


def test_images_of_several_sizes_are_chosen_together():
    callback = Toy()
    validate(callback, (torch.rand(2, 3, 8, 8), torch.tensor([0, 1])), (torch.rand(2, 3, 9, 7), torch.tensor([2, 3])))

    assert [tuple(it.shape) for it in callback.drawn[0].pieces()] == [(1, 3, 8, 8)] * 2 + [(1, 3, 9, 7)] * 2


def test_names_and_pixels_come_from_the_datamodule_in_any_form_or_not_at_all():
    class Data:
        class_names = ("cat", "dog")
        mean, std = torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1), 0.25

    class Odd:
        mean, std = "mean", dict

        def class_names(self):
            return []

    found = []
    for data in (Data(), Odd()):
        trainer = quiet_trainer()
        trainer.datamodule = data
        found.append((class_names(trainer, Plain()), normalised_by(trainer)))

    assert found == [(["cat", "dog"], ([0.5, 0.5, 0.5], [0.25])), (None, None)]


def test_a_fit_without_a_validation_is_told(recwarn):
    fit(Toy(), limit_val_batches=0, max_epochs=1)
    fit(Toy(every_n_epochs=0), limit_val_batches=0, max_epochs=1)

    assert [str(it.message) for it in recwarn if "Toy" in str(it.message)] == [
        "Toy: no validation was drawn in this fit, so there are no pictures."
    ]


@pytest.mark.parametrize(("setting", "value"), [("samples", 0), ("samples", 1.5), ("every_n_epochs", -1)])
def test_bad_settings_are_refused(setting, value):
    with pytest.raises(ValueError) as refusal:
        Toy(**{setting: value})

    assert str(refusal.value).startswith(f"Toy: {setting} is {value!r}; give a whole number of at least ")


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, recwarn):
    (tmp_path / "media").write_text("a file where the folder would be")
    trainer = fit(Toy(), default_root_dir=tmp_path)

    assert trainer.current_epoch == 3
    assert any("cannot be written" in str(it.message) for it in recwarn)


def test_of_two_ranks_the_first_draws_though_they_have_different_numbers_of_batches(two_ranks, tmp_path):
    def run(folder, logger):
        rank, callback = torch.distributed.get_rank(), Rude()
        trainer = quiet_trainer(
            callbacks=[callback],
            logger=CSVLogger(folder) if logger else False,
            **{"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "default_root_dir": folder},
            **{"max_epochs": 2, "limit_train_batches": 2},
        )
        torch.manual_seed(0)
        module = Plain()
        trainer.fit(module, plain_loader(), DataLoader(Given(*labelled_batches(1 + 3 * rank)), batch_size=None))
        trainer.validate(module, plain_loader(18), verbose=False)
        return len(callback.drawn), float(sum(it.sum() for it in module.parameters()))

    def labelled_batches(count):
        data = labelled_images(6 * count)
        return [
            tuple(map(torch.stack, zip(*(data[6 * at + it] for it in range(6)), strict=True))) for at in range(count)
        ]

    for logger in (False, True):
        (first, weight), (second, same) = two_ranks(run, tmp_path / str(logger), logger)

        assert (first, second) == (4, 0)
        assert weight == same
    assert len(pictures(tmp_path)) == 4
