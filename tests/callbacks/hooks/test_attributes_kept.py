"""Plain attributes of a module are put back: the object, what it holds, and what was not there before is gone."""

import random
import time
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from lightning_vision.callbacks import SWA, KNNProbe, LRRangeTest
from lightning_vision.callbacks.hooks._attributes_kept import attributes_kept, data_kept
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Listed(list):
    """A container with an attribute of its own."""

    def __init__(self, values):
        super().__init__(values)
        self.count = len(values)

    def append(self, value):
        super().append(value)
        self.count += 1


def add(value):
    value.add_(1)


def rebind(value):
    value.data = torch.ones(3)


def run(value):
    value[0](torch.rand(4, 2))


# What is kept, a way to change it in place, and what is compared.
KEPT = {
    "tensor": (lambda: torch.zeros(2), add, torch.Tensor.tolist),
    "tensor of NaN": (lambda: torch.full((2,), torch.nan), lambda it: it.fill_(0), lambda it: it.isnan().all().item()),
    "tensor resized": (lambda: torch.zeros(2), lambda it: it.resize_(4).fill_(1), torch.Tensor.tolist),
    "tensor with other data": (lambda: torch.zeros(2), rebind, torch.Tensor.tolist),
    "list": (lambda: [1], lambda it: it.append(2), list),
    "list of tensors": (lambda: [torch.zeros(2)], lambda it: it[0].add_(1), lambda it: it[0].tolist()),
    "nested": (lambda: {"a": [deque([1])]}, lambda it: it["a"][0].append(2), lambda it: list(it["a"][0])),
    "tuple of lists": (lambda: ([1], 2), lambda it: it[0].append(2), lambda it: list(it[0])),
    "set": (lambda: {1}, lambda it: it.add(2), set),
    "bytes": (lambda: bytearray(b"a"), lambda it: it.extend(b"b"), bytes),
    "counter": (lambda: Counter(a=2), lambda it: it.update("ab"), dict),
    "default": (lambda: defaultdict(list), lambda it: it["a"].append(1), dict),
    "ordered": (lambda: OrderedDict(a=1, b=2), lambda it: it.move_to_end("a"), list),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda it: it.append(3), list),
    "of one's own": (lambda: Listed([1]), lambda it: it.append(2), lambda it: (list(it), it.count)),
    "array": (lambda: np.zeros(2), lambda it: it.__iadd__(1), np.ndarray.tolist),
    "torch's generator": (torch.Generator, lambda it: torch.rand(3, generator=it), lambda it: it.get_state().tolist()),
    "numpy's generator": (lambda: np.random.default_rng(0), lambda it: it.random(3), lambda it: it.bit_generator.state),
    "numpy's older one": (lambda: np.random.RandomState(0), lambda it: it.rand(3), lambda it: it.get_state()[2]),
    "python's": (lambda: random.Random(0), lambda it: it.random(), random.Random.getstate),
    "hidden module": (lambda: [nn.BatchNorm1d(2)], run, lambda it: it[0].running_mean.tolist()),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_an_attribute_of_a_part_holds_is_put_back_in_the_same_object(name):
    make, change, seen = KEPT[name]
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].kept = value = make()
    before = seen(value)
    with attributes_kept(module):
        change(value)
        assert seen(value) != before

    assert module[0].kept is value
    assert seen(value) == before


def test_an_attribute_that_is_bound_to_another_object_gets_its_own_back():
    module = nn.Linear(2, 2)
    module.ema, module._private, module.count = torch.zeros(2), torch.zeros(2), 1
    own = dict(vars(module))
    with attributes_kept(module):
        module.ema, module._private, module.count = torch.ones(2), None, module.count + 1

    assert all(vars(module)[name] is value for name, value in own.items())


def test_what_is_new_is_deleted_and_what_was_deleted_is_there_again():
    module = nn.Linear(2, 2)
    module.old = old = [1]
    with attributes_kept(module):
        module.new = 1
        module.register_buffer("fresh", torch.zeros(1), persistent=False)
        module.part = nn.ReLU()
        del module.old

    assert module.old is old
    assert not {"new", "fresh", "part"} & {*vars(module), *module._buffers, *module._modules}
    assert module._non_persistent_buffers_set == set()


def test_an_exception_does_not_keep_it_from_putting_back():
    module = nn.Linear(2, 2)
    module.seen = []
    with pytest.raises(KeyError), attributes_kept(module):
        module.seen.append(1)
        raise KeyError

    assert module.seen == []


def test_a_tensor_made_in_inference_mode_is_written_too():
    module = nn.Linear(2, 2)
    with torch.inference_mode():
        module.seen = torch.zeros(2)
    with attributes_kept(module), torch.inference_mode():
        module.seen.add_(1)

    assert module.seen.tolist() == [0, 0]


def test_weights_buffers_and_hooks_are_left_to_others_and_circles_end():
    module = nn.BatchNorm1d(2)
    module.circle = [module]
    module.circle.append(module.circle)
    with attributes_kept(module):
        module(torch.rand(4, 2))
        handle = module.register_forward_hook(lambda *_: None)
        module.weight.data.fill_(2)

    assert int(module.num_batches_tracked) == 1
    assert handle.id in module._forward_hooks
    assert module.weight.tolist() == [2, 2]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_scripted_part_is_left_alone():
    module = nn.Sequential(torch.jit.script(nn.BatchNorm1d(2)))
    module.seen = [1]
    with attributes_kept(module):
        module.seen.append(2)
        module(torch.rand(4, 2))

    assert module.seen == [1]


class Noise:
    """A transform that draws from a stream of its own."""

    def __init__(self):
        self.random = random.Random(0)

    def __call__(self, value):
        return value + self.random.random()


def noisy(value, rng):
    return value + rng.random()


class Drawn(Dataset):
    """Draws by itself and in its transforms, and counts."""

    def __init__(self):
        self.rng, self.read, self.last = np.random.default_rng(0), 0, []
        self.transforms = [Noise(), partial(noisy, rng=np.random.default_rng(1))]

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.read += 1
        self.last.append(index)
        value = index + self.rng.random() + self.read
        for transform in self.transforms:
            value = transform(value)
        return value


class Stream(IterableDataset):
    """Goes on where it was."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while (self.place + 1) % 7:
            self.place += 1
            yield self.place
        self.place += 1


@pytest.mark.parametrize(
    "make",
    [Drawn, lambda: Subset(Drawn(), range(4)), lambda: ConcatDataset([Drawn(), Drawn()]), Stream],
    ids=["dataset", "subset", "of several", "stream"],
)
def test_a_dataset_gives_the_next_reader_what_it_would_have_given(make):
    read, looked_at = (DataLoader(make(), 2) for _ in range(2))
    with data_kept(looked_at):
        first = torch.cat(list(looked_at))
    again = torch.cat(list(looked_at))

    assert torch.equal(again, torch.cat(list(read))) and torch.equal(again, first)
    assert not torch.equal(torch.cat(list(looked_at)), first)


def test_data_are_neither_copied_nor_walked_through():
    """A hundred thousand files are followed in less time than a look at each would take."""
    data = Drawn()
    data.files, data.images = [(str(number), number) for number in range(100_000)], torch.zeros(4)
    begin = time.process_time()
    with data_kept(DataLoader(data, 2)):
        took = time.process_time() - begin
        data.images.add_(1)
        data.files.append(("", 0))

    assert took < 0.1 and data.images.tolist() == [1] * 4 and len(data.files) == 100_000


class Images(Dataset):
    """Drawn one after the other from a stream of its own."""

    def __init__(self):
        self.rng = torch.Generator().manual_seed(0)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(1, 8, 8, generator=self.rng), index % 10


class Sums(Callback):
    """Of the images of each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(float(batch[0].sum()))


class Described(Plain):
    def features(self, images):
        return images.flatten(1)


@pytest.mark.parametrize(
    "callback",
    [LRRangeTest(num_steps=3), SWA(start_step=0, every_n_steps=1, bn_batches=2), KNNProbe(k=3)],
    ids=lambda it: type(it).__name__,
)
def test_a_look_at_the_training_images_leaves_the_dataset_where_it_was(callback):
    plain, looked = Sums(), Sums()
    for callbacks in ([plain], [looked, callback]):
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, num_sanity_val_steps=0)
        trainer.fit(Described(), DataLoader(Images(), 6), plain_loader(6))

    assert looked.seen == plain.seen
