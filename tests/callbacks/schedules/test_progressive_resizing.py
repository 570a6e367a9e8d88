"""Images grow with training, and everything that is known of their pixels moves along.

Training equals a loop that resizes images and boxes itself; resuming, precisions and processes are `conformance/`'s.
"""

import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as theirs

from lightning_vision.callbacks import BornAgain, MixUp, ProgressiveResizing
from lightning_vision.callbacks.schedules._stretch import moved
from lightning_vision.callbacks.schedules.progressive_resizing import grown_at, resize_images, resize_target, size_at
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.augmentation import RandAugment
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images, plain_loader, with_boxes
from support.modules import AnySize, Detects, Plain, TwoOptimizers
from support.trainers import quiet_trainer


@pytest.mark.parametrize(
    ("size", "arguments", "expected"),
    [
        ((8, 8), (0.5, 0.2, 2), [(4, 4), (6, 6), (6, 6), (8, 8), (8, 8)]),
        ((224, 160), (0.5, 0.2, 32), [(128, 96), (128, 96), (160, 128), (192, 128), (224, 160)]),
        ((300, 300), (128 / 300, 0.0, 1), [(128, 128), (162, 162), (197, 197), (231, 231), (266, 266)]),
        ((40, 20), (0.1, 0.5, 32), [(32, 20), (32, 20), (32, 20), (40, 20), (40, 20)]),
        ((64, 64), (1.0, 0.0, 32), [(64, 64)] * 5),
    ],
    ids=["tiny", "two sides", "no last phase", "below a multiple", "neutral"],
)
def test_sizes_are_those_by_hand(size, arguments, expected):
    assert [size_at(size, done / 5, *arguments) for done in range(5)] == expected


def test_sizes_never_shrink_are_multiples_and_end_with_the_whole_for_the_last_part():
    for side, start, full, multiple in [(224, 0.5, 0.25, 32), (90, 0.3, 0.5, 8), (33, 0.7, 0.1, 4), (500, 0.1, 0.0, 1)]:
        sizes = [size_at((side, side), done / 200, start, full, multiple)[0] for done in range(201)]

        assert all(one <= other for one, other in pairwise(sizes))
        assert all(it % multiple == 0 or it == side for it in sizes)
        assert set(sizes[round(200 * (1 - full)) :]) == {side}
        assert abs(sizes[0] - start * side) <= max(multiple / 2, multiple - start * side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_pixels_are_torchvisions(dtype):
    images = (torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    ours = resize_images(images, (16, 24))
    expected = theirs.resize(images, [16, 24], theirs.InterpolationMode.BILINEAR, antialias=True)

    assert ours.dtype == dtype
    assert (ours.float() - expected.float()).abs().max() <= {torch.uint8: 1, torch.bfloat16: 1}.get(dtype, 1e-4)
    assert resize_images(images, (24, 40)) is images


def rectangle(height, width, box):
    """A black image with a white rectangle, and a detector's target that tells where it is."""
    image, mask = torch.zeros(3, height, width), torch.zeros(1, height, width, dtype=torch.uint8)
    left, top, right, bottom = box
    image[:, top:bottom, left:right] = mask[:, top:bottom, left:right] = 1
    return image, {
        "boxes": torch.tensor([box], dtype=torch.float32),
        "labels": torch.tensor([3]),
        "masks": mask,
        "keypoints": torch.tensor([[[left, top, 2.0], [right, bottom, 1.0]]]),
        "placement": torch.tensor([2.0, 2.0, 0.0, -8.0]),
    }


def extent(pixels):
    rows, columns = torch.nonzero(pixels > 0.5, as_tuple=True)
    return [float(it) for it in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize("listed", [False, True])
def test_a_white_rectangle_is_where_its_box_mask_keypoints_and_placement_say(listed):
    scenes = [rectangle(64, 96, (8, 16, 40, 48)), rectangle(64, 96, (60, 4, 92, 60))]
    images, targets = (list(them) for them in zip(*scenes, strict=True))
    before = [{name: value.clone() for name, value in it.items()} for it in targets]
    batch = (images if listed else torch.stack(images), targets)
    resized, moved = ProgressiveResizing(multiple=16).change_at(batch, 0.0)

    for image, its, old in zip(resized, moved, before, strict=True):
        assert image.shape == (3, 32, 48)
        assert its["boxes"][0].tolist() == extent(image[0]) == extent(its["masks"][0])
        assert its["boxes"].equal(old["boxes"] / 2)
        assert its["keypoints"][0, :, :2].flatten().tolist() == its["boxes"][0].tolist()
        assert its["keypoints"][0, :, 2].tolist() == [2, 1]
        assert its["placement"].tolist() == [1, 1, 0, -4]
        assert its["labels"].tolist() == [3]
    assert all(its[name].equal(old[name]) for its, old in zip(targets, before, strict=True) for name in old)


def test_sides_that_shrink_by_different_factors_move_boxes_by_each():
    image, target = rectangle(48, 64, (16, 12, 32, 24))
    (resized,), (moved,) = ProgressiveResizing(start=0.55, multiple=16).change_at((image[None], [target]), 0.0)

    assert resized.shape == (3, 32, 32)
    assert moved["boxes"].tolist() == [[8, 8, 16, 16]]
    assert extent(resized[0]) == [8, 8, 16, 16]


def test_images_of_a_list_have_their_own_sizes():
    scenes = [rectangle(64, 96, (8, 16, 40, 48)), rectangle(32, 16, (4, 4, 8, 8))]
    images, targets = ProgressiveResizing(multiple=8).change_at(tuple(zip(*scenes, strict=True)), 0.0)

    assert [tuple(it.shape[1:]) for it in images] == [(32, 48), (16, 8)]
    assert [it["boxes"].tolist() for it in targets] == [[[4, 8, 20, 24]], [[2, 2, 4, 4]]]


def test_other_batches_keep_their_form():
    images, labels, weights = torch.rand(2, 1, 8, 8), torch.tensor([1, 0]), torch.rand(2)
    maps = torch.arange(8).repeat(2, 8, 1)
    resizing = ProgressiveResizing(target_key="map")
    of_all = resizing.change_at([images, {"boxes": torch.full((2, 1, 4), 4.0)}], 0.0)[1]
    mapping = resizing.change_at({"image": images, "map": maps, "weight": weights}, 0.0)

    assert resizing.change_at(images, 0.0).shape == (2, 1, 4, 4)
    assert [it.shape for it in resizing.change_at([images], 0.0)] == [(2, 1, 4, 4)]
    assert resizing.change_at({"image": images}, 0.0)["image"].shape == (2, 1, 4, 4)
    assert resizing.change_at((images, labels, weights), 0.0)[1:] == (labels, weights)
    assert of_all["boxes"].flatten().tolist() == [2.0] * 8
    assert mapping["map"][0, 0].tolist() == [1, 3, 5, 7]
    assert mapping["weight"] is weights
    assert resizing.change_at(batch := (images, labels), 0.9) is batch


def moved_along(target, count=2, side=8):
    return ProgressiveResizing().change_at((torch.rand(count, 1, side, side), target), 0.0)[1]


def test_boxes_of_whole_pixels_do_not_become_nothing():
    boxes, points = torch.tensor([[1, 2, 6, 7]]), torch.tensor([[[3, 5, 1]]])
    changed = moved_along([{"boxes": boxes, "keypoints": points}] * 2)[0]

    assert changed["boxes"].tolist() == [[0.5, 1.0, 3.0, 3.5]]
    assert changed["keypoints"].tolist() == [[[1.5, 2.5, 1.0]]]
    assert moved_along([{"keypoints": torch.tensor([[[3.0, 5.0]]])}] * 2)[0]["keypoints"].tolist() == [[[1.5, 2.5]]]


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_images_without_objects_stay_without(shape):
    empty = {"boxes": torch.zeros(shape), "labels": torch.zeros(0), "masks": torch.zeros(0)}
    changed = moved_along([empty, {"boxes": torch.ones(1, 4), "masks": torch.ones(1, 8, 8)}])

    assert {name: tuple(it.shape) for name, it in changed[0].items()} == {
        "boxes": shape,
        "labels": (0,),
        "masks": (0,),
    }
    assert tuple(changed[1]["masks"].shape) == (1, 4, 4)


def test_labels_of_as_many_samples_and_classes_as_an_image_has_pixels_are_no_map():
    labels = torch.rand(8, 8)

    assert moved_along(labels, count=8) is labels


def test_maps_among_several_targets_move_and_those_of_another_size_stay():
    labels, maps = torch.zeros(3), torch.arange(8).repeat(3, 8, 1)
    changed = moved_along((labels, maps), count=3)
    coarse = torch.ones(1, 2, 2)

    assert changed[0] is labels
    assert changed[1].tolist() == [[[1, 3, 5, 7]] * 4] * 3
    assert moved_along([{"masks": coarse}] * 2)[0]["masks"] is coarse


def test_a_later_batch_of_small_images_is_trained_on_as_it_is():
    batches = [([torch.rand(1, side, side)] * 2, torch.tensor([0, 1])) for side in (32, 8)]
    sides = []

    class Lists(AnySize):
        def loss(self, image, target):
            sides.extend(it.shape[-1] for it in image)
            return super().loss(torch.stack(image), target)

    loader = DataLoader(batches, batch_size=None)
    quiet_trainer(callbacks=[ProgressiveResizing(multiple=16)], max_epochs=1).fit(Lists(), loader)

    assert sides == [16, 16, 8, 8]


class Sizes(Callback):
    """What a step sees, and what a validation sees."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.append(batch[0].shape[-1])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.append(batch[0].shape[-1])


def sizes_of(callbacks, module=None, **options):
    seen = Sizes()
    trainer = quiet_trainer(callbacks=[*callbacks, seen], **{"max_epochs": 2} | options)
    trainer.fit(module or AnySize(), plain_loader(30), plain_loader(12))
    return seen


def test_all_micro_batches_of_a_step_have_one_size_and_validation_is_left_alone():
    seen = sizes_of([ProgressiveResizing()], max_epochs=4, accumulate_grad_batches=2)

    # Twelve steps, of which each epoch's third has one batch.
    steps = [size_at((8, 8), step / 12, 0.5, 0.2, 2)[0] for step in range(12)]
    assert seen.trained == [size for step, size in enumerate(steps) for _ in range(1 if step % 3 == 2 else 2)]
    assert set(seen.trained) == {4, 6, 8}
    assert set(seen.validated) == {8}


def test_mixed_are_the_small_images_whatever_the_lists_order():
    shapes = []

    class Small(MixUp):
        def mix(self, images, draw):
            shapes.append(images.shape[-1])
            return super().mix(images, draw)

    seen = sizes_of([Small(), ProgressiveResizing()])

    assert shapes == seen.trained
    assert seen.trained[0] == 4


def test_where_steps_cannot_be_told_sizes_follow_epochs_and_a_rehearsal_is_small():
    manual = sizes_of([ProgressiveResizing(full=0.3)], AnySizeTwo(), max_epochs=3)
    rehearsal = sizes_of([ProgressiveResizing()], fast_dev_run=2)

    assert manual.trained == [4] * 5 + [6] * 5 + [8] * 5
    assert rehearsal.trained == [4, 4]


class AnySizeTwo(AnySize, TwoOptimizers):
    pass


def test_each_training_of_a_fit_grows_from_the_beginning():
    once = sizes_of([ProgressiveResizing()], max_epochs=2)
    twice = sizes_of([ProgressiveResizing(), BornAgain(generations=2)], max_epochs=4)

    assert twice.trained == once.trained * 2


def train_by_hand(shift=0, boxes=True, last=0.2):
    """Detects for 2 epochs of 5 batches, steps of two batches, as a loop would."""
    module = seeded(Detects, 0.0).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    step, losses = 0, []
    for epoch in range(2):
        loader = ResumableLoader(labelled_images(27), 6, collate_fn=with_boxes)
        loader.sampler.set_epoch(epoch)
        for index, (images, targets) in enumerate(loader):
            done = (step + shift) / 6
            side = 8 if done >= 1 - last else int(8 * (0.5 + 0.5 * done / (1 - last)) / 2 + 0.5) * 2
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            if boxes:
                targets = [{**it, "boxes": it["boxes"] * (side / 8)} for it in targets]
            loss = module.loss(images, targets)
            losses.append(float(loss))
            (loss / 2).backward()
            if index % 2 == 1 or index == 4:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                step += 1
    return module, losses


def test_losses_and_weights_are_those_of_a_loop_that_resizes_images_and_boxes():
    losses = []

    class Noting(Detects):
        def loss(self, image, target):
            found = super().loss(image, target)
            losses.append(float(found))
            return found

    module = seeded(Noting, 0.0)
    loader = ResumableLoader(labelled_images(27), 6, collate_fn=with_boxes)
    trainer = quiet_trainer(callbacks=[ProgressiveResizing()], max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(module, loader)
    expected, their_losses = train_by_hand()

    assert losses == their_losses
    assert distance(module.state_dict(), expected.state_dict()) == 0.0


@pytest.mark.parametrize("wrong", [{"shift": 1}, {"boxes": False}, {"last": 0.6}], ids=str)
def test_a_wrong_resizing_is_noticed(wrong):
    right, wrong = (train_by_hand(**it)[0].state_dict() for it in ({}, wrong))

    assert distance(right, wrong) > 1e-3


def test_a_network_of_one_size_fails_at_once_and_the_error_says_why():
    module = Plain()
    with pytest.raises(RuntimeError) as error:
        sizes_of([ProgressiveResizing()], module)

    assert module.global_step == 0
    assert error.value.__notes__ == [
        "ProgressiveResizing: the first batch had images of 0.5 of their sides; if the network takes images of one "
        "size only, make it one that takes any (timm's vision transformers do with dynamic_img_size=True), or leave "
        "this out."
    ]


def test_a_later_error_is_none_of_its_business():
    class Late(AnySize):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError) as error:
        sizes_of([ProgressiveResizing()], Late())

    assert not hasattr(error.value, "__notes__")


@pytest.mark.parametrize(
    ("callbacks", "options", "message"),
    [
        (
            [ProgressiveResizing(multiple=32)],
            {},
            "ProgressiveResizing: images of 8x8 pixels have no size between start=0.5 of their sides and the whole "
            "that is a multiple of 32; give a smaller multiple=, or a smaller start=.",
        ),
        (
            [ProgressiveResizing()],
            {"max_epochs": -1},
            "ProgressiveResizing: the training has no end that can be told, so nobody knows how much of it is done; "
            "give the Trainer max_epochs or max_steps.",
        ),
        (
            [ProgressiveResizing(name="a"), ProgressiveResizing(name="b")],
            {},
            "ProgressiveResizing: the Trainer has two of them, and each would change what the other made; keep one.",
        ),
    ],
    ids=["no smaller size", "no end", "two"],
)
def test_what_cannot_be_is_refused_before_the_first_step(callbacks, options, message):
    module = AnySize()
    with pytest.raises(ValueError) as refusal:
        sizes_of(callbacks, module, **options)

    assert str(refusal.value) == message
    assert module.global_step == 0


@pytest.mark.parametrize("images", [torch.zeros(3, 8), [torch.zeros(2, 1, 8, 8)], ["a"], "ab"])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match=r"^ProgressiveResizing: images must be a tensor \(B, C, H, W\) or a list"):
        ProgressiveResizing().change_at((images, torch.zeros(2)), 0.0)


def test_in_a_mapping_without_its_target_nothing_that_is_known_of_pixels_stays_behind():
    batch = {"image": torch.zeros(2, 1, 8, 8), "index": torch.arange(2), "mask": torch.ones(2, 8, 8)}
    batch["objects"] = [{"boxes": torch.tensor([[2.0, 4.0, 6.0, 8.0]])}] * 2
    changed = ProgressiveResizing().change_at(batch, 0.0)

    assert {key: tuple(changed[key].shape) for key in ("image", "index", "mask")} == {
        "image": (2, 1, 4, 4),
        "index": (2,),
        "mask": (2, 4, 4),
    }
    assert changed["objects"][1]["boxes"].tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert batch["image"].shape[-1] == batch["mask"].shape[-1] == 8


def test_a_second_view_is_resized_as_the_images_are_and_a_map_is_not():
    images, resizing = torch.randn(2, 3, 8, 8), ProgressiveResizing()
    for views in (images.clone(), [images.clone(), torch.zeros(2), images.clone()]):
        resized, others = resizing.change_at((images, views), 0.0)
        assert torch.equal(resized, others if isinstance(views, torch.Tensor) else others[2])

    maps = torch.randint(2, (2, 3, 8, 8))
    assert torch.equal(resizing.change_at((images, maps), 0.0)[1], resize_target(maps, (8, 8), (4, 4)))


def test_its_own_refusal_says_nothing_of_networks():
    with pytest.raises(ValueError, match=r"no size between start=0\.5") as refusal:
        sizes_of([ProgressiveResizing(multiple=32)], AnySize())

    assert not hasattr(refusal.value, "__notes__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0}, "start=0 and full=0.2 leave no size to begin with, or no time to grow; give a start above 0 "),
        ({"full": 1}, "start=0.5 and full=1 leave no size to begin with, or no time to grow; give a start above 0 "),
        ({"start": 1.5}, "start is 1.5; give a number from 0 to 1."),
        ({"full": -0.1}, "full is -0.1; give a number from 0 to 1."),
        ({"multiple": 0}, "multiple is 0; give a whole number of at least 1."),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message):
    with pytest.raises(ValueError) as refusal:
        ProgressiveResizing(**arguments)

    assert str(refusal.value).startswith(f"ProgressiveResizing: {message}")


def test_full_is_not_asked_for_with_stages():
    assert ProgressiveResizing(stages=4, full=1.0)._size(torch.zeros(1, 16, 16), 0.0) == (8, 8)


def test_anything_else_that_is_known_of_an_image_stays():
    target = {"labels": torch.tensor([1]), "area": torch.tensor([9.0]), "name": "cat"}

    assert resize_target(target, (8, 8), (4, 4)) == target
    assert resize_target(3, (8, 8), (4, 4)) == 3


def test_an_epochs_loader_of_unequal_batches_is_resized_too():
    data = DataLoader(labelled_images(8), 6)
    seen = Sizes()
    quiet_trainer(callbacks=[ProgressiveResizing(), seen], max_epochs=5).fit(AnySize(dropout=0.0), data)

    assert seen.trained == [size_at((8, 8), step / 10, 0.5, 0.2, 2)[0] for step in range(10)]


# Row 213: the paper's stages, and what strengthens with them.


@pytest.mark.parametrize("stages", [1, 2, 4, 7, 49])
def test_row_213_stages_are_equally_long_and_their_values_lie_on_a_line_with_exact_ends(stages):
    """A hundred steps a stage; end points are compared without tolerance, values between to the last few bits."""
    grown = [grown_at(step / (100 * stages), 0.2, stages) for step in range(100 * stages)]
    strengths = [moved(it, 0.1, 0.3) for it in grown]
    expected = [stage / (stages - 1) if stages > 1 else 1.0 for stage in range(stages)]

    assert grown == [it for it in expected for _ in range(100)]
    assert strengths == pytest.approx([0.1 + 0.2 * it for it in grown], rel=1e-12)
    assert (strengths[0], strengths[-1]) == (0.1 if stages > 1 else 0.3, 0.3)


def test_row_213_sizes_are_the_papers_and_rounded_to_the_multiple():
    def sizes(side, multiple, start=128 / 300, stages=4):
        return [size_at((side, side), it / stages, start, 0.2, multiple, stages)[0] for it in range(stages)]

    assert sizes(300, 1) == [128, 185, 243, 300]  # Table 6, of S
    assert sizes(300, 32) == [128, 192, 256, 300]
    assert sizes(384, 32, start=1 / 3) == [128, 224, 288, 384]
    assert sizes(224, 32, start=0.5, stages=2) == [128, 224]
    assert sizes(224, 32, stages=1) == [224]


class Regularised(AnySize):
    """Two dropouts beside a rate that forward reads, and what a step has of all."""

    def __init__(self):
        super().__init__(dropout=0.4)
        self.rate, self.seen = 0.7, []
        self.extra = torch.nn.Dropout(0.6)

    def training_step(self, batch, batch_idx):
        dropouts = {it.p for it in self.modules() if isinstance(it, torch.nn.Dropout)}
        self.seen.append((batch[0].shape[-1], dropouts, self.rate))
        return super().training_step(batch, batch_idx)


def test_row_213_batches_have_the_size_and_dropouts_the_probability_of_their_stage():
    module = Regularised()
    resizing = ProgressiveResizing(stages=3, strengthen={"*.p": [0.1, 0.3], "rate": [0, 1]})
    sizes_of([resizing], module, max_epochs=3, accumulate_grad_batches=2)

    # Three steps an epoch and three epochs, so a stage is an epoch, of five micro-batches.
    stages = [(4, {0.1}, 0), (6, {moved(0.5, 0.1, 0.3)}, 0.5), (8, {0.3}, 1)]
    assert module.seen == [stage for stage in stages for _ in range(5)]
    assert (module.network[3].p, module.extra.p, module.rate) == (0.4, 0.6, 0.7)


def test_row_213_one_stage_equals_ordinary_training():
    def weights(*callbacks, dropout=0.5):
        module = seeded(AnySize, dropout)
        quiet_trainer(callbacks=list(callbacks), max_epochs=1).fit(module, plain_loader(30))
        return module.state_dict()

    ordinary, strong = weights(), weights(dropout=0.3)
    strengthen = {"network.3.p": [0.1, 0.3]}

    assert distance(weights(ProgressiveResizing(stages=1)), ordinary) == 0.0
    assert distance(weights(ProgressiveResizing(stages=1, strengthen=strengthen)), strong) == 0.0
    assert distance(ordinary, strong) > 1e-3
    assert distance(weights(ProgressiveResizing(stages=2, strengthen=strengthen)), strong) > 1e-3


@pytest.mark.parametrize("every", [4, 7])
def test_row_213_a_run_resumed_inside_a_stage_goes_on_with_it(every, tmp_path):
    def run(path=None):
        module = seeded(Regularised)
        resizing = ProgressiveResizing(stages=4, strengthen={"*.p": [0.1, 0.3], "rate": [0, 1]})
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=every, save_top_k=-1)
        trainer = quiet_trainer(callbacks=[resizing, saving], max_epochs=2, enable_checkpointing=True)
        trainer.fit(module, ResumableLoader(labelled_images(30), 6), ckpt_path=path)
        return module

    straight = run()
    resumed = run(str(tmp_path / f"step={every}.ckpt"))

    # Stages begin with steps 0, 3, 5 and 8 of ten.
    assert [size for size, _, _ in straight.seen] == [4] * 3 + [6] * 2 + [6] * 3 + [8] * 2
    assert resumed.seen == straight.seen[every:]


def train_in_stages(stages=3, size_too=True, shift=0):
    """A loop that resizes, and sets its dropout, by Algorithm 1: three stages of five steps."""
    module = seeded(AnySize).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    loader = ResumableLoader(labelled_images(30), 6)
    for step in range(15):
        if step % 5 == 0:
            loader.sampler.set_epoch(step // 5)
            batches = iter(loader)
        images, labels = next(batches)
        stage = min(stages - 1, (step + shift) * stages // 15)
        side = 2 * round((4 + 4 * stage / (stages - 1)) / 2 + 1e-9)
        module.network[3].p = (1 - stage / (stages - 1)) * 0.1 + stage / (stages - 1) * 0.3
        if size_too:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        module.loss(images, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return module.state_dict()


def test_training_in_stages_equals_a_loop_by_the_papers_algorithm_and_wrong_ones_are_noticed():
    module = seeded(AnySize)
    resizing = ProgressiveResizing(stages=3, strengthen={"network.3.p": [0.1, 0.3]})
    quiet_trainer(callbacks=[resizing], max_epochs=3).fit(module, ResumableLoader(labelled_images(30), 6))

    assert distance(module.state_dict(), train_in_stages()) == 0.0
    for wrong in ({"size_too": False}, {"shift": 1}, {"stages": 2}):
        assert distance(module.state_dict(), train_in_stages(**wrong)) > 1e-3


def test_without_stages_numbers_grow_with_every_step_and_are_whole_when_images_are():
    module = Regularised()
    sizes_of([ProgressiveResizing(strengthen={"rate": [0.2, 1.0]})], module, max_epochs=2)

    assert [rate for _, _, rate in module.seen] == pytest.approx([0.2 + 0.1 * step for step in range(8)] + [1.0] * 2)
    assert {rate for side, _, rate in module.seen if side == 8} >= {1.0}


def test_strengths_alone_grow_on_whole_images_also_of_a_network_of_one_size():
    module = Plain()
    seen = sizes_of([ProgressiveResizing(start=1.0, stages=2, strengthen={"network.3.p": [0.0, 0.2]})], module)

    assert set(seen.trained) == {8}
    assert module.network[3].p == 0.5


def test_digits_are_augmented_and_mixed_with_the_strength_of_their_stage():
    noted = []

    class Noting(RandAugment):
        def plans(self, uniform, sides):
            noted.append(("magnitude", self.magnitude))
            return super().plans(uniform, sides)

    class Mixing(MixUp):
        def draw(self, shape, random):
            noted.append(("alpha", self.alpha, shape[-1]))
            return super().draw(shape, random)

    data = Digits(batch_size=128, augment=Noting(num_ops=1, magnitude=9))
    strengthen = {"datamodule.augmentation.magnitude": [5, 15], "callbacks.Mixing.alpha": [0.0, 0.2]}
    callbacks = [ProgressiveResizing(stages=3, strengthen=strengthen), Mixing(alpha=0.1)]
    trainer = quiet_trainer(callbacks=callbacks, max_steps=6, max_epochs=-1, limit_val_batches=0)
    trainer.fit(AnySize(), datamodule=data)

    # An alpha of 0 mixes nothing.
    assert noted == [
        *[("magnitude", 5.0)] * 2,
        *[("magnitude", 10.0), ("alpha", 0.1, 6)] * 2,
        *[("magnitude", 15.0), ("alpha", 0.2, 8)] * 2,
    ]
    assert data.augmentation.magnitude == 9


def test_a_strength_that_its_owner_does_not_take_is_refused_before_the_first_step():
    data = Digits(batch_size=128, augment=RandAugment())
    resizing = ProgressiveResizing(stages=2, strengthen={"datamodule.augmentation.magnitude": [5, 45]})
    message = (
        "ProgressiveResizing: datamodule.augmentation.magnitude does not take 45: RandAugment: magnitude is 45; "
        "give a number from 0 to 30."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        quiet_trainer(callbacks=[resizing], max_epochs=1).fit(AnySize(), datamodule=data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strengthen": ["a"]}, "strengthen is ['a']; give a dictionary of names to [low, high]."),
        ({"stages": 0}, "stages is 0; give a whole number of at least 1."),
        ({"strengthen": {"rate": [0.1]}}, "strengthen has [0.1] for 'rate'; give two finite numbers, [low, high]."),
        (
            {"strengthen": {"rate": [0, "1"]}},
            "strengthen has [0, '1'] for 'rate'; give two finite numbers, [low, high].",
        ),
    ],
)
def test_wrong_stages_and_strengths_are_refused(arguments, message):
    with pytest.raises(ValueError) as refusal:
        ProgressiveResizing(**arguments)

    assert str(refusal.value) == f"ProgressiveResizing: {message}"
