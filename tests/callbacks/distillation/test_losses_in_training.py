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
        apart = layer.flatten(1)[None] - layer.flatten(1)[:, None]
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
