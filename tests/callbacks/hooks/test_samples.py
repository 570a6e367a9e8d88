"""A few samples stand for a whole validation: every class as far as there is room, always the same ones."""

import pytest
import torch

from lightning_vision.callbacks.hooks._samples import Chosen, Samples, labels_of


def images(values):
    """Images `(B, 1, 2, 2)` filled with their values."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)


def choose(count, labels, batch=3):
    """Indices and labels of the samples chosen of a set in batches of `batch`."""
    chosen = Chosen(count)
    for begin in range(0, len(labels), batch):
        part = labels[begin : begin + batch]
        chosen.add(images(range(begin, begin + len(part))), torch.tensor(part))
    samples = chosen.samples(None, None)
    return [int(it[0, 0, 0]) for it in samples.images], [int(it) for it in samples.targets]


@pytest.mark.parametrize(
    ("count", "labels", "expected"),
    [
        (3, [0, 0, 0, 0, 1, 1, 2], ([0, 4, 6], [0, 1, 2])),
        (4, [0, 0, 0, 0, 1, 1, 1, 1], ([0, 1, 4, 5], [0, 0, 1, 1])),
        (2, [2, 1, 0, 1, 2], ([1, 0], [1, 2])),
        (9, [1, 0], ([1, 0], [0, 1])),
        (3, [-1, -1, -1, 4, -100, 4, 3], ([6, 3, 5], [3, 4, 4])),
        (2, [-1, -1, -1], ([0, 1], [-1, -1])),
    ],
    ids=["sorted by class", "two classes", "more classes than room", "fewer than asked", "unlabelled", "no label"],
)
def test_samples_are_the_first_of_as_many_classes_as_there_is_room_for(count, labels, expected):
    assert choose(count, labels) == expected


def test_the_batches_do_not_matter():
    labels = torch.randint(7, (60,), generator=torch.Generator().manual_seed(0)).tolist()

    assert choose(10, labels, 3) == choose(10, labels, 60)
    assert set(choose(10, labels)[1]) == set(range(7))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor(3), [3]),
        (torch.tensor([3]), [3]),
        (torch.tensor(1.0), [1]),
        (torch.tensor(2.7), []),
        (torch.tensor(float("nan")), []),
        (torch.tensor(-100), []),
        (7, [7]),
        (None, []),
        ("cat", []),
        (torch.tensor([0, 1, 0, 1]), [1, 3]),
        (torch.tensor([0.0, 0.0]), []),
        (torch.tensor([0.2, 0.7, 0.1]), [1]),
        (torch.tensor([12.0, 0.5, 3.0]), []),
        (torch.zeros(4, 4), []),
        ({"labels": torch.tensor([2, 2, 1]), "boxes": torch.zeros(3, 4)}, [2, 2, 1]),
        ({"boxes": torch.zeros(3, 4)}, []),
    ],
)
def test_labels_are_read_from_what_a_batch_says(target, expected):
    assert labels_of(target) == expected


def test_images_of_one_size_come_as_one_batch_and_others_one_by_one():
    alike, mixed = Chosen(4), Chosen(4)
    alike.add([torch.rand(3, 4, 4) for _ in range(2)], [{"labels": torch.tensor([1])}] * 2)
    mixed.add(torch.rand(1, 3, 4, 4), torch.tensor([0]))
    mixed.add(torch.rand(2, 3, 6, 4), torch.tensor([1, 2]))
    one, three = alike.samples(None, None), mixed.samples(None, None)

    assert [tuple(it.shape) for it in one.pieces()] == [(2, 3, 4, 4)]
    assert [tuple(it.shape) for it in three.pieces()] == [(1, 3, 4, 4), (1, 3, 6, 4), (1, 3, 6, 4)]
    assert (one.listed, three.listed) == (True, False)
    assert one.classes().tolist() == [1, 1]


def test_a_target_that_is_no_list_of_labels_counts_as_none():
    chosen = Chosen(2)
    for target in (torch.tensor(1), 1, torch.zeros(3), None):
        chosen.add(images([1]), target)

    assert chosen.samples(None, None).targets == [None, None]


def test_a_set_of_which_one_image_has_no_class_has_no_classes():
    assert Samples(images([1, 2]), [torch.tensor(1), torch.tensor(-1)]).classes() is None


def test_what_is_kept_is_a_copy_that_autograd_takes():
    chosen = Chosen(2)
    with torch.inference_mode():
        batch = torch.rand(2, 3, 4, 4)
        chosen.add(batch, {"labels": batch})
        before = batch.clone()
        batch.zero_()
        samples = chosen.samples(None, None)

    assert torch.equal(samples.images, before)
    assert samples.images.clone().requires_grad_().square().sum().backward() is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_pixels_come_back_exactly_whatever_the_default_type(channels, default):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(channels, -1, -1)
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    image = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.set_default_dtype(default)
    try:
        (shown,) = Samples(image[None], [None], pixels=(mean, std)).shown()
    finally:
        torch.set_default_dtype(torch.float32)

    assert (torch.from_numpy(shown) == pixels.expand(3, -1, -1).permute(1, 2, 0)).all()


def test_an_image_of_unknown_normalisation_is_stretched_to_its_own_range():
    image = torch.tensor([[-4.0, 0.0], [4.0, 6.0]]).expand(5, 2, 2)
    (shown,) = Samples(image[None], [None], pixels=([0.5, 0.5], [1.0, 1.0])).shown()

    assert shown[..., 0].tolist() == [[0, 102], [204, 255]]


def test_classes_have_names_where_they_are_known():
    samples = Samples(images([0]), [None], ["cat", "dog"])

    assert [samples.called(it) for it in (0, 1, 2, -1)] == ["cat", "dog", "2", "-1"]
