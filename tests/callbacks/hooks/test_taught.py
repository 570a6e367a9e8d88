"""Teachers belong to the callback alone, wherever they come from; what trains beside the network is no part of files.

`Distillation` stands for the seam, with adapters. What it computes is proved in `distillation/test_distillation.py`,
conditions, ranks and pairs in `conformance/`.
"""

import copy
import pickle
import threading

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from lightning_vision import ImageClassifier
from lightning_vision.backbones import create
from lightning_vision.callbacks import EMA, Distillation, ExactResume, HeadFirst, LoRA
from lightning_vision.callbacks.hooks._example_images import image_shape
from lightning_vision.callbacks.hooks._fields import Fields
from lightning_vision.callbacks.hooks._teachers import Renormalised, build_teachers, lend
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, small_network
from support.resuming import differences, record
from support.teachers import teacher_file
from support.trainers import quiet_trainer

HINTS = {"layers": {"network.2": "2"}, "layer_weight": 0.5}
LOW_RANK = {"layers": ["network.0", "network.5"], "train": "network.1.*", "rank": 2}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The dirpath has changed")


def network_of(width=8, classes=10, channels=1):
    torch.manual_seed(9)
    head = nn.Linear(9 * width, classes)
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), head)


def loaders(rank=0, world_size=1):
    return ResumableLoader(labelled_images(60), 6 // world_size, rank, world_size)


def fitted(*callbacks, kind=Plain, **options):
    module = seeded(kind)
    torch.manual_seed(1)
    checkpointing = any(isinstance(it, ModelCheckpoint) for it in callbacks)
    settings = {"max_epochs": 1, "enable_checkpointing": checkpointing}
    trainer = quiet_trainer(callbacks=list(callbacks), **settings | options)
    trainer.fit(module, loaders())
    return trainer


class Look(Callback):
    """What a module is made of while it trains."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.names = [name for name, _ in pl_module.named_parameters()]
        self.numbers = ModelSummary(pl_module).total_parameters
        self.state = list(pl_module.state_dict())
        self.stepped = sum(it.numel() for group in trainer.optimizers[0].param_groups for it in group["params"])


def test_the_teacher_is_no_part_of_the_module_and_adapters_are_parts_of_it_alone(tmp_path):
    look, saves = Look(), ModelCheckpoint(tmp_path, every_n_train_steps=5)
    fitted(Distillation(network_of(), **HINTS), look, saves)
    plain, adapter = seeded(Plain), 4 * 8 + 8
    numbers = sum(it.numel() for it in plain.parameters()) + adapter
    file = torch.load(saves.best_model_path, weights_only=True)

    assert look.names[: len(list(plain.parameters()))] == [name for name, _ in plain.named_parameters()]
    assert {it.rpartition(".")[0] for it in look.names[6:]} == {"added_aside_Distillation.network-2.layer"}
    assert (look.numbers, look.stepped) == (numbers, numbers)
    assert look.state == list(plain.state_dict()) == list(file["state_dict"])
    assert file["optimizer_states"][0]["param_groups"][0]["params"] == list(range(6))
    assert list(file["callbacks"]["Distillation"]["parts"]["network.2"]) == ["layer.weight", "layer.bias"]


def test_after_the_fit_and_after_an_exception_nothing_is_left(tmp_path):
    class Failing(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise RuntimeError("stop")
            return super().training_step(batch, batch_idx)

    teacher, callback = network_of(), Distillation(network_of(), **HINTS)
    callback.teacher = teacher
    module = fitted(callback).lightning_module
    failed = seeded(Failing)
    with pytest.raises(RuntimeError, match="stop"):
        quiet_trainer(callbacks=[callback], max_epochs=1).fit(failed, loaders())

    for it in (module, failed):
        assert list(dict(it.named_parameters())) == list(dict(Plain().named_parameters()))
    assert not any(part._forward_hooks for it in (module, failed, teacher) for part in it.modules())
    assert (callback.teachers, callback.trained) == ([], {})


def resumes(step, folder, *others, first=True):
    def run(name, **more):
        saves = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=2, save_top_k=-1)
        module, made = seeded(Plain), [make() for make in others]
        torch.manual_seed(5)
        own = [Distillation(network_of(), **HINTS)]
        callbacks = [*(own + made if first else made + own), ExactResume(), saves]
        return record(module, loaders, callbacks, max_epochs=3, **more), module.state_dict()

    straight, weights = run("straight")
    killed, _ = run("killed", kill_at=step, in_the_act=True)
    resumed, again = run("resumed", ckpt_path=folder / "killed" / f"step={step}.ckpt")
    return differences(straight, killed, resumed, lost_rows=1), distance(weights, again)


@pytest.mark.parametrize("first", [True, False])
def test_a_resumed_run_equals_the_straight_one_also_beside_other_added_parameters(first, tmp_path):
    assert resumes(14, tmp_path, lambda: LoRA(**LOW_RANK), lambda: EMA(decay=0.8), first=first) == ([], 0.0)


def test_so_does_one_without_others(tmp_path):
    assert resumes(6, tmp_path) == ([], 0.0)


def test_averages_leave_adapters_out_and_freezing_lets_them_train(tmp_path):
    average, own = EMA(decay=0.8), Distillation(network_of(), **HINTS)
    fitted(average, own, HeadFirst(epochs=1, head="network.5"))

    assert not any("added" in name for name in average.average)
    fresh = Distillation(network_of(), **HINTS)
    quiet_trainer(callbacks=[fresh], max_epochs=0).fit(seeded(Plain), loaders())
    moved = own.state_dict()["parts"]["network.2"]["layer.weight"]
    assert distance({"it": moved}, {"it": fresh.state_dict()["parts"]["network.2"]["layer.weight"]}) > 1e-3


class InTurns(ResumableLoader):
    """The shards of two ranks, one after the other."""

    def __init__(self):
        super().__init__(labelled_images(60), 3)

    def __iter__(self):
        for pair in zip(*(loaders(rank, 2) for rank in range(2)), strict=True):
            yield from pair

    def __len__(self):
        return 20


def on_both_ranks():
    module = seeded(Plain, 0.0)
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 1}
    torch.manual_seed(100 + torch.distributed.get_rank())
    own = Distillation(network_of(), **HINTS)
    quiet_trainer(callbacks=[own], **options).fit(module, loaders(torch.distributed.get_rank(), 2))
    return dict(module.named_parameters()), own.state_dict()["parts"]["network.2"]


def test_two_ranks_hold_the_same_and_do_what_one_does_with_both_shards(two_ranks):
    (left, hint), (right, other) = two_ranks(on_both_ranks)
    alone, own = seeded(Plain, 0.0), Distillation(network_of(), **HINTS)
    quiet_trainer(callbacks=[own], max_epochs=1, accumulate_grad_batches=2).fit(alone, InTurns())

    assert distance(left, right) == distance(hint, other) == 0.0
    assert distance(left, dict(alone.named_parameters())) < 1e-5
    assert distance(hint, own.state_dict()["parts"]["network.2"]) < 1e-5


def test_a_run_that_goes_on_with_another_teacher_is_told(tmp_path):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    fitted(Distillation(network_of()), saves)
    other = network_of()
    with torch.no_grad():
        other[0].weight += 0.1
    path = saves.best_model_path
    with pytest.warns(UserWarning, match=r"^Distillation: the run that wrote the checkpoint had another teacher"):
        quiet_trainer(callbacks=[Distillation(other)], max_epochs=2).fit(seeded(Plain), loaders(), ckpt_path=path)
    with pytest.raises(ValueError, match=r"^Distillation: the checkpoint holds other trained parts \(none\) than this"):
        quiet_trainer(callbacks=[Distillation(network_of(), **HINTS)], max_epochs=2).fit(
            seeded(Plain), loaders(), ckpt_path=path
        )


def test_a_teacher_may_be_a_checkpoint_a_name_with_a_file_or_a_list_of_all(tmp_path):
    named = create("resnet8_cifar", num_classes=7, in_channels=3)
    torch.save(
        {"state_dict": {f"network.{name}": it for name, it in named.state_dict().items()}}, tmp_path / "seven.pt"
    )
    ready, kept, found = network_of(), torch.get_rng_state(), []
    given = ["resnet8_cifar", str(teacher_file()), ready]
    found = build_teachers("Distillation", given, str(tmp_path / "seven.pt"), 10, 1)
    torch.set_rng_state(kept)
    images = torch.randn(2, 3, 8, 8)

    assert torch.equal(found[0].eval()(images), named.eval()(images))
    assert isinstance(found[1], ImageClassifier) and found[2] is ready
    assert Distillation([ready, str(teacher_file())]).teacher == [ready, str(teacher_file())]


def test_teachers_by_name_and_file_leave_the_random_streams_alone():
    for teacher, weights in ((str(teacher_file()), "pretrained"), ("resnet8_cifar", "random")):
        module = seeded(Plain, 0.0)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        quiet_trainer(callbacks=[Distillation(teacher, weights)], max_epochs=0).fit(module, loaders())

        assert torch.equal(torch.get_rng_state(), before)


class Code:
    def __reduce__(self):
        return (print, ("run",))


class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.two, self.rest = Two(), network_of()
        self.relu = self.rest[2]

    def forward(self, images):
        self.two(images)
        return self.rest(self.relu(images))


class Two(nn.Module):
    def forward(self, images):
        return images, images


class Naming(Plain):
    """Its optimizer has some parameters alone."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


class Twice(Plain):
    def training_step(self, batch, batch_idx):
        self(batch[0])
        return super().training_step(batch, batch_idx)


REFUSALS = {
    "other classes": (
        {"teacher": network_of(classes=7)},
        "the teacher (Sequential) answers with 7 classes and the student with 10; give one that was trained on the "
        "student's classes.",
    ),
    "other channels": (
        {"teacher": network_of(channels=3)},
        "the teacher (Sequential) takes no images of the student's shape (1, 8, 8) (",
    ),
    "no logits": (
        {"teacher": nn.Conv2d(1, 1, 1)},
        "the teacher (Conv2d) answers with (2, 1, 8, 8) and not with logits (B, K); give one that does",
    ),
    "no such layer": (
        {"layers": {"network.22": "2"}},
        "the student (Plain) has no layer 'network.22'; there are network.2, network.",
    ),
    "no such layer of the teacher": (
        {"layers": {"network.2": "layer2"}},
        "the teacher (Sequential) has no layer 'layer2'; there are ",
    ),
    "called twice": (
        {"teacher": Tuples(), "layers": {"network.2": "relu"}},
        "the teacher called its layer 'relu' 2 times; name a layer that is called once.",
    ),
    "no tensor": (
        {"teacher": Tuples(), "layers": {"network.2": "two"}},
        "the layer 'two' of the teacher puts out a tuple and no tensor; name another.",
    ),
    "no such part": ({"network": "net"}, "the module (Plain) has no layer 'net'; there are network"),
    "no file": ({"teacher": "none.ckpt"}, "teacher 'none.ckpt': no checkpoint at none.ckpt."),
    "no name": (
        {"teacher": "resnet8_cifr", "teacher_weights": "random"},
        "teacher 'resnet8_cifr': unknown backbone 'resnet8_cifr'; did you mean resnet8_cifar",
    ),
    "no teacher": ({"teacher": 3}, "teacher is 3; give a network, a checkpoint's path, a name, or a list."),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_at_set_up(case):
    settings, sentence = REFUSALS[case]
    with pytest.raises(ValueError) as refusal:
        fitted(Distillation(**{"teacher": network_of()} | settings))

    assert str(refusal.value).startswith(f"Distillation: {sentence}")


@pytest.mark.parametrize("place", ["checkpoint", "weights"])
def test_a_file_with_code_in_it_is_refused_in_a_sentence(place, tmp_path, capsys):
    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"it": Code()}, "pytorch-lightning_version": "2.6.0"}, path)
    teacher = (
        {"teacher": str(path)} if place == "checkpoint" else {"teacher": "resnet8_cifar", "teacher_weights": str(path)}
    )
    with pytest.raises(ValueError, match=r"^Distillation: teacher .* was refused: reading it would run code from the"):
        fitted(Distillation(**teacher))

    assert "run" not in capsys.readouterr().out


def test_a_file_without_a_classifier_is_refused(tmp_path):
    network = create("resnet8_cifar", num_classes=0, in_channels=1)
    torch.save(network.state_dict(), tmp_path / "headless.pt")
    with pytest.raises(ValueError, match=r"^Distillation: teacher 'resnet8_cifar': .* holds no classifier of this"):
        fitted(Distillation("resnet8_cifar", str(tmp_path / "headless.pt")))


def test_the_student_and_what_shares_its_weights_are_no_teachers():
    for share in (lambda module: module.network, lambda module: nn.Sequential(module.network[:5], nn.Linear(36, 10))):
        module = seeded(Plain)
        with pytest.raises(
            ValueError, match=r"^Distillation: the teacher \(Sequential\) shares weights with Plain, so"
        ):
            quiet_trainer(callbacks=[Distillation(share(module))], max_epochs=1).fit(module, loaders())


def test_an_optimizer_without_the_adapters_is_refused_and_finds_them_in_a_named_part():
    with pytest.raises(
        ValueError, match=r"^Distillation: no optimizer has 'network.2.layer.weight', which is to train"
    ):
        fitted(Distillation(network_of(), **HINTS), kind=Naming)
    own = Distillation(network_of(), network="network", layers={"2": "2"})
    trainer = fitted(own, kind=Naming)

    assert trainer.global_step == 10
    assert list(own.state_dict()["parts"]) == ["2"]


def test_a_network_that_is_called_twice_in_a_step_is_refused():
    with pytest.raises(ValueError, match=r"^Distillation: training_step called the network 2 times, and which answer"):
        fitted(Distillation(network_of()), kind=Twice)


class Doubled(Plain):
    """Answers to each image and to its mirror image in one call."""

    def training_step(self, batch, batch_idx):
        image, target = batch
        return torch.nn.functional.cross_entropy(self(torch.cat([image, image.flip(3)])), target.repeat(2))


def test_a_step_on_other_images_than_those_of_the_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"^Distillation: training_step gave the network 12 images, and the batch has 6"
    ):
        fitted(Distillation(network_of()), kind=Doubled)


class TwoHeadsInTraining(Plain):
    """Its forward answers with a pair while it trains, as networks with a second head do."""

    def forward(self, image):
        answer = super().forward(image)
        return (answer, answer) if self.training else answer

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0])[0], batch[1])


def test_a_network_whose_answer_is_another_one_in_training_is_refused():
    sentence = r"^Distillation: the student in training answers with tuple and not with logits \(B, K\);"
    with pytest.raises(ValueError, match=sentence):
        fitted(Distillation(network_of()), kind=TwoHeadsInTraining)


def test_images_are_renormalised_where_both_statistics_are_known():
    ours, theirs = ([0.5], [0.25]), ([0.1], [0.5])
    raw = torch.rand(4, 1, 8, 8)
    given, wanted = (raw - 0.5) / 0.25, (raw - 0.1) / 0.5

    assert torch.allclose(Renormalised(ours, theirs)(given), wanted, atol=1e-6)
    assert Renormalised(ours, theirs)(given.half()).dtype == torch.float16


def test_the_student_learns_from_renormalised_images(tmp_path):
    """A teacher that knows its statistics, on images of others, is the teacher on images of its own."""
    told = {"class_names": list("0123456789"), "channels": 1, "image_size": [8, 8], "resize": "crop"}
    content = torch.load(teacher_file(), weights_only=True)
    content["preprocessing"] = told | {"mean": [0.1], "std": [0.5]}
    torch.save(content, tmp_path / "teacher.ckpt")

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build_teachers("it", str(teacher_file()), "", 10, 1)[0]

        def forward(self, images):
            return self.network((images * 0.25 + 0.5 - 0.1) / 0.5)

    class Known(Plain):
        preprocessing = told | {"mean": [0.5], "std": [0.25]}

    theirs = fitted(Distillation(Normalised())).lightning_module
    ours = fitted(Distillation(str(tmp_path / "teacher.ckpt")), kind=Known).lightning_module
    as_they_are = fitted(Distillation(str(tmp_path / "teacher.ckpt"))).lightning_module

    assert distance(ours.state_dict(), theirs.state_dict()) < 1e-5
    assert distance(as_they_are.state_dict(), theirs.state_dict()) > 1e-4


def test_the_shape_of_images_is_found_without_moving_the_loader():
    data, draws = labelled_images(20), torch.Generator().manual_seed(0)
    loader = DataLoader(data, 6, sampler=RandomSampler(data, generator=draws), num_workers=2)
    module, trainer = Plain(), quiet_trainer(max_epochs=0)
    trainer.fit(module, loader)
    before, stream = draws.get_state(), torch.get_rng_state()
    fields = Fields("It", "image", "target")

    assert image_shape(trainer, module, fields) == (1, 8, 8)
    assert torch.equal(draws.get_state(), before)
    assert torch.equal(torch.get_rng_state(), stream)
    module.example_input_array = torch.zeros(1, 3, 32, 32)
    assert image_shape(trainer, module, fields) == (3, 32, 32)


class Slots:
    """Batches behind an object without a `__dict__`."""

    __slots__ = ("batches",)

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Locked:
    """Batches behind something that cannot be copied."""

    def __init__(self, batches):
        self.batches, self.lock = batches, threading.Lock()

    def __iter__(self):
        with self.lock:
            yield from self.batches


@pytest.mark.parametrize("kind", [Slots, Locked, "parts", "list"])
def test_whatever_lightning_fits_from_tells_the_shape_of_images(kind):
    images, labels = labelled_images(20).tensors
    if kind == "parts":
        data = {"image": DataLoader(images, 5), "target": DataLoader(labels, 5)}
    elif kind == "list":
        data = [DataLoader(images, 5), DataLoader(labels, 5)]
    else:
        data = kind([(images, labels)] * 2)
    trainer = quiet_trainer(max_epochs=0)
    trainer.fit(module := Plain(), data)

    assert image_shape(trainer, module, Fields("It", "image", "target")) == (1, 8, 8)


class Once(Locked):
    def __next__(self):
        raise AssertionError("Nobody is to take a batch.")


NOT_ASKED = [
    (lambda batches: batches, r"failed \(a list of batches is for Lightning a list of loaders; give DataLoader\("),
    (Once, r"asking the training loader for a batch failed \(cannot pickle '_thread.lock' object\)"),
    (lambda batches: Slots([{"pixels": batches[0][0]}]), "^It: the batch has no images under 'image', its keys are 'p"),
]


@pytest.mark.parametrize(("made", "sentence"), NOT_ASKED)
def test_loaders_that_do_not_tell_the_shape_of_images_are_refused(made, sentence):
    trainer = quiet_trainer(max_epochs=0)
    trainer.fit(module := Plain(), made([labelled_images(20).tensors] * 2))
    with pytest.raises(ValueError, match=sentence):
        image_shape(trainer, module, Fields("It", "image", "target"))


def test_images_that_cannot_be_found_are_asked_for():
    module, trainer = Plain(), quiet_trainer(max_epochs=0)
    trainer.fit(module, DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 64), torch.zeros(4)), 2))
    with pytest.raises(
        ValueError, match=r"^It: images of the shape \(C, H, W\) are needed at set-up, and those of the tr"
    ):
        image_shape(trainer, module, Fields("It", "image", "target"))


def test_a_network_that_is_lent_twice_is_its_owners_again():
    network = small_network()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    one, two = lend(network), lend(network)
    assert not any(part.training for part in network.modules())
    one.close()
    two.close()

    assert [part.training for part in network] == [True, False, True, True, True, True]
    assert [it.requires_grad for it in network.parameters()] == [False, True, True, True, True, True]


def test_copies_of_a_callback_that_was_used_can_be_used():
    own = Distillation(network_of(), **HINTS)
    first = fitted(own).lightning_module
    for again in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert distance(fitted(again).lightning_module.state_dict(), first.state_dict()) == 0.0
