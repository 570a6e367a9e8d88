"""Images and labels are found and replaced in any container of a batch."""

from collections import OrderedDict, namedtuple

import pytest

from lightning_vision.callbacks.hooks._fields import Fields

Named = namedtuple("Named", "picture digit path")
FIELDS = Fields("Mixer", "image", "target")


@pytest.mark.parametrize(
    "batch, expected",
    [
        ((1, 2), (8, 9)),
        ([1, 2, 3], [8, 9, 3]),
        (Named(1, 2, "p"), Named(8, 9, "p")),
        ({"target": 2, "image": 1, "path": "p"}, {"target": 9, "image": 8, "path": "p"}),
        (OrderedDict(image=1, target=2), OrderedDict(image=8, target=9)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_is_read_and_replaced_by_one_of_its_own_type(batch, expected):
    before = type(batch)(*batch) if isinstance(batch, Named) else type(batch)(batch)
    changed = FIELDS.replaced(batch, 8, 9)

    assert (FIELDS.image(batch), FIELDS.target(batch)) == (1, 2)
    assert expected == changed
    assert type(expected) is type(changed)
    assert before == batch


def test_other_keys_can_be_named():
    fields = Fields("Mixer", "x", "y")

    assert fields.replaced({"x": 1, "y": 2}, 8, 9) == {"x": 8, "y": 9}


@pytest.mark.parametrize(
    "batch, message",
    [
        (
            {"image": 1, "label": 2},
            "Mixer: the batch has no labels under 'target', its keys are 'image', 'label'; say with target_key= which "
            "one holds them.",
        ),
        (
            [1],
            "Mixer: the batch is a list of 1 without labels; let the loader yield (images, labels), or a mapping whose "
            "keys are named by image_key= and target_key=.",
        ),
        (
            3.0,
            "Mixer: the batch is a float, in which no labels can be found; let the loader yield (images, labels), or a "
            "mapping whose keys are named by image_key= and target_key=.",
        ),
    ],
    ids=["key", "list", "float"],
)
def test_a_batch_without_labels_is_refused(batch, message):
    with pytest.raises(ValueError) as raised:
        FIELDS.target(batch)

    assert message == str(raised.value)


def test_a_mapping_without_images_names_its_keys_and_the_argument():
    with pytest.raises(ValueError, match="no images under 'image', its keys are 'x', 'y'; say with image_key="):
        FIELDS.image({"x": 1, "y": 2})
