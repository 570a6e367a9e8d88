"""What is logged equals the attacks run by hand; conformance proves that nothing of them is left behind."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import AdversarialAccuracy
from lightning_vision.callbacks.evaluation.attacks import carlini_wagner, fgsm
from support.data import labelled_images, plain_loader, with_boxes
from support.modules import Detects, Plain
from support.trainers import quiet_trainer

MEAN, STD = 0.4, 0.3
SETTINGS = {"epsilons": [0.0, 0.05], "cw_steps": 10, "cw_searches": 2, "cw_lr": 0.05}


class Normalised(LightningDataModule):
    """Pixels of 0 to 1, of which mean and deviation are told."""

    mean, std = [MEAN], [STD]

    def __init__(self, tells=True):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.pixels, self.target = torch.rand(22, 1, 8, 8, generator=draws), torch.arange(22) % 10
        if not tells:
            self.mean = self.std = None

    def val_dataloader(self):
        return DataLoader(TensorDataset((self.pixels - MEAN) / STD, self.target), batch_size=8)

    test_dataloader = train_dataloader = val_dataloader


def module():
    torch.manual_seed(0)
    return Plain()


def logged(callback, data, net, call="validate"):
    (scores,) = getattr(quiet_trainer(callbacks=[callback]), call)(net, datamodule=data, verbose=False)
    return {name.split("/")[-1]: value for name, value in scores.items() if "adversarial" in name}


def by_hand(net, pixels, target, low, high):
    """The same of one batch, without the callback."""

    def answer(images):
        return net.eval()(low + (high - low) * images)

    moved = fgsm(answer, pixels, target, 0.05)
    near = carlini_wagner(answer, pixels, target, steps=10, searches=2, lr=0.05, first_c=1.0)
    clean, after, robust = (answer(it).argmax(1) == target for it in (pixels, moved, near))
    fooled = clean & ~robust
    return {
        "clean": clean.float().mean(),
        "fgsm_0": clean.float().mean(),
        "fgsm_0_l2": 0.0,
        "fgsm_0.05": after.float().mean(),
        "fgsm_0.05_l2": (moved - pixels).flatten(1).norm(dim=1).mean(),
        "cw": robust.float().mean(),
        "cw_l2": (near - pixels).flatten(1).norm(dim=1)[fooled].mean(),
    }


def fitted():
    """A network that is right about some of the images."""
    data, net = Normalised(), module()
    quiet_trainer(max_epochs=20, limit_val_batches=0).fit(net, datamodule=data)
    return data, net


def test_numbers_are_those_of_the_attacks_by_hand():
    data, net = fitted()
    expected = by_hand(net, data.pixels, data.target, -MEAN / STD, (1 - MEAN) / STD)
    found = logged(AdversarialAccuracy(batches=3, **SETTINGS), data, net)

    assert found.keys() == expected.keys()
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-4)
    assert 0 < found["fgsm_0.05"] < found["clean"]


def test_row_44_epsilon_zero_is_the_clean_accuracy():
    data, net = fitted()
    right = net.eval()(next(iter(data.test_dataloader()))[0]).argmax(1) == data.target[:8]
    found = logged(AdversarialAccuracy(**SETTINGS), data, net, "test")

    assert found["fgsm_0"] == found["clean"] == pytest.approx(right.float().mean().item())


def test_only_the_first_batches_are_attacked():
    data, net = fitted()
    expected = by_hand(net, data.pixels[:16], data.target[:16], -MEAN / STD, (1 - MEAN) / STD)

    found = logged(AdversarialAccuracy(batches=2, **SETTINGS), data, net)
    assert found["fgsm_0.05_l2"] == pytest.approx(float(expected["fgsm_0.05_l2"]), abs=1e-4)


def test_where_nobody_tells_the_batch_has_the_range():
    data, net = Normalised(tells=False), fitted()[1]
    images = next(iter(data.val_dataloader()))[0]
    low, high = images.min(), images.max()
    expected = by_hand(net, (images - low) / (high - low), data.target[:8], low, high)
    found = logged(AdversarialAccuracy(**SETTINGS), data, net)

    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-4)


def test_attacks_can_be_left_out():
    data, net = fitted()

    assert list(logged(AdversarialAccuracy([], cw_steps=0), data, net)) == ["clean"]
    assert list(logged(AdversarialAccuracy([0.1], cw_steps=0), data, net)) == ["clean", "fgsm_0.1", "fgsm_0.1_l2"]


def test_a_checkpoint_may_be_monitored_by_it_and_training_is_that_of_a_run_without():
    weights = []
    for callbacks in ([], [AdversarialAccuracy(**SETTINGS, name="attacked")]):
        net = module()
        trainer = quiet_trainer(callbacks=callbacks, max_epochs=2)
        trainer.fit(net, plain_loader(24), plain_loader(12))
        weights.append(torch.cat([it.flatten().double() for it in net.state_dict().values()]))

    assert torch.equal(*weights)
    assert "val/attacked/fgsm_0.05" in trainer.callback_metrics


BAD = [
    ({"epsilons": 0.1}, "AdversarialAccuracy: epsilons is 0.1; give a list of steps, such as [0.01, 0.03]."),
    ({"epsilons": [8]}, "AdversarialAccuracy: one of the epsilons is 8; give a number from 0 to 1."),
    ({"cw_steps": -1}, "AdversarialAccuracy: cw_steps is -1; give a whole number of at least 0."),
    ({"cw_searches": 0}, "AdversarialAccuracy: cw_searches is 0; give a whole number of at least 1."),
    ({"cw_lr": 0}, "AdversarialAccuracy: cw_lr is 0; give a number above 0."),
    ({"batches": 0}, "AdversarialAccuracy: batches is 0; give a whole number of at least 1."),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        AdversarialAccuracy(**settings)

    assert str(refusal.value) == sentence


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match=r"^AdversarialAccuracy: the module \(Plain\) has no layer 'net'; there are network"
    ):
        logged(AdversarialAccuracy(network="net"), Normalised(), module())


class TakesAny(Plain):
    def validation_step(self, batch, batch_idx):
        pass


def test_labels_that_are_no_classes_are_refused():
    images, _ = labelled_images(4).tensors
    loader = DataLoader(TensorDataset(images, torch.rand(4, 10)), batch_size=4)
    with pytest.raises(ValueError, match=r"^AdversarialAccuracy: the labels of a batch are \(4, 10\) and not whole"):
        quiet_trainer(callbacks=[AdversarialAccuracy()]).validate(TakesAny(), loader, verbose=False)


def test_they_are_refused_before_the_first_step():
    net = Detects()
    trainer = quiet_trainer(callbacks=[AdversarialAccuracy()], max_epochs=1, num_sanity_val_steps=1)
    loader = DataLoader(labelled_images(4), batch_size=4, collate_fn=with_boxes)
    with pytest.raises(ValueError, match=r"^AdversarialAccuracy: the labels of a batch are list and not whole"):
        trainer.fit(net, loader, loader)

    assert trainer.global_step == 0


def scored(net, images, labels):
    callback, loader = AdversarialAccuracy(**SETTINGS), DataLoader(TensorDataset(images, labels), batch_size=32)
    (scores,) = quiet_trainer(callbacks=[callback]).validate(net, loader, verbose=False)
    return scores


@pytest.mark.parametrize("nobodys", [-1, -100, 10])
def test_images_without_a_class_are_passed_over(nobodys):
    images, labels = labelled_images(32).tensors
    some = labels < 7
    # Least and largest pixel are to be the same in both.
    images[some.nonzero()[0, 0]].flatten()[:2] = torch.tensor([-9.0, 9.0])
    net = TakesAny()

    expected = scored(net, images[some], labels[some])
    assert scored(net, images, torch.where(some, labels, nobodys)) == pytest.approx(expected, abs=1e-4)
    assert expected["val/adversarial/clean"] > 0


def test_short_integers_are_labels_too():
    images, labels = labelled_images(8).tensors
    net = TakesAny()

    assert scored(net, images, labels) == scored(net, images, labels.int())


class TakesBytes(TakesAny):
    def forward(self, image):
        return super().forward(image.float() / 255)


def test_images_that_are_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"^AdversarialAccuracy: the images of a batch are torch.uint8, in which no"):
        scored(TakesBytes(), torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))


class OneLogit(TakesAny):
    def forward(self, image):
        return super().forward(image)[:, :1]


def test_a_single_logit_is_refused():
    with pytest.raises(
        ValueError, match=r"^AdversarialAccuracy: the network answers with \(8, 1\) and not with logits"
    ):
        scored(OneLogit(), *labelled_images(8).tensors)


def test_what_makes_no_logits_is_refused():
    with pytest.raises(
        ValueError, match=r"^AdversarialAccuracy: the network answers with \(8, 4, 3, 3\) and not with "
    ):
        logged(AdversarialAccuracy(network="network.0"), Normalised(), module())
