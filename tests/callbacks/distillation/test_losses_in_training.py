"""The losses of layers and logits inside `Distillation`, against a loop that is written from their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.callbacks import Distillation
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer


def teacher_of():
    torch.manual_seed(9)
    layers = nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    return nn.Sequential(*layers).eval()


def decoupled(logits, said, target, *_):
    p, q = (said / 4).softmax(1), (logits / 4).softmax(1)
    rows = torch.arange(len(target))
    own, ours = p[rows, target], q[rows, target]
    of_label = own * (own / ours).log() + (1 - own) * ((1 - own) / (1 - ours)).log()
    every = p / (1 - own)[:, None] * ((p / (1 - own)[:, None]) / (q / (1 - ours)[:, None])).log()
    every = every.masked_fill(F.one_hot(target, 10).bool(), 0.0)
    return 16 * (of_label + 3.0 * every.sum(dim=1)).mean()


def attention(_, __, ___, inner, found):
    ours, theirs = (it.square().sum(dim=1).flatten(1) for it in (inner, found))
    return (ours / ours.norm(dim=1, keepdim=True) - theirs / theirs.norm(dim=1, keepdim=True)).square().mean()


def relational(_, __, ___, inner, found):
    different = ~torch.eye(len(inner), dtype=torch.bool)

    def relations(layer):
        embedding = layer.mean(dim=(2, 3))
        apart = embedding[None] - embedding[:, None]
        lengths = (apart.square().sum(dim=2) + (~different).float()).sqrt()
        directions = apart / lengths[:, :, None]
        cosines = torch.einsum("jic,jkc->jik", directions, directions)
        triples = different[:, :, None] & different[:, None, :] & different[None]
        return lengths[different] / lengths[different].mean(), cosines[triples]

    pairs = zip(relations(inner), relations(found), strict=True)
    distances, angles = (F.huber_loss(ours, theirs) for ours, theirs in pairs)
    return distances + 2 * angles


LOSSES = {
    "decoupled": (decoupled, {"loss": "decoupled", "beta": 3.0, "kd_weight": 0.7}, 0.7),
    "attention": (attention, {"kd_weight": 0.0, "layer_loss": "attention", "layer_weight": 20.0}, 20.0),
    "relational": (relational, {"kd_weight": 0.0, "layer_loss": "relational", "layer_weight": 5.0}, 5.0),
}


@pytest.mark.parametrize("case", LOSSES)
def test_training_equals_a_loop_by_hand(case):
    term, settings, weight = LOSSES[case]
    teacher = teacher_of()
    layers = {} if case == "decoupled" else {"layers": {"network.2": "2"}}
    module = seeded(Plain)
    torch.manual_seed(1)
    callback = Distillation(teacher, **settings, **layers)
    quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, ResumableLoader(labelled_images(60), 6))

    def by_hand(weight):
        looped = seeded(Plain)
        torch.manual_seed(1)
        setup = looped.configure_optimizers()
        optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
        for image, target in ResumableLoader(labelled_images(60), 6):
            inner = looped.network[:3](image)
            logits = looped.network[3:](inner)
            with torch.no_grad():
                found, said = teacher[:3](image), teacher(image)
            optimizer.zero_grad()
            (F.cross_entropy(logits, target) + weight * term(logits, said, target, inner, found)).backward()
            optimizer.step()
            schedule.step()
        return looped.state_dict()

    teacher.eval()
    assert distance(by_hand(weight), module.state_dict()) < 2e-5
    assert distance(by_hand(0.5 * weight), module.state_dict()) > 1e-3


class Windows(nn.Module):
    """Puts out four rows of each image, as attention inside windows does."""

    def forward(self, maps):
        return maps.flatten(1).unflatten(1, (4, -1)).flatten(0, 1)


def network_of(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), *layers, nn.Flatten(), nn.Linear(36, 10))


REFUSED = {
    "attention of vectors": (
        "attention",
        {"network.4": "2"},
        network_of(nn.ReLU()),
        "'network.4' of the student and '2' of the teacher cannot be compared: a layer puts out (2, 36), which has no "
        "positions; name one that puts out maps (B, C, H, W) or tokens (B, N, C).",
    ),
    "hints of vectors beside maps": (
        "hints",
        {"network.4": "1"},
        network_of(nn.ReLU()),
        "'network.4' of the student and '1' of the teacher cannot be compared: HintAdapter: a student's layer puts out "
        "(2, 36) and the teacher's (2, 4, 3, 3); name layers that both put out maps (B, C, H, W) or tokens (B, N, C), "
        "or both vectors (B, C).",
    ),
    "windows": (
        "relational",
        {"network.2": "1.0"},
        network_of(nn.Sequential(Windows(), nn.Unflatten(0, (-1, 4)))),
        "the layer '1.0' of the teacher puts out (8, 9) for two images, which is no row for each; name another with "
        "layers=.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_cannot_be_compared_are_refused_at_set_up(case):
    layer_loss, layers, teacher, sentence = REFUSED[case]
    callback = Distillation(teacher, layers=layers, layer_loss=layer_loss)
    trainer = quiet_trainer(callbacks=[callback], max_epochs=1)
    with pytest.raises(ValueError) as refusal:
        trainer.fit(seeded(Plain), ResumableLoader(labelled_images(12), 6))

    assert str(refusal.value) == f"Distillation: {sentence}"
    assert trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0
