"""A linear interpreter's rows, columns, contributions and bias are those of the affine map that a network is for x.

What loggers of maps share is proved beside `GradCAMLogger`; that it does no harm to a run, in `conformance/`.
"""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import InputXGradient
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_vision.callbacks import LinearInterpreter, LinearInterpreterLogger
from lightning_vision.callbacks.explain import _frozen_decisions
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


def stirred(model, seed=0):
    """Weights of vectors and running statistics away from 0 and 1, heads that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(it for name, it in model.named_buffers() if "running_mean" in name)):
            if tensor.ndim == 1 or not bool(tensor.any()):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def network(bias=True):
    """Convolutions, batch norm, ReLU, max- and average pooling; without biases batch norm does not shift."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=bias), norm, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4, bias=bias),
    )  # fmt: skip
    with torch.no_grad():
        norm.running_var.mul_(1.7)
        if bias:
            norm.running_mean.add_(0.3)
            norm.bias.add_(0.2)
    return net


def images(*shape, seed=1):
    return torch.randn(shape or (3, 2, 12, 12), generator=torch.Generator().manual_seed(seed))


def matrix(interpreter, x):
    """A, `(B, K, C H W)`, from its rows."""
    answers = interpreter.terms(x).logits
    rows = [interpreter.row(x, F.one_hot(torch.full((len(x),), k), answers.shape[1]).float()) for k in range(4)]
    return torch.stack([row.flatten(1) for row in rows], 1)


def sum_of(terms):
    return terms.contributions.sum((1, 2, 3)) + terms.bias


def score_of(terms):
    return terms.logits.gather(1, terms.class_index[:, None]).squeeze(1)


@pytest.mark.parametrize("class_index", [None, 2, torch.tensor([3, 0, 1])], ids=["predicted", "one", "each its own"])
def test_row_144_contributions_and_bias_sum_to_the_score(class_index):
    net, x = network(), images()
    terms = LinearInterpreter(net).terms(x, class_index)

    assert torch.allclose(score_of(terms), sum_of(terms), atol=1e-5, rtol=0)
    assert torch.equal(net.eval()(x), terms.logits)
    assert bool((terms.bias.abs() > 1e-3).all())


NETWORKS = {
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "resnet50_gn": {},
    "densenet121": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64},
    "swinv2_tiny_window8_256": {"img_size": 64},
    "xcit_nano_12_p16_224": {"img_size": 64},
    "mixer_s32_224": {"img_size": 64},
}
FEW = ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"]


def exact_on(name):
    torch.manual_seed(0)
    net = stirred(timm.create_model(name, num_classes=7, **NETWORKS[name])).train()
    x, direction, weights = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=2), images(2, 7, seed=3)
    interpreter = LinearInterpreter(net)
    terms = interpreter.terms(x)
    assert torch.allclose(score_of(terms), sum_of(terms), atol=1e-5, rtol=0)
    assert torch.allclose(net.eval()(x), terms.logits, atol=1e-5, rtol=0)
    column, row = interpreter.column(x, direction), interpreter.row(x, weights)
    assert float((column * weights).sum()) == pytest.approx(float((row * direction).sum()), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_row_144_networks_of_timm_are_affine_with_their_decisions_kept(name):
    exact_on(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - set(FEW)))
def test_row_144_more_networks_of_timm_are_affine_with_their_decisions_kept(name):
    exact_on(name)


def test_composed_functions_are_seen_through():
    """torchvision's transformer attends by `F.multi_head_attention_forward`, which calls softmax inside."""
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=4)
    net.heads.head.weight.data.normal_()
    terms = LinearInterpreter(net).terms(images(2, 3, 32, 32))

    assert torch.allclose(score_of(terms), sum_of(terms), atol=1e-5, rtol=0)


def test_row_144_without_biases_contributions_are_input_times_gradient():
    net, x = network(bias=False), images()
    terms = LinearInterpreter(net).terms(x)
    expected = InputXGradient(net.eval()).attribute(x.clone().requires_grad_(), target=terms.class_index)

    assert torch.allclose(expected.detach(), terms.contributions, atol=1e-6)
    assert float(terms.bias.abs().max()) < 1e-6


def test_row_144_rows_are_gradients():
    net, x = network(), images()
    terms = LinearInterpreter(net).terms(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net.eval()(leaf).gather(1, terms.class_index[:, None]).sum(), leaf)

    assert torch.allclose(expected, terms.row, atol=1e-6)


def test_row_144_a_linear_network_has_the_same_matrix_for_all_images():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(75, 4))
    one, other = (matrix(LinearInterpreter(net), images(seed=seed)) for seed in (1, 2))
    bent = nn.Sequential(*net[:2], nn.ReLU(), *net[2:])
    one_bent, other_bent = (matrix(LinearInterpreter(bent), images(seed=seed)) for seed in (1, 2))

    assert torch.allclose(one, other, atol=1e-6)
    assert float((one_bent - other_bent).abs().max()) > 1e-3


def test_columns_are_those_of_the_matrix_of_rows():
    interpreter, x = LinearInterpreter(network()), images()
    impulse = torch.zeros_like(x)
    impulse[:, 1, 5, 7] = 1
    place = 1 * 144 + 5 * 12 + 7

    assert torch.allclose(matrix(interpreter, x)[:, :, place], interpreter.column(x, impulse), atol=1e-6)


def test_rows_and_columns_are_adjoint():
    net = nn.Sequential(network()[:-1], nn.Linear(32, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
    interpreter, x, direction, weights = LinearInterpreter(net), images(), images(seed=5), images(3, 4, seed=6)
    there = (interpreter.column(x, direction) * weights).sum()

    assert float((interpreter.row(x, weights) * direction).sum()) == pytest.approx(float(there), rel=1e-4)


def test_singular_vectors_are_those_of_the_matrix():
    interpreter, x = LinearInterpreter(network()), images()
    values, lefts, rights = interpreter.singular_vectors(x, count=2, steps=200)
    expected = torch.linalg.svd(matrix(interpreter, x), full_matrices=False)

    assert torch.allclose(expected.S[:, :2], values, rtol=1e-4)
    assert torch.allclose(torch.ones(3, 2), (expected.Vh[:, :2] * rights.flatten(2)).sum(2).abs(), atol=1e-3)
    assert torch.allclose(torch.ones(3, 2), (expected.U.mT[:, :2] * lefts).sum(2).abs(), atol=1e-3)


def test_singular_vectors_start_from_the_generator_given():
    interpreter, x = LinearInterpreter(network()), images()
    before = torch.get_rng_state()
    seeds = [None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)]
    rights = [interpreter.singular_vectors(x, steps=1, generator=seed)[2] for seed in seeds]

    assert torch.equal(rights[0], rights[1])
    assert not torch.equal(rights[0], rights[2])
    assert torch.equal(before, torch.get_rng_state())


class Units(nn.Module):
    """A function between two layers, and its result multiplied by a gate where it is one."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.act = nn.Conv2d(2, 6, 3), nn.Linear(600, 4), act

    def forward(self, x):
        return self.last(self.act(3 * self.first(x)).flatten(1))


class Attention(nn.Module):
    """As written by hand, or by torch's function, with a mask."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        tokens = x.flatten(2)
        q, k, v = tokens, tokens.flip(1), tokens * 2
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        if self.kind == "by hand":
            weights = (q @ k.transpose(1, 2) / 10).masked_fill(~mask, -torch.inf).softmax(-1)
            return weights @ v
        kept = {"causal": {"is_causal": True}, "masked": {"attn_mask": mask}, "added": {"attn_mask": mask.float()}}
        return F.scaled_dot_product_attention(q, k, v, **kept[self.kind])


UNITS = {
    "relu": F.relu, "relu_": lambda x: x.relu_(), "relu6": nn.ReLU6(inplace=True), "leaky": nn.LeakyReLU(0.2, True),
    "prelu": nn.PReLU(), "hardtanh": nn.Hardtanh(), "threshold": nn.Threshold(0.2, 1.0), "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 1.0), "softshrink": nn.Softshrink(), "elu": nn.ELU(inplace=True),
    "celu": F.celu, "selu": F.selu, "silu": nn.SiLU(inplace=True), "gelu": F.gelu, "gelu tanh": nn.GELU("tanh"),
    "hardswish": nn.Hardswish(), "mish": nn.Mish(), "tanh": torch.tanh, "softplus": nn.Softplus(),
    "glu": lambda x: F.glu(x, 1),
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "swish by hand": lambda x: x * x.sigmoid(),
    "squeeze": lambda x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)), "relu by hand": lambda x: x * (x > 0),
    "max": lambda x: torch.maximum(x, x.flip(1)), "amax": lambda x: x - x.amax((2, 3), keepdim=True),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]), "group norm": nn.GroupNorm(3, 6), "rms": nn.RMSNorm(10),
    "instance norm": nn.InstanceNorm2d(6, affine=True), "running": nn.InstanceNorm2d(6, track_running_stats=True),
    "norm by hand": lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 0.1).sqrt(),
    "normalize": F.normalize, "response": nn.LocalResponseNorm(2), "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "places": lambda x: F.adaptive_max_pool2d(x, 10, return_indices=True)[0],
    "attention by hand": Attention("by hand"), "causal": Attention("causal"), "masked": Attention("masked"),
    "added": Attention("added"),
}  # fmt: skip
WIDTHS = {"glu": 300}


@pytest.mark.parametrize("name", UNITS)
def test_decisions_are_kept_of(name):
    net, x = Units(UNITS[name]), images(3, 2, 12, 12)
    net.last = nn.Linear(WIDTHS.get(name, 600), 4)
    before = net.eval()(x)
    terms = LinearInterpreter(net).terms(x, 1)

    assert torch.allclose(before, terms.logits, atol=1e-5)
    assert torch.allclose(score_of(terms), sum_of(terms), atol=1e-5, rtol=0)
    assert float(terms.contributions.abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("blamed", "act"),
    [
        ("mul", lambda x: F.silu(x) * x.flip(1)),
        ("pow", lambda x: x**2),
        ("cos", torch.cos),
        ("exp", torch.exp),
        ("log_softmax", lambda x: torch.log_softmax(x, 1)),
    ],
)
def test_what_is_not_linear_and_not_known_is_blamed(blamed, act):
    with pytest.raises(ValueError, match=f"misses the score by .* a function with decisions of its own is {blamed}"):
        LinearInterpreter(Units(act)).terms(images(3, 2, 12, 12))


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].exp()


def test_what_torch_does_not_show_is_noticed_too():
    with pytest.raises(ValueError, match="is one that torch does not show"):
        LinearInterpreter(Units(Hidden.apply)).column(images(), images())


FORGET = {
    "relu": lambda patch: patch.setattr(_frozen_decisions, "PIECES", _frozen_decisions.PIECES - {"relu"}),
    "max_pool2d": lambda patch: patch.delitem(_frozen_decisions.HANDLERS, "max_pool2d"),
    "silu": lambda patch: patch.setattr(_frozen_decisions, "CURVES", _frozen_decisions.CURVES - {"silu"}),
    "group_norm": lambda patch: patch.delitem(_frozen_decisions.HANDLERS, "group_norm"),
}


def many_decisions():
    return nn.Sequential(*network()[:5], nn.SiLU(), nn.GroupNorm(2, 8), *network()[6:])


@pytest.mark.parametrize("forgotten", FORGET)
def test_a_decision_that_is_not_kept_is_noticed(forgotten, monkeypatch):
    FORGET[forgotten](monkeypatch)

    with pytest.raises(ValueError, match="misses the score"):
        LinearInterpreter(many_decisions()).terms(images(), 0)


def test_a_tangent_in_the_place_of_the_chord_is_noticed(monkeypatch):
    expected = LinearInterpreter(many_decisions()).terms(images()).logits
    monkeypatch.setattr(_frozen_decisions, "_chord", lambda act, x: (_frozen_decisions._piece(act, x)[0], None))

    assert float((expected - LinearInterpreter(many_decisions()).terms(images()).logits).abs().max()) > 1e-2


def test_nothing_is_left_of_an_interpretation():
    net, x = network().train(), images()
    net[0].weight.requires_grad_(False)
    net(x).sum().backward()
    before = {name: it.clone() for name, it in net.state_dict().items()}
    gradients = [None if it.grad is None else it.grad.clone() for it in net.parameters()]
    LinearInterpreter(net).singular_vectors(x)

    assert all(part.training for part in net.modules())
    assert [False, *[True] * 7] == [it.requires_grad for it in net.parameters()]
    assert all(torch.equal(it, before[name]) for name, it in net.state_dict().items())
    assert all(a is b.grad or torch.equal(a, b.grad) for a, b in zip(gradients, net.parameters(), strict=True))


@pytest.mark.usefixtures("compiler")
def test_it_works_in_inference_mode_under_autocast_and_compiled():
    net, x = network(), images()
    expected = LinearInterpreter(net).contributions(x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = LinearInterpreter(torch.compile(net, backend="eager")).contributions(images())

    assert torch.allclose(expected, found, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "model", "ask"),
    [
        ("so interpret the logits", nn.Sequential(network(), nn.Softmax(1)), lambda it: it.terms(images())),
        ("answers a tuple; wrap it", nn.Sequential(network(), nn.LSTM(4, 4)), lambda it: it.terms(images())),
        ("no logits", nn.Conv2d(2, 3, 3), lambda it: it.terms(images())),
        ("classes 0 to 3", network(), lambda it: it.terms(images(), 4)),
        ("count is 0 and steps 30; give numbers >= 1", network(), lambda it: it.singular_vectors(images(), 0)),
        ("tolerance is 0; give a share > 0", network(), lambda it: LinearInterpreter(it.model, 0)),
    ],
    ids=["softmax", "tuple", "maps", "class", "count", "tolerance"],
)
def test_what_cannot_be_interpreted_is_refused(message, model, ask):
    with pytest.raises(ValueError, match=message):
        ask(LinearInterpreter(model))


def test_an_answer_that_is_an_image_has_rows_and_columns():
    net, x, direction = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3)), images(), images(seed=2)
    weights = images(3, 1, 8, 8, seed=3)
    interpreter = LinearInterpreter(net)
    there = (interpreter.column(x, direction) * weights).sum()

    assert float((interpreter.row(x, weights) * direction).sum()) == pytest.approx(float(there), rel=1e-4)


def test_the_logger_paints_contributions_and_the_share_of_the_bias(tmp_path):
    loader = plain_loader(30)
    quiet_trainer(callbacks=[LinearInterpreterLogger(samples=4)], default_root_dir=tmp_path).test(Plain(), loader)

    assert [path.name for path in tmp_path.rglob("*.png")] == ["step_00000000.png"]


def test_the_bar_is_as_high_as_the_bias_share():
    values = np.stack([np.full((32, 32), 1.0), np.full((32, 32), -0.25)])
    picture = LinearInterpreterLogger().paint(np.zeros((32, 32, 3), dtype=np.uint8), values)
    blue = (picture[:, -1] == [0, 0, 255]).all(1)

    assert picture.shape == (32, 35, 3)
    assert blue.tolist() == [False] * 24 + [True] * 8


def test_an_answer_of_nan_is_told_and_no_function_blamed():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.constant_(network[1].bias, float("nan"))
    with pytest.raises(ValueError) as refused:
        LinearInterpreter(network).contributions(torch.rand(1, 3, 2, 2))

    assert str(refused.value) == (
        "LinearInterpreter: the answer of Sequential is not a finite number everywhere (NaN or infinite), so it is no "
        "sum; look at its weights and at the images."
    )


def test_checkpoints_are_told_in_a_sentence():
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, images):
            return checkpoint(self.body, images, use_reentrant=False)

    with pytest.raises(ValueError) as refused:
        LinearInterpreter(Saving()).contributions(torch.rand(1, 3, 2, 2))

    assert str(refused.value) == (
        "Saving computes parts anew in backward (torch.utils.checkpoint), which is not possible while its functions "
        "are replaced; switch its checkpoints off while it is explained."
    )
