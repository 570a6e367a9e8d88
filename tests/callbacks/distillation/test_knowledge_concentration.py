"""Knowledge concentration: its parts by hand, training against a loop, and two specialists of digits.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`, the grouped layer in
`test_grouped_linear.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from lightning_vision.callbacks import ExactResume, MixUp
from lightning_vision.callbacks.distillation.kd_loss import kd_loss
from lightning_vision.callbacks.distillation.knowledge_concentration import (
    KnowledgeConcentration,
    pace_weight,
    vertical_divergences,
)
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, small_network
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

VERTICALS = [[0, 1, 2, 3, 4], [9, 8, 7, 6, 5, 2]]


def specialist(seed, classes=10):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = small_network()
        network[-1] = nn.Linear(36, classes)
        for parameter in network.parameters():
            parameter.data.mul_(3)
    return network.eval()


def specialists():
    return [specialist(5, 5), specialist(6, 6)]


def loader():
    return ResumableLoader(labelled_images(60), 6)


def trained(*callbacks, **options):
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options)
    trainer.fit(module, loader())
    return module


def logits(count, classes, seed):
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_row_69_one_teacher_over_all_classes_is_ordinary_distillation():
    student, teacher = logits(8, 10, 0), logits(8, 10, 1)
    every = list(range(10))

    assert torch.allclose(kd_loss(student, teacher), vertical_divergences(student, teacher, every).mean(), rtol=1e-12)


def by_hand(teachers, verticals, pace_steps=0, mutant="", kd_weight=0.7, temperature=2.0, pace_loss=3.0):
    """Two epochs, image by image and class by class."""
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    data, step = loader(), 0
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            answer = module(image)
            loss = F.cross_entropy(answer, target)
            for teacher, classes in zip(teachers, verticals, strict=True):
                with torch.no_grad():
                    said = teacher(image)
                own = [row for row in range(len(target)) if mutant == "all images" or target[row] in classes]
                total = answer.sum() * 0
                for row in own:
                    known = answer[row] if mutant == "all logits" else answer[row, classes]
                    p, q = (said[row] / temperature).softmax(0), (answer[row, classes] / temperature).softmax(0)
                    if mutant == "all logits":
                        q = (known / temperature).softmax(0)[classes]
                    scale = 1 if mutant == "no T^2" else temperature**2
                    total = total + scale * (p * (p / q).log()).sum()
                age = float("inf") if step >= pace_steps else pace_loss / (1 - step / pace_steps)
                weight = max(0.0, 1 - total.item() / max(len(own), 1) / age)
                loss = loss + kd_weight * weight * total / len(target)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    return module.state_dict()


@pytest.mark.parametrize("pace_steps", [0, 15])
def test_training_equals_a_loop_by_hand(pace_steps):
    settings = {"kd_weight": 0.7, "temperature": 2.0, "pace_steps": pace_steps, "pace_loss": 3.0}
    ours = trained(KnowledgeConcentration(specialists(), VERTICALS, **settings)).state_dict()
    expected = by_hand(specialists(), VERTICALS, pace_steps)

    assert distance(expected, ours) < 5e-5
    for mutant in ("all images", "all logits", "no T^2"):
        assert distance(by_hand(specialists(), VERTICALS, pace_steps, mutant), expected) > 1e-3
    assert distance(by_hand(specialists(), VERTICALS, 15 - pace_steps), expected) > 1e-3


def test_row_69_so_is_training_with_one_teacher_and_weights_of_one():
    every = list(range(10))
    ours = trained(KnowledgeConcentration([specialist(5)], [every], temperature=4.0)).state_dict()
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    teacher = specialist(5)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    data = loader()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            answer = module(image)
            with torch.no_grad():
                said = teacher(image)
            (F.cross_entropy(answer, target) + kd_loss(answer, said, 4.0)).backward()
            optimizer.step()
            schedule.step()

    assert distance(module.state_dict(), ours) < 5e-5


def test_row_69_logits_outside_of_the_vertical_get_no_gradient_from_its_teacher():
    student = logits(8, 10, 0).requires_grad_()
    vertical_divergences(student, logits(8, 3, 1), [7, 1, 4]).sum().backward()
    outside = [0, 2, 3, 5, 6, 8, 9]

    assert student.grad[:, outside].abs().max() == 0
    assert (student.grad[:, [7, 1, 4]].abs() > 0).all()


def test_a_teacher_of_more_classes_is_heard_on_its_own():
    student, teacher = logits(8, 10, 0), logits(8, 10, 1)
    few = vertical_divergences(student, teacher[:, [7, 1, 4]], [7, 1, 4])

    assert torch.equal(few, vertical_divergences(student, teacher, [7, 1, 4]))
    assert torch.equal(few, vertical_divergences(student, teacher, torch.tensor([7, 1, 4])))


def test_row_69_the_schedule_of_the_weights_is_monotone_to_one():
    losses = torch.tensor([0.0, 0.1, 1.0, 3.0, 100.0], dtype=torch.float64)
    schedule = torch.stack([pace_weight(losses, step, pace_steps=20, pace_loss=2.0) for step in range(25)])
    rises = schedule.diff(dim=0)

    assert schedule[0].tolist() == [1.0, 0.95, 0.5, 0.0, 0.0]
    assert rises.min() == 0
    assert (rises[:20, 1:3] > 0).all()
    assert (schedule[20:] == 1).all()
    assert (schedule.diff(dim=1) <= 0).all()
    assert (pace_weight(losses, 0, pace_steps=0) == 1).all()


def test_the_pace_has_no_gradient():
    loss = torch.tensor(0.5, requires_grad=True)

    assert not pace_weight(loss, 1, 10).requires_grad


def test_a_teacher_speaks_of_its_own_images_alone_unless_asked():
    """Labels of the first vertical alone: the second teacher, whatever it is, is not heard."""
    data = ResumableLoader([(image, target % 2) for image, target in labelled_images(12)], 6)

    def ends(second, own_images):
        torch.manual_seed(0)
        module = Plain()
        callback = KnowledgeConcentration([specialist(5, 5), second], VERTICALS, own_images=own_images)
        quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, data)
        return module.state_dict()

    assert distance(ends(specialist(6, 6), True), ends(specialist(7, 6), True)) == 0
    assert distance(ends(specialist(6, 6), False), ends(specialist(7, 6), False)) > 1e-3


def test_mixed_labels_count_by_their_share():
    """Mixed as probabilities and mixed in the loss are one thing, for it is linear in the labels."""
    ends = [
        trained(KnowledgeConcentration(specialists(), VERTICALS), MixUp(targets=targets, num_classes=10, seed=3))
        for targets in ("soft", "loss")
    ]
    alone = trained(MixUp(targets="soft", num_classes=10, seed=3))

    assert distance(ends[0].state_dict(), ends[1].state_dict()) < 1e-4
    assert distance(ends[0].state_dict(), alone.state_dict()) > 1e-2


@pytest.mark.parametrize(
    ("saving", "kill_at"), [({"every_n_train_steps": 4}, 6), ({"every_n_epochs": 1}, 12)], ids=["inside", "epoch's end"]
)
def test_a_resumed_run_goes_on_at_its_pace(tmp_path, saving, kill_at):
    def go(name, **how):
        torch.manual_seed(0)
        module = Plain()
        torch.manual_seed(1)
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, **saving)
        callback = KnowledgeConcentration(specialists(), VERTICALS, pace_steps=15)
        callbacks = [callback, ExactResume(), writer]
        return record(module, loader, callbacks, max_epochs=2, default_root_dir=tmp_path, **how)

    straight, killed = go("straight"), go("killed", kill_at=kill_at)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed) == []


class Convolutions(Plain):
    """Learns digits of `classes` in a few seconds."""

    def __init__(self, classes=10):
        super().__init__()
        trunk = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten()]
        self.network = nn.Sequential(*trunk, nn.Linear(64, classes))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fitted(images, labels, classes, epochs, *callbacks):
    torch.manual_seed(0)
    module = Convolutions(classes)
    data = ResumableLoader(TensorDataset(images, labels), 25)
    quiet_trainer(callbacks=list(callbacks), max_epochs=epochs).fit(module, data)
    return module.eval()


def test_row_69_two_specialists_of_digits_teach_one_network():
    """Specialists of 0 to 4 and 5 to 9 have seen 1,000 digits; the student has 200 others and what they say of them."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
    teachers = []
    for first in (0, 5):
        own = (labels[:1000] - first).clamp(0, 4) == labels[:1000] - first
        teachers.append(fitted(images[:1000][own], labels[:1000][own] - first, 5, 8).network)
    verticals = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    few = images[1000:1200], labels[1000:1200]
    concentration = KnowledgeConcentration(teachers, verticals, kd_weight=2.0, pace_steps=20)
    taught, alone = fitted(*few, 10, 20, concentration), fitted(*few, 10, 20)

    def unlearned(module):
        """Mean divergence from both specialists, on the digits that nobody has seen, each on its own."""
        with torch.no_grad():
            found = []
            for teacher, classes in zip(teachers, verticals, strict=True):
                own = torch.isin(labels[1200:], torch.tensor(classes))
                unseen = images[1200:][own]
                found.append(vertical_divergences(module(unseen), teacher(unseen), classes).mean())
        return sum(found)

    with torch.no_grad():
        accuracy = (taught(images[1200:]).argmax(1) == labels[1200:]).float().mean()

    assert accuracy > 0.75
    assert unlearned(taught) < 0.5 * unlearned(alone)


BAD = [
    ({"kd_weight": -1.0}, "kd_weight is -1.0; give a finite number of at least 0."),
    ({"temperature": 0.0}, "temperature is 0.0; give a number above 0."),
    ({"pace_loss": 0}, "pace_loss is 0; give a number above 0."),
    ({"pace_steps": 1.5}, "pace_steps is 1.5; give a whole number of at least 0."),
    ({"own_images": 1}, "own_images is 1; give True or False."),
    (
        {"teacher": ["a.ckpt"]},
        "there are 1 teachers and classes of 2; give each teacher a list of the classes that it knows.",
    ),
    *(
        (
            {"classes": classes},
            f"classes is {classes!r}; give for each teacher a list of at least two different classes of the student's, "
            "counted from 0, such as [[0, 1, 2], [3, 4]].",
        )
        for classes in ([], [0, 1], [[0, 1], [2]], [[0, 1], [2, 2]], [[0, 1], [2, -1]], [[0, 1], [2, True]])
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        KnowledgeConcentration(**{"teacher": ["a.ckpt", "b.ckpt"], "classes": [[0, 1], [2, 3]]} | settings)

    assert str(refusal.value) == f"KnowledgeConcentration: {sentence}"


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (
            [[0, 1, 2, 3, 10], VERTICALS[1]],
            "the student answers with 10 classes and classes[0] names 10; name classes from 0 to 9.",
        ),
        (
            [VERTICALS[0], [5, 6, 7]],
            "teacher 1 answers with 6 classes; give one of the 3 that classes[1] names, in that order, or of all 10 of "
            "the student's.",
        ),
    ],
    ids=["no such class", "another number of classes"],
)
def test_what_does_not_fit_the_student_is_refused_at_set_up(classes, sentence):
    with pytest.raises(ValueError) as refusal:
        trained(KnowledgeConcentration(specialists(), classes))

    assert str(refusal.value) == f"KnowledgeConcentration: {sentence}"
