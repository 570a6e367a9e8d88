"""The online seam: the teacher trains beside the student and no file knows of it; validations log the calibration."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_vision.callbacks import BDKD, SAM, ExactResume, MixUp
from support.compare import distance
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import DictBatches, Plain, small_network
from support.resuming import Recorder, differences, newest, record
from support.trainers import quiet_trainer


def teacher():
    """With dropout, which draws in train mode."""
    torch.manual_seed(10)
    return small_network()


def loader():
    return ResumableLoader(labelled_images(60), 6)


def both_loaders():
    return loader(), plain_loader(20, 5)


def trained(*callbacks, kind=Plain, val=None, **options):
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options)
    trainer.fit(module, loader(), val)
    return module


def test_the_network_that_was_given_stays_as_it_was_and_its_copy_trains():
    given = teacher()
    before, modes = copy.deepcopy(given), [part.training for part in given.modules()]
    callback = BDKD(teacher=given)
    trained(callback)
    learned = callback.state_dict()["parts"]["teacher"]

    assert distance(before.state_dict(), given.state_dict()) == 0.0
    assert [part.training for part in given.modules()] == modes
    assert all(it.requires_grad and it.grad is None for it in given.parameters())
    assert learned.keys() == given.state_dict().keys()
    assert distance(learned, given.state_dict()) > 1e-2
    # Its batch norm counted every batch, so it was in train mode.
    assert learned["1.num_batches_tracked"] == 20


def test_files_are_those_of_a_run_without_it_and_the_callbacks_state_holds_the_teacher(tmp_path):
    files = {}
    for name, callbacks in {"plain": [], "taught": [BDKD(teacher=teacher())]}.items():
        trained(*callbacks, ModelCheckpoint(tmp_path / name), default_root_dir=tmp_path, enable_checkpointing=True)
        files[name] = torch.load(newest(tmp_path / name), weights_only=True)
    plain, taught = files["plain"], files["taught"]
    groups = [[len(it["params"]) for it in file["optimizer_states"][0]["param_groups"]] for file in (plain, taught)]

    assert taught["state_dict"].keys() == plain["state_dict"].keys()
    assert groups[0] == groups[1]
    assert taught["optimizer_states"][0]["state"].keys() == plain["optimizer_states"][0]["state"].keys()
    assert taught["callbacks"]["BDKD"]["parts"]["teacher"].keys() == small_network().state_dict().keys()


def test_after_the_fit_the_module_has_no_teacher():
    module = trained(BDKD(teacher=teacher()))

    assert [name for name, _ in module.named_modules()] == [name for name, _ in Plain().named_modules()]


def test_a_network_by_name_begins_with_random_weights_that_the_seed_draws():
    """The run's own streams see nothing of it; dropout of the student draws from them."""

    def found(seed):
        callback = BDKD(teacher="resnet8_cifar", seed=seed, alpha=1e-9, beta=0.0)
        module = trained(callback, max_epochs=1)
        return module.state_dict(), callback.state_dict()["parts"]["teacher"]

    (student, first), (_, again), (_, other) = found(0), found(0), found(1)

    assert distance(again, first) == 0.0
    assert distance(other, first) > 0.1
    assert distance(trained(max_epochs=1).state_dict(), student) < 1e-6


def test_what_the_teacher_draws_is_not_of_the_runs_stream():
    """A teacher that hardly teaches leaves the student's dropout, and so the student, as they are."""
    module = trained(BDKD(teacher=teacher(), alpha=1e-9, beta=0.0))

    assert distance(trained().state_dict(), module.state_dict()) < 1e-6


def test_the_teachers_dropout_changes_from_batch_to_batch_and_with_the_seed():
    class Masks(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.dropout, self.seen = small_network(dropout=0.0), nn.Dropout(0.5), []

        def forward(self, images):
            dropped = self.dropout(torch.ones(20))
            if self.training:
                self.seen.append(dropped.tolist())
            return self.network(images)

    def seen(seed):
        callback, found = BDKD(teacher=Masks(), seed=seed), []
        compare = callback.compare_both

        def look(*args):
            found.append(callback.trained["teacher"].seen[-1])
            return compare(*args)

        callback.compare_both = look
        trained(callback, max_epochs=1)
        return found

    first, again, other = seen(0), seen(0), seen(1)

    assert first == again
    assert len({tuple(it) for it in [*first, *other]}) == 20


@pytest.mark.parametrize("kill_at", [6, 10], ids=["inside", "epoch's end"])
def test_a_resumed_run_is_the_straight_one_with_its_teacher(tmp_path, kill_at):
    states = []

    def go(name, **how):
        torch.manual_seed(0)
        module = Plain()
        torch.manual_seed(1)
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=2)
        callback = BDKD(teacher=teacher())
        found = record(module, both_loaders, [callback, ExactResume(), writer], max_epochs=2, **how)
        states.append(callback.state_dict()["parts"]["teacher"])
        return found

    straight, killed = go("straight"), go("killed", kill_at=kill_at)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed) == []
    assert distance(states[0], states[2]) == 0.0


def as_mappings(samples):
    image, target = (torch.stack(it) for it in zip(*samples, strict=True))
    return {"image": image, "target": target}


@pytest.mark.parametrize("kind", [Plain, DictBatches])
def test_validations_log_the_calibration_error_of_the_student_as_torchmetrics_has_it(kind):
    collate = {"collate_fn": as_mappings if kind is DictBatches else None}

    class Sure(kind):
        """Answers that are surer than they are right, so that there is an error."""

        def forward(self, image):
            return 5 * super().forward(image)

    recorder = Recorder()
    torch.manual_seed(0)
    module = Sure()
    trainer = quiet_trainer(callbacks=[BDKD(teacher=teacher(), ece_bins=7)], max_epochs=1, logger=recorder)
    trainer.fit(module, ResumableLoader(labelled_images(60), 6, **collate), plain_loader(25, 10, **collate))
    image, target = labelled_images(25).tensors
    with torch.no_grad():
        logits = module.eval()(image)
    expected = multiclass_calibration_error(logits, target, num_classes=10, n_bins=7)
    (found,) = [row["val/student_ece"] for _, row in recorder.rows if "val/student_ece" in row]

    assert found == pytest.approx(expected.item(), abs=1e-6)
    assert found > 0.05


def test_without_bins_no_calibration_error_is_logged():
    recorder = Recorder()
    trained(BDKD(teacher=teacher(), ece_bins=0), logger=recorder, val=plain_loader(20, 5), max_epochs=1)

    assert not any("val/student_ece" in row for _, row in recorder.rows)
    assert any("val/loss" in row for _, row in recorder.rows)


def test_validations_that_ask_another_network_are_told_of():
    class Elsewhere(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("val/other", batch[0].mean())

    recorder = Recorder()
    with pytest.warns(UserWarning, match="^BDKD: validation_step of Elsewhere got no logits from the network, so ther"):
        trained(BDKD(teacher=teacher()), kind=Elsewhere, logger=recorder, val=plain_loader(20, 5), max_epochs=1)

    assert not any("val/student_ece" in row for _, row in recorder.rows)
    assert any("val/other" in row for _, row in recorder.rows)


def test_the_teacher_learns_mixed_labels_from_mixed_images():
    """The loss of the batch's labels is mixed for both networks: teacher's logged loss is that of the mixture."""
    recorder = Recorder()

    class Still(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    seen = []
    torch.manual_seed(0)
    module = Still(dropout=0.0)
    given = small_network(dropout=0.0)
    mixing = MixUp(alpha=1.0, prob=1.0)
    callback = BDKD(teacher=given, teacher_kd_weight=0.0)
    compare = callback.compare_both

    def look(student, logits, target):
        with torch.no_grad():
            ends = [F.cross_entropy(logits.detach(), it).item() for it in (target.own, target.twin)]
        seen.append((float(target.share), *ends))
        return compare(student, logits, target)

    callback.compare_both = look
    trainer = quiet_trainer(callbacks=[mixing, callback], max_epochs=1, logger=recorder, log_every_n_steps=1)
    trainer.fit(module, loader())
    found = [row["train/teacher"] for _, row in recorder.rows if "train/teacher" in row]

    assert [share * own + (1 - share) * twin for share, own, twin in seen] == pytest.approx(found, rel=1e-5)
    assert max(abs(own - twin) for _, own, twin in seen) > 0.01


def test_a_replay_leaves_no_trace_in_the_teachers_statistics():
    """SAM asks for each gradient twice; the teacher's batch norm counts batches, not passes."""
    callback = BDKD(teacher=teacher())
    trained(SAM(rho=0.05), callback, max_epochs=1)

    assert callback.state_dict()["parts"]["teacher"]["1.num_batches_tracked"] == 10


def test_two_ranks_end_with_one_student_and_one_teacher_and_one_calibration_error(two_ranks):
    def found():
        torch.manual_seed(torch.distributed.get_rank())
        module = Plain()
        rank, recorder = torch.distributed.get_rank(), Recorder()
        train = ResumableLoader(labelled_images(60), 6, rank, 2)
        # Of 7 images and 6, so that a mean of both errors is another one.
        val = DataLoader(Subset(labelled_images(13), range(rank, 13, 2)), 5)
        callback = BDKD(teacher=small_network(), teacher_kd_weight=0.5)
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 1}
        trainer = quiet_trainer(callbacks=[callback], logger=recorder, **options)
        trainer.fit(module, train, val)
        learned = callback.state_dict()["parts"]["teacher"]
        weights = [it.flatten() for name, it in learned.items() if "running" not in name and "num" not in name]
        image, target = labelled_images(13).tensors
        with torch.no_grad():
            expected = multiclass_calibration_error(module.eval()(image), target, num_classes=10, n_bins=15)
        found = trainer.callback_metrics["val/student_ece"]
        return torch.cat([*(it.detach().flatten() for it in module.parameters()), *weights]), expected, found

    (first, expected, ece), (second, _, other) = two_ranks(found)

    assert torch.equal(first, second)
    assert ece == other
    assert torch.isclose(expected, ece, atol=1e-6)
    assert ece > 0.005
