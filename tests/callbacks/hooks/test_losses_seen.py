"""Which losses of strangers are mixed: each exactly, or refused in a sentence, with a share a batch or a sample.

`LOSSES` is the list: what a loss is called, how it is written, and whether it is mixed for a share a batch and for a
share a sample. The cards of the methods on this seam show it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from lightning_vision.callbacks.hooks._mixed_labels import MixedTensor, Mixture, resolved
from lightning_vision.classification.complementary import ComplementaryForward, ComplementaryNegativeLog
from lightning_vision.classification.losses import BinaryCrossEntropy, CrossEntropy, Focal

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

Loss = Callable[[Tensor, Tensor], Tensor]

B, K = 9, 5
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])


@dataclass(frozen=True)
class Case:
    """A loss of logits `(B, K)` and labels `(B,)`.

    Args:
        name: Its line in the cards.
        loss: Of logits `(B, K)` and labels `(B,)`.
        batch: It is mixed where the batch has one share.
        sample: It is mixed where each sample has a share of its own.
        reference: What the latter is, if not a sum of what each sample gives: `of(f)` is the mixture of such a sum f.
        exact: With one share for the batch the value is the formula's bit for bit; False where sums are added up in
            another order.
    """

    name: str
    loss: Loss
    batch: bool = True
    sample: bool = True
    reference: Callable[[Callable[[Loss], Tensor]], Tensor] | None = None
    exact: bool = True


class Detour(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, y):
        p = z.softmax(1)
        hot = F.one_hot(y, K)
        ctx.save_for_backward(p - hot)
        return -(p.log() * hot).sum(1).mean()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0] / B, None


def plain_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y)


def scripted(z, y):
    return torch.jit.script(plain_cross_entropy)(z, y)


def by_hand(z, y):
    return -z.log_softmax(1)[range(B), y].mean()


def weights(z, y):
    return WEIGHTS[y].sum()


def weighted(loss):
    """Means over weights: the sum of mixed losses over the sum of mixed weights."""
    return lambda of: of(lambda z, y: loss(z, y) * weights(z, y)) / of(weights)


def weighted_ce(z, y, epsilon=0.0):
    return F.cross_entropy(z, y, weight=WEIGHTS, label_smoothing=epsilon)


def without_class_2(z, y):
    return F.cross_entropy(z, y, ignore_index=2, reduction="sum")


def weighted_by_hand(z, y):
    w = WEIGHTS[y]
    return (w * F.cross_entropy(z, y, reduction="none")).sum() / w.sum()


def weighted_before_the_sum(z, y):
    w = WEIGHTS[y]
    return (w / w.sum() * F.cross_entropy(z, y, reduction="none")).sum()


def smoothed_in_place(z, y):
    soft = torch.zeros_like(z)
    soft.fill_(0.1 / (K - 1))
    soft.scatter_(1, y.data.unsqueeze(1), 0.9)
    return F.kl_div(z.log_softmax(1), soft, reduction="batchmean")


def hot_by_index(z, y):
    hot = torch.zeros(B, K)
    hot[torch.arange(B), y] = 1.0
    return F.mse_loss(z, hot)


def focal_of_the_mean(z, y):
    ce = F.cross_entropy(z, y)
    return (1 - torch.exp(-ce)) ** 2 * ce


def added_up(z, y):
    loss = 1e-3 * z.square().sum()
    loss += F.cross_entropy(z, y)
    return loss


def added_up_method(z, y):
    loss = 1e-3 * z.square().sum()
    loss.add_(F.cross_entropy(z, y))
    return loss


def multiplied_into(z, y):
    loss = z.square().mean()
    loss.mul_(F.cross_entropy(z, y))
    return loss


def margin_on_logits(z, y):
    z = z * 1.0
    z[torch.arange(B), y] -= 0.3
    return F.cross_entropy(z, y)


def class_by_class(z, y):
    return sum(F.binary_cross_entropy_with_logits(z[:, k], (y == k).float()) for k in range(K)) / K


def pairs_of_samples(z, y):
    same = (y[:, None] == y[None, :]).float()
    return ((z @ z.T).sigmoid() - same).square().mean()


def where_label_is(z, y):
    return z.masked_fill(F.one_hot(y, K).bool(), 0.0).logsumexp(1).mean() - z.gather(1, y[:, None]).mean()


def worst_samples(z, y):
    return F.cross_entropy(z, y, reduction="none").topk(4).values.mean()


def chosen_samples(z, y):
    return F.cross_entropy(z[y != 0], y[y != 0])


def out_of_torch(z, y):
    return -torch.stack([row[label] for row, label in zip(z.log_softmax(1), y.tolist(), strict=True)]).mean()


def through_numpy(z, y):
    return F.cross_entropy(z, torch.from_numpy(y.numpy().copy()))


LOSSES = [
    Case("`F.cross_entropy(z, y)`", F.cross_entropy),
    Case("`nn.CrossEntropyLoss()`", nn.CrossEntropyLoss()),
    Case("... with `weight`", weighted_ce, reference=weighted(weighted_ce)),
    Case("... with `ignore_index`", lambda z, y: F.cross_entropy(z, y, ignore_index=2),
         reference=lambda of: of(without_class_2) / of(lambda z, y: (y != 2).sum())),
    Case("... with `label_smoothing`", lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1)),
    Case("... with `weight` and `label_smoothing`", nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1),
         reference=weighted(partial(weighted_ce, epsilon=0.1))),
    Case("... with `reduction='sum'`", lambda z, y: F.cross_entropy(z, y, reduction="sum")),
    Case("... with `reduction='none'`, then `.mean()`", lambda z, y: F.cross_entropy(z, y, reduction="none").mean()),
    Case("`F.cross_entropy` of `y.view(-1)`", lambda z, y: F.cross_entropy(z, y.view(-1))),
    Case("... of `y.squeeze()`", lambda z, y: F.cross_entropy(z, y.unsqueeze(1).squeeze())),
    Case("... of `y.long()`", lambda z, y: F.cross_entropy(z, y.long())),
    Case("... of `y.int().long()`", lambda z, y: F.cross_entropy(z, y.int().long())),
    Case("... of `y.clone()`", lambda z, y: F.cross_entropy(z, y.clone())),
    Case("... of `y.reshape(-1)`", lambda z, y: F.cross_entropy(z, y.reshape(-1))),
    Case("... of `y.flatten()`", lambda z, y: F.cross_entropy(z, y.flatten())),
    Case("... of `y.detach()`, `y.data`", lambda z, y: F.cross_entropy(z, y.detach().data)),
    Case("... of `y.to(device)`", lambda z, y: F.cross_entropy(z, y.to(z.device, non_blocking=True))),
    Case("... of `y.contiguous()`, `y[:]`", lambda z, y: F.cross_entropy(z, y[:].contiguous())),
    Case("`F.nll_loss(logp, y)`", lambda z, y: F.nll_loss(z.log_softmax(1), y)),
    Case("... with `weight`", lambda z, y: F.nll_loss(z.log_softmax(1), y, WEIGHTS),
         reference=weighted(weighted_ce)),
    Case("`-logp[range(B), y].mean()`", by_hand),
    Case("`-logp.gather(1, y.unsqueeze(1)).mean()`", lambda z, y: -z.log_softmax(1).gather(1, y.unsqueeze(1)).mean()),
    Case("`(w[y] * ce).sum() / w[y].sum()`", weighted_by_hand, reference=weighted(weighted_ce)),
    Case("`(w[y] / w[y].sum() * ce).sum()`", weighted_before_the_sum, sample=False),
    Case("`(1 - exp(-ce)) ** 2 * ce` of the mean `ce`", focal_of_the_mean,
         reference=lambda of: (1 - torch.exp(-of(F.cross_entropy))) ** 2 * of(F.cross_entropy)),
    Case("`loss += F.cross_entropy(z, y)`", added_up, exact=False),
    Case("`loss.add_(F.cross_entropy(z, y))`", added_up_method, exact=False),
    Case("`loss.mul_(F.cross_entropy(z, y))`", multiplied_into, batch=False, sample=False),
    Case("`F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float())`",
         lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float())),
    Case("... with `pos_weight`",
         lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float(), pos_weight=WEIGHTS)),
    Case("`F.binary_cross_entropy(p, F.one_hot(y, K).float())`",
         lambda z, y: F.binary_cross_entropy(z.sigmoid(), F.one_hot(y, K).float())),
    Case("... of each class, `(y == k).float()`", class_by_class),
    Case("`torch.zeros(B, K).scatter_(1, y.unsqueeze(1), 1.0)`",
         lambda z, y: F.mse_loss(z, torch.zeros(B, K).scatter_(1, y.unsqueeze(1), 1.0))),
    Case("`soft.scatter_(1, y.data.unsqueeze(1), 0.9)`, then `F.kl_div`", smoothed_in_place),
    Case("`hot[torch.arange(B), y] = 1.0`, then `F.mse_loss`", hot_by_index),
    Case("`F.mse_loss(p, F.one_hot(y, K))`", lambda z, y: F.mse_loss(z.softmax(1), F.one_hot(y, K).float())),
    Case("`F.multi_margin_loss(z, y)`", F.multi_margin_loss),
    Case("our `CrossEntropy`", CrossEntropy(label_smoothing=0.1)),
    Case("... with `class_weights`", CrossEntropy(class_weights=WEIGHTS.tolist()), reference=weighted(weighted_ce)),
    Case("our `BinaryCrossEntropy`", BinaryCrossEntropy()),
    Case("... with `class_weights`", BinaryCrossEntropy(WEIGHTS.tolist())),
    Case("our `Focal`", Focal()),
    Case("... with `class_weights`", Focal(1.5, WEIGHTS.tolist())),
    Case("our `ComplementaryNegativeLog`", ComplementaryNegativeLog()),
    Case("our `ComplementaryForward`", ComplementaryForward()),
    Case("torchvision `sigmoid_focal_loss` of one-hot labels",
         lambda z, y: sigmoid_focal_loss(z, F.one_hot(y, K).float(), reduction="mean")),
    Case("timm `LabelSmoothingCrossEntropy`", timm.loss.LabelSmoothingCrossEntropy(0.1)),
    Case("timm `SoftTargetCrossEntropy` of one-hot labels",
         lambda z, y: timm.loss.SoftTargetCrossEntropy()(z, F.one_hot(y, K))),
    Case("timm `BinaryCrossEntropy`", timm.loss.BinaryCrossEntropy()),
    Case("timm `JsdCrossEntropy`", timm.loss.JsdCrossEntropy(), sample=False),
    Case("timm `AsymmetricLossSingleLabel`", timm.loss.AsymmetricLossSingleLabel()),
    Case("timm `AsymmetricLossMultiLabel` of one-hot labels",
         lambda z, y: timm.loss.AsymmetricLossMultiLabel()(z, F.one_hot(y, K))),
    Case("`z.masked_fill(one_hot, 0)`", where_label_is),
    Case("a `torch.jit.script` function", scripted, batch=False, sample=False),
    Case("the worst samples, `ce.topk(4)`", worst_samples, sample=False),
    Case("some samples, `z[y != 0]`", chosen_samples, sample=False),
    Case("pairs of samples, `y[:, None] == y[None, :]`", pairs_of_samples, sample=False),
    Case("logits changed in place, `z[torch.arange(B), y] -= m`", margin_on_logits, batch=False, sample=False),
    Case("outside torch, `y.tolist()`", out_of_torch, batch=False, sample=False),
    Case("outside torch, `y.numpy()`", through_numpy, batch=False, sample=False),
    Case("a `torch.autograd.Function` of the labels", Detour.apply, batch=False, sample=False),
]  # fmt: skip


def inputs():
    """Logits, labels, partners, a share for each sample."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(B, K, generator=generator, requires_grad=True)
    y = torch.randint(K, (B,), generator=generator)
    return z, y, torch.randperm(B, generator=generator), torch.rand(B, generator=generator)


def seen(loss, z, y, partner, lam):
    """What a step of a module returns for this loss, and how many losses were mixed in it."""
    mixture = Mixture("Mixer", lam, len(y))
    with mixture.live():
        value = resolved(loss(z, MixedTensor.of(y, y[partner], mixture, lam)))
    return value, mixture.losses


def sum_of_samples(z, y, partner, lam):
    """`of(f)`: the mixture of an f that adds up what samples give, by exchanging one label at a time."""

    def of(f):
        total = f(z, y)
        for i in range(B):
            exchanged = torch.where(torch.arange(B) == i, y[partner], y)
            total = total + (1 - lam[i]) * (f(z, exchanged) - f(z, y))
        return total

    return of


def value_and_gradient(value, z):
    return value.detach(), torch.autograd.grad(value, z, retain_graph=True)[0]


def distance(value, expected, z):
    """Largest difference of the two losses and of their gradients."""
    pairs = zip(value_and_gradient(value, z), value_and_gradient(expected, z), strict=True)
    return max((left - right).abs().max().item() for left, right in pairs)


def ids(cases):
    return [f"{i}-{case.name}" for i, case in enumerate(cases)]


BATCH, SAMPLE = ([case for case in LOSSES if getattr(case, which)] for which in ("batch", "sample"))


@pytest.mark.parametrize("case", BATCH, ids=ids(BATCH))
def test_a_loss_is_mixed_by_the_share_of_the_batch(case):
    z, y, partner, _ = inputs()
    value, losses = seen(case.loss, z, y, partner, 0.3)
    expected = 0.3 * case.loss(z, y) + (1 - 0.3) * case.loss(z, y[partner])

    assert losses >= 1
    assert type(value) is Tensor
    assert torch.equal(value, expected) or not case.exact
    assert distance(value, expected, z) < 1e-6


@pytest.mark.parametrize("case", SAMPLE, ids=ids(SAMPLE))
def test_a_loss_is_mixed_by_the_share_of_each_sample(case):
    z, y, partner, lam = inputs()
    value, losses = seen(case.loss, z, y, partner, lam)
    of = sum_of_samples(z, y, partner, lam)
    expected = of(case.loss) if case.reference is None else case.reference(of)

    assert losses >= 1
    assert type(value) is Tensor
    assert distance(value, expected, z) < 1e-6 * (1 + abs(expected.item()))


@pytest.mark.parametrize("case", BATCH, ids=ids(BATCH))
def test_a_wrong_mixture_is_noticed(case):
    z, y, partner, _ = inputs()
    expected = 0.3 * case.loss(z, y) + (1 - 0.3) * case.loss(z, y[partner])
    shares_swapped, _ = seen(case.loss, z, y, partner, 0.7)
    own_labels_twice, _ = seen(case.loss, z, y, torch.arange(B), 0.3)

    assert distance(shares_swapped, expected, z) > 1e-3
    assert distance(own_labels_twice, expected, z) > 1e-3


@pytest.mark.parametrize("case", SAMPLE, ids=ids(SAMPLE))
def test_a_wrong_mixture_of_samples_is_noticed(case):
    z, y, partner, lam = inputs()
    expected, _ = seen(case.loss, z, y, partner, lam)
    shares_swapped, _ = seen(case.loss, z, y, partner, 1 - lam)
    shares_averaged, _ = seen(case.loss, z, y, partner, float(lam.mean()))

    assert distance(shares_swapped, expected, z) > 1e-3
    assert distance(shares_averaged, expected, z) > 1e-4


UNMIXED = [(case, 0.3) for case in LOSSES if not case.batch]
UNMIXED += [(case, inputs()[3]) for case in LOSSES if not case.sample]


@pytest.mark.parametrize("case, lam", UNMIXED, ids=ids([case for case, _ in UNMIXED]))
def test_a_loss_that_cannot_be_mixed_is_refused_or_unseen(case, lam):
    """An unseen one is refused by `Targets` after the step; test_targets.py shows that."""
    z, y, partner, _ = inputs()
    try:
        _, losses = seen(case.loss, z, y, partner, lam)
    except ValueError as error:
        assert str(error).startswith("Mixer: ")
        ways_out = ("; pass targets='soft' or targets='sampled'.",
                    "; pass per_sample=False, targets='soft' or targets='sampled'.")  # fmt: skip
        assert str(error).endswith(ways_out[isinstance(lam, Tensor) and case.batch])
    else:
        assert losses == 0


@pytest.mark.parametrize("lam", [0.3, inputs()[3]], ids=["batch", "sample"])
def test_the_gradient_of_a_cross_entropy_is_that_of_the_formula_bit_for_bit(lam):
    z, y, partner, _ = inputs()
    value, _ = seen(F.cross_entropy, z, y, partner, lam)
    own, twin = (F.cross_entropy(z, it, reduction="none") for it in (y, y[partner]))
    formula = (lam * own + (1 - lam) * twin).sum() / torch.ones(B).sum()
    if isinstance(lam, float):
        formula = lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[partner])

    assert distance(value, formula, z) == 0


def test_an_unseen_part_of_a_loss_is_refused_where_torch_shows_it():
    z, y, partner, _ = inputs()

    with pytest.raises(ValueError, match="Function of the labels, which cannot be mixed"):
        seen(lambda z, y: F.cross_entropy(z, y) + Detour.apply(z, y), z, y, partner, 0.3)


def hot_by_a_view(z, y):
    hot = torch.zeros(B, K)
    hot.view(-1)[torch.arange(B) * K + y] = 1.0
    return -(hot * z.log_softmax(1)).sum(1).mean()


def copied_into_a_row(z, y):
    rows = torch.zeros(2, B, dtype=torch.long)
    rows[0].copy_(y)
    return F.cross_entropy(z, rows[0])


def written_by_out(z, y):
    copied = torch.zeros(B, dtype=torch.long)
    torch.add(y, 0, out=copied)
    return F.cross_entropy(z, copied)


def written_by_out_twice(z, y):
    copied = torch.zeros(B, dtype=torch.long)
    torch.add(y, 1, out=copied)
    torch.add(y, 0, out=copied)
    return F.cross_entropy(z, copied)


def hot_under_an_older_view(z, y):
    hot = torch.zeros(B, K)
    flat = hot.view(-1)
    hot[torch.arange(B), y] = 1.0
    return -(flat.view(B, K) * z.log_softmax(1)).sum(1).mean()


def hot_beside_a_view(z, y):
    hot = torch.zeros(B * K).view(B, K)
    hot.view(-1)[torch.arange(B) * K + y] = 1.0
    return -(hot * z.log_softmax(1)).sum(1).mean()


def several_at_once(z, y):
    copied = torch.zeros(B, dtype=torch.long)
    torch._foreach_copy_([copied], [y])
    return F.cross_entropy(z, copied)


@pytest.mark.parametrize("hidden", [hot_by_a_view, copied_into_a_row, written_by_out, written_by_out_twice])
def test_labels_that_are_written_elsewhere_are_followed(hidden):
    z, y, partner, lam = inputs()

    def loss(z, y):
        return F.cross_entropy(z, y) + 3 * hidden(z, y)

    value, _ = seen(loss, z, y, partner, 0.3)
    assert torch.equal(0.3 * loss(z, y) + (1 - 0.3) * loss(z, y[partner]), value)

    if hidden is copied_into_a_row:
        with pytest.raises(ValueError, match="; pass per_sample=False, targets='soft' or targets='sampled'"):
            seen(loss, z, y, partner, lam)
    else:
        value, _ = seen(loss, z, y, partner, lam)
        assert distance(value, sum_of_samples(z, y, partner, lam)(loss), z) < 1e-5


@pytest.mark.parametrize(
    "hidden, what",
    [
        (hot_under_an_older_view, "__setitem__ writes labels into memory of several tensors"),
        (hot_beside_a_view, "__setitem__ writes labels into memory of several tensors"),
        (several_at_once, "_foreach_copy_ writes labels into several tensors at once"),
    ],
)
def test_labels_that_are_written_where_nobody_can_follow_are_refused(hidden, what):
    z, y, partner, _ = inputs()

    with pytest.raises(ValueError) as raised:
        seen(lambda z, y: F.cross_entropy(z, y) + 3 * hidden(z, y), z, y, partner, 0.3)

    assert f"Mixer: {what}, so it cannot be mixed; pass targets='soft' or targets='sampled'." == str(raised.value)


def test_a_mask_that_is_inverted_is_inverted_in_both_worlds():
    """`~mask`, `__invert__`, is named as the operators in place are, which write into what they are given."""
    z, y, partner, lam = inputs()

    def loss(z, y):
        return (z.square() * ~F.one_hot(y, K).bool()).mean()

    value, _ = seen(loss, z, y, partner, 0.3)
    apart, _ = seen(loss, z, y, partner, lam)

    assert torch.equal(0.3 * loss(z, y) + (1 - 0.3) * loss(z, y[partner]), value)
    assert distance(apart, sum_of_samples(z, y, partner, lam)(loss), z) < 1e-6


@pytest.mark.parametrize("weight", [None, WEIGHTS.tolist()], ids=["plain", "weighted"])
@pytest.mark.parametrize("lam", [0.3, inputs()[3]], ids=["batch", "sample"])
def test_our_loss_of_several_labels_is_mixed_around_those_that_nobody_knows(lam, weight):
    """For a share a sample it is the sum of mixed losses over the sum of mixed counts of known labels."""
    z, y, partner, _ = inputs()
    loss = BinaryCrossEntropy(weight)
    hot = F.one_hot(y, K).float().masked_fill((z > 0.8).detach(), float("nan"))
    value, losses = seen(loss, z, hot, partner, lam)
    expected = 0.3 * loss(z, hot) + (1 - 0.3) * loss(z, hot[partner])
    if isinstance(lam, Tensor):
        weights = torch.ones(K) if weight is None else WEIGHTS
        total = count = torch.zeros(())
        for labels, share in ((hot, lam), (hot[partner], 1 - lam)):
            each = F.binary_cross_entropy_with_logits(z, labels.nan_to_num(), weights, reduction="none")
            total = total + (share[:, None] * each)[~labels.isnan()].sum()
            count = count + (share[:, None] * ~labels.isnan()).sum()
        expected = total / count

    assert losses == 1
    assert distance(value, expected, z) < 1e-6


def test_labels_of_several_classes_are_mixed_as_integer_ones_are():
    z, y, partner, lam = inputs()
    hot = F.one_hot(y, K).float()
    for share in (0.3, lam):
        soft = hot.lerp(hot[partner], (1 - torch.as_tensor(share)).expand(B)[:, None])
        value, _ = seen(F.binary_cross_entropy_with_logits, z, hot, partner, share)
        blended = F.binary_cross_entropy_with_logits(z, soft)

        assert distance(value, blended, z) < 1e-6
