"""ScaleKD: its views against scipy's cosine transform, its teacher's last stage, training of a student on digits.

Conformance (resume, DDP, precision, undo, neutral run) is proved in `conformance/`, what a teacher sees and how parts
train beside the network in `hooks/test_taught.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.backbones import create
from lightning_vision.callbacks import ScaleKD
from lightning_vision.callbacks.distillation._cross_attention import CrossAttentionProjector
from lightning_vision.callbacks.distillation._tail import Tail
from lightning_vision.callbacks.distillation._tokens import Layout, last_layers
from lightning_vision.callbacks.distillation.dual_view import split_dc, token_distance
from lightning_vision.callbacks.distillation.kd_loss import kd_loss
from lightning_vision.callbacks.hooks.taught import Answer
from support.compare import distance, seeded
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

TERMS = ["mimic", "mimic_without_dc", "perception", "kd"]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tokens_of(maps):
    return maps.flatten(2).transpose(1, 2)


def test_row_78_the_dc_component_and_the_rest_add_up_to_the_tokens():
    tokens = drawn(2, 12, 5)
    dc, rest = split_dc(tokens)

    assert dc.shape == (2, 1, 5)
    assert (dc + rest - tokens).abs().max() < 1e-15


def test_row_78_the_dc_component_is_that_of_scipys_dct():
    maps = drawn(2, 5, 3, 4)
    dc, rest = split_dc(tokens_of(maps))
    coefficients = dctn(maps.numpy(), axes=(2, 3), norm="ortho")
    # The first coefficient is the mean, times the root of the number of places.
    assert coefficients[:, :, 0, 0] == pytest.approx(dc[:, 0].numpy() * 12**0.5, abs=1e-12)
    coefficients[:, :, 0, 0] = 0
    without = torch.from_numpy(idctn(coefficients, axes=(2, 3), norm="ortho"))

    assert (rest - tokens_of(without)).abs().max() < 1e-14
    assert dctn(rest.transpose(1, 2).reshape(2, 5, 3, 4).numpy(), axes=(2, 3), norm="ortho") == pytest.approx(
        coefficients, abs=1e-12
    )


def test_row_78_equal_features_have_no_distance_in_either_view():
    tokens = drawn(2, 12, 5)

    assert token_distance(tokens, tokens.clone()).item() == 0
    assert token_distance(split_dc(tokens)[1], split_dc(tokens.clone())[1]).item() == 0


def test_the_distance_is_that_of_directions_summed_over_places():
    one, other = drawn(3, 4, 5), drawn(3, 4, 5, seed=1)
    by_hand = (2 - 2 * F.cosine_similarity(one, other, dim=2)).sum(dim=1).mean()

    assert token_distance(one, other).item() == pytest.approx(by_hand.item(), abs=1e-12)
    assert token_distance(7 * one, other).item() == pytest.approx(by_hand.item(), abs=1e-12)
    assert abs(token_distance(split_dc(one + 3)[1], split_dc(other)[1]) - token_distance(one + 3, other)) > 0.1


def test_half_precision_is_compared_in_full():
    one, other = drawn(3, 4, 5, dtype=torch.bfloat16), drawn(3, 4, 5, seed=1, dtype=torch.bfloat16)

    assert split_dc(one)[1].dtype == token_distance(one, other).dtype == torch.float32


def test_the_projector_gives_tokens_of_the_teachers_shape_and_sees_every_place():
    projector = seeded(CrossAttentionProjector, torch.Size([2, 9, 6]), torch.Size([2, 4, 8]), 2).double()
    features = drawn(3, 9, 6).requires_grad_()
    projected = projector(features)
    projected[0, 0].sum().backward()

    assert projected.shape == (3, 4, 8)
    assert (features.grad[0].abs().sum(dim=1) > 0).all() and (features.grad[1:] == 0).all()


def tiny_vit(classes=10):
    """Two blocks on four patches and a class token."""
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return create("vit_tiny_patch16_224", num_classes=classes, in_channels=1, **sizes)


def tiny_swin():
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    return create("swin_tiny_patch4_window7_224", num_classes=10, in_channels=1, **sizes)


NETWORKS = {
    "ViT": (tiny_vit, 8, ["blocks.0", "blocks.1"]),
    "Swin": (tiny_swin, 16, ["layers.0", "layers.1"]),
    "ResNet": (lambda: create("resnet8_cifar", num_classes=10, in_channels=1), 16, ["stages.1", "stages.2"]),
    "MobileNet": (lambda: create("mobilenetv3_small_050", num_classes=10, in_channels=1), 64, ["blocks.3", "blocks.5"]),
    "Sequential": (lambda: Plain().network, 8, ["0", "0"]),
    "LightningModule": (Plain, 8, ["network.0", "network.0"]),
}


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_the_tail_of_a_network_makes_its_answer_of_its_own_features(kind):
    make, side, stages = NETWORKS[kind]
    network, kept = seeded(make).eval(), {}
    images = drawn(2, 1, side, side, dtype=torch.float32)
    hooks = [
        network.get_submodule(it).register_forward_hook(lambda _, args, put, it=it: kept.update({it: put}))
        for it in stages
    ]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    tail = Tail("ScaleKD", network, *stages, images)
    seen = [kept[it] for it in stages]
    tail.check(seen[0], logits, seen[1])
    answer, last = tail(kept[stages[0]])
    layout = Layout("ScaleKD", network)

    assert stages == last_layers("ScaleKD", network)
    assert torch.allclose(logits, answer, atol=1e-6) and torch.equal(kept[stages[1]], last)
    assert torch.equal(kept[stages[0]], layout.features(layout.tokens(kept[stages[0]]), kept[stages[0]].shape))
    assert layout.first == (kind == "ViT") and layout.channels_last == (kind == "Swin")
    with pytest.raises(ValueError, match="is more than one part after the other, so no features can take that layer's"):
        tail.check(seen[0].flip(0), logits, seen[1].flip(0))
    with pytest.raises(ValueError, match="is more than one part after the other"):
        tail.check(seen[0], logits, seen[1] + 1)


def test_a_layer_inside_a_residual_block_is_refused():
    network = tiny_vit().eval()
    images, inside = drawn(2, 1, 8, 8, dtype=torch.float32), "blocks.0.mlp"
    kept = []
    network.get_submodule(inside).register_forward_hook(lambda _, args, output: kept.append(output))
    logits = network(images)

    with pytest.raises(
        ValueError, match=r"^ScaleKD: what the teacher does after its layer 'blocks.0.mlp' is more than"
    ):
        Tail("ScaleKD", network, inside, "blocks.1", images).check(kept[0], logits, logits)


def test_a_compiled_teacher_is_watched_too(compiler):
    """Its last stage is found in the first batch, when it has been asked before."""
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)]
    plain, ends = seeded(lambda: nn.Sequential(*layers)), []
    for teacher in (plain, torch.compile(plain, backend="eager")):
        module = seeded(Plain)
        trainer = quiet_trainer(callbacks=[ScaleKD(teacher)], max_steps=2, limit_val_batches=0)
        trainer.fit(module, plain_loader(30))
        ends.append(module.state_dict())

    assert distance(*ends) < 1e-6


def as_in_a_fit(teachers, images, **settings):
    """A callback whose projectors change nothing, and what teachers answer; the first one stands for the student."""
    callback, answers = ScaleKD(teachers, **settings), []
    callback.teachers = teachers
    wanted = callback.student_layers(teachers[0])
    for teacher in teachers:
        kept = {}
        hooks = [
            teacher.get_submodule(it).register_forward_hook(lambda _, args, put, it=it, to=kept: to.update({it: put}))
            for it in wanted
        ]
        answers.append(Answer(teacher(images), kept))
        for hook in hooks:
            hook.remove()
    shapes = [{it: put.shape for it, put in answer.layers.items()} for answer in answers]
    made = callback.parts(shapes[0], shapes)
    callback.trained = {name: nn.ModuleList(nn.Identity() for _ in part.children()) for name, part in made.items()}
    return callback, answers


def others_than(answer):
    """Features and logits of the same shapes."""
    layers = {path: drawn(*it.shape).float() for path, it in answer.layers.items()}
    return Answer(drawn(*answer.logits.shape).float(), layers)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_row_78_a_student_equal_to_its_teacher_has_zero_loss_under_identity_projectors(kind):
    make, side, _ = NETWORKS[kind]
    images = drawn(4, 1, side, side, dtype=torch.float32)
    callback, (answer,) = as_in_a_fit([seeded(make).eval()], images)
    terms = callback.compare((images, None), answer, [answer])
    others = callback.compare((images, None), others_than(answer), [answer])

    assert list(terms) == TERMS
    assert max(it.abs().item() for it in terms.values()) < 1e-5
    assert min(it.item() for it in others.values()) > 1e-3


@torch.no_grad()
def test_terms_equal_those_by_hand():
    """Of a ViT with a class token, which has no place and so no part in the second view."""
    images, teacher = drawn(4, 1, 8, 8, dtype=torch.float32), seeded(tiny_vit).eval()
    callback, (answer,) = as_in_a_fit([teacher], images, temperature=2.0, alpha=0.3, beta=0.7, kd_weight=0.9)
    student = others_than(answer)
    first, last = (student.layers[f"blocks.{it}"] for it in (0, 1))
    theirs = answer.layers["blocks.1"]
    proxy = teacher.blocks[1](first)
    proxied = teacher.forward_head(teacher.norm(proxy))

    def without_dc(one, other):
        return token_distance(*(it[:, 1:] - it[:, 1:].mean(dim=1, keepdim=True) for it in (one, other)))

    perception = 0.3 * token_distance(proxy, theirs) + 0.7 * without_dc(proxy, theirs)
    by_hand = {
        "mimic": token_distance(last, theirs),
        "mimic_without_dc": without_dc(last, theirs),
        "perception": perception + 0.9 * kd_loss(proxied, answer.logits, 2.0),
        "kd": kd_loss(student.logits, answer.logits, 2.0),
    }
    terms = callback.compare((images, None), student, [answer])

    assert {name: it.item() for name, it in terms.items()} == pytest.approx({k: v.item() for k, v in by_hand.items()})


def digits(count=96):
    images, targets = load_digits(return_X_y=True)
    data = TensorDataset(
        torch.from_numpy(images[:count]).float().view(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(targets[:count])
    )
    return DataLoader(data, batch_size=32)


class Watched(Plain):
    """Keeps the loss of each step and what was logged of it."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.seen = []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        logged = self.trainer.callback_metrics
        self.seen.append({term: logged[f"train/{term}"].item() for term in TERMS})


def taught_vit():
    """A tiny ViT that has seen digits for a second."""
    network = seeded(tiny_vit)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(6):
        for images, targets in digits():
            optimizer.zero_grad()
            F.cross_entropy(network(images), targets).backward()
            optimizer.step()
    return network.eval()


def test_row_78_the_loss_falls_for_a_cnn_and_a_tiny_vit_on_digits_and_the_teacher_does_not_change():
    teacher = taught_vit()
    before = {name: it.clone() for name, it in teacher.state_dict().items()}
    module = seeded(Watched)
    trainer = quiet_trainer(callbacks=[ScaleKD(teacher)], max_epochs=8, limit_val_batches=0)
    trainer.fit(module, digits())
    first, last = (
        {term: sum(it[term] for it in steps) for term in TERMS} for steps in (module.seen[:3], module.seen[-3:])
    )

    assert len(module.seen) == 24
    assert all(last[term] < 0.95 * first[term] for term in TERMS)
    assert distance(before, teacher.state_dict()) == 0
    assert module.state_dict().keys() == Plain().state_dict().keys()


def test_all_factors_0_and_the_own_loss_left_alone_are_bitwise_the_plain_run():
    teacher, ends = seeded(tiny_vit), []
    off = {"alpha": 0.0, "beta": 0.0, "perception_weight": 0.0, "kd_weight": 0.0, "own_weight": 1.0}
    for callbacks in ([], [ScaleKD(teacher, **off)], [ScaleKD(teacher)]):
        module = seeded(Plain)
        quiet_trainer(callbacks=callbacks, max_steps=3, limit_val_batches=0).fit(module, plain_loader(30))
        ends.append(module.state_dict())

    assert distance(ends[0], ends[1]) == 0
    assert distance(ends[0], ends[2]) > 1e-4


@pytest.mark.parametrize(
    ("left", "terms", "parts"),
    [
        ({"alpha": 0.0}, TERMS[1:], ["perception_0", "mimic_0"]),
        ({"beta": 0.0}, ["mimic", "perception", "kd"], ["perception_0", "mimic_0"]),
        ({"alpha": 0.0, "beta": 0.0}, ["perception", "kd"], ["perception_0"]),
        ({"perception_weight": 0.0, "kd_weight": 0.0}, TERMS[:2], ["mimic_0"]),
    ],
)
@torch.no_grad()
def test_terms_that_are_left_out_are_not_computed_and_have_no_projectors(left, terms, parts):
    images = drawn(4, 1, 8, 8, dtype=torch.float32)
    callback, (answer,) = as_in_a_fit([seeded(tiny_vit).eval()], images, **left)

    assert terms == list(callback.compare((images, None), others_than(answer), [answer]))
    assert parts == list(callback.trained)


@pytest.mark.parametrize("left", [{}, {"alpha": 0.0}, {"beta": 0.0}, {"alpha": 0.0, "beta": 0.0}], ids=str)
def test_every_projector_gets_a_gradient_as_ddp_asks(left):
    images, teacher = drawn(4, 1, 8, 8, dtype=torch.float32), seeded(tiny_vit).eval()
    callback, (answer,) = as_in_a_fit([teacher], images, **left)
    shapes = {path: it.shape for path, it in answer.layers.items()}
    callback.trained = dict(callback.parts(shapes, [shapes]))
    sum(callback.compare((images, None), others_than(answer), [answer]).values()).backward()

    assert callback.trained
    assert all(it.grad is not None for part in callback.trained.values() for it in part.parameters())


def test_images_of_another_size_are_refused():
    projector = CrossAttentionProjector(torch.Size([2, 9, 6]), torch.Size([2, 4, 8]), 2)

    with pytest.raises(
        ValueError, match=r"^ScaleKD: the network's features are \(16, 6\), tokens and numbers, and were"
    ):
        projector(torch.zeros(3, 16, 6))


@torch.no_grad()
def test_terms_of_two_teachers_are_averaged():
    images, teachers = drawn(4, 1, 8, 8, dtype=torch.float32), [seeded(tiny_vit).eval(), tiny_vit().eval()]
    both, answers = as_in_a_fit(teachers, images)
    student, each = others_than(answers[0]), []
    for teacher in teachers:
        one, own = as_in_a_fit([teacher], images)
        each.append(one.compare((images, None), student, own))
    terms = both.compare((images, None), student, answers)

    assert each[0]["mimic"] != each[1]["mimic"]
    for term in TERMS[:3]:
        assert terms[term].item() == pytest.approx((each[0][term] + each[1][term]).item() / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; give a finite number of at least 0"),
        ({"beta": "much"}, "beta is 'much'; give a finite number of at least 0"),
        ({"perception_weight": -0.1}, "perception_weight is -0.1; give a finite number of at least 0"),
        ({"kd_weight": -0.1}, "kd_weight is -0.1; give a finite number of at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"heads": 0}, "heads is 0; give a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0"),
        ({"student_stages": "layer4"}, "student_stages is 'layer4'; give two paths"),
        ({"teacher_stages": ["layer4"]}, r"teacher_stages is \['layer4'\]; give two paths"),
        ({"teacher_stages": [3, 4]}, r"teacher_stages is \[3, 4\]; give two paths"),
        (
            {"alpha": 0.0, "beta": 0.0, "kd_weight": 0.0},
            "perception_weight is 1.0, and alpha, beta and kd_weight, which weigh what is compared there, are 0",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, words):
    with pytest.raises(ValueError, match=f"^ScaleKD: {words}"):
        ScaleKD(tiny_vit(), **setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"heads": 3}, "heads is 3, and the teacher's 'blocks.0' is 16 wide; give a divisor"),
        ({"teacher_stages": ["blocks.0", "blocks.7"]}, r"the teacher \(VisionTransformer\) has no layer 'blocks.7'"),
        ({"student_stages": ["network.0", "network.22"]}, r"the student \(Plain\) has no layer 'network.22'"),
        (
            {"teacher_stages": ["blocks.0.mlp", "blocks.1"]},
            "what the teacher does after its layer 'blocks.0.mlp' is more",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(setting, words):
    trainer = quiet_trainer(callbacks=[ScaleKD(tiny_vit(), **setting)], max_steps=1, limit_val_batches=0)

    with pytest.raises(ValueError, match=f"^ScaleKD: {words}"):
        trainer.fit(seeded(Plain), plain_loader(30))
