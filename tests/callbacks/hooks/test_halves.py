"""Batches of plain and mixed images at once: a loss is the plain half's and eta times the mixed half's, or refused.

c is the loss of the plain half and m that of the mixed, by formulas on the halves alone; readers see the plain half.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.callbacks.hooks._mixed_labels import MixedTensor, Mixture, resolved
from lightning_vision.classification.losses import BinaryCrossEntropy, CrossEntropy, Focal

Loss = Callable[[Tensor, Tensor], Tensor]

B, K, ETA = 6, 5, 0.7
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of both halves `(2B, K)`, labels, partners, a share for each sample."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2 * B, K, generator=generator, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, 4, 2])
    return z, y, torch.randperm(B, generator=generator), torch.rand(B, generator=generator)


def batch(lam: float | Tensor, eta: float = ETA) -> tuple[Mixture, MixedTensor]:
    _, y, partner, _ = inputs()
    mixture = Mixture("Mixer", torch.cat([torch.ones(B), torch.as_tensor(lam).expand(B)]), 2 * B, beside=eta)
    return mixture, MixedTensor.of(torch.cat([y, y]), torch.cat([y, y[partner]]), mixture, mixture.lam)


def seen(loss: Loss, z: Tensor, lam: float | Tensor, eta: float = ETA) -> Tensor:
    mixture, labels = batch(lam, eta)
    with mixture.live():
        mixture.keep(labels)
        return resolved(loss(z, labels))


def written_out(loss: Loss, z: Tensor, lam: float) -> Tensor:
    """c + eta m, with m = lam L(own) + (1 - lam) L(partner's)."""
    _, y, partner, _ = inputs()
    return loss(z[:B], y) + ETA * (lam * loss(z[B:], y) + (1 - lam) * loss(z[B:], y[partner]))


def apart(value: Tensor, expected: Tensor, z: Tensor) -> float:
    """Largest difference of the two losses and of their gradients."""
    left, right = (torch.autograd.grad(it, z, retain_graph=True)[0] for it in (value, expected))
    return max((value - expected).abs().item(), (left - right).abs().max().item())


def samples(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def sure(z: Tensor) -> Tensor:
    return z.softmax(1).amax(1).detach()


def hits(z: Tensor, y: Tensor) -> Tensor:
    return z.softmax(1) * F.one_hot(y, K)


def untraced(loss: Tensor) -> Tensor:
    with torch.no_grad():
        return loss / 2


def accumulated(z: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(z, y)
    loss /= 4
    loss *= 8
    return loss


LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS),
    "label smoothing": lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS, label_smoothing=0.1),
    "ignore_index": lambda z, y: F.cross_entropy(z, y, ignore_index=2),
    "sum": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "none, then mean": lambda z, y: F.cross_entropy(z, y, reduction="none").mean(),
    "nll_loss": lambda z, y: F.nll_loss(z.log_softmax(1), y),
    "nll_loss with weights": lambda z, y: F.nll_loss(z.log_softmax(1), y, WEIGHTS),
    "gathered by hand": lambda z, y: -z.log_softmax(1).gather(1, y[:, None]).mean(),
    "indexed by hand": lambda z, y: -z.log_softmax(1)[range(len(z)), y].mean(),
    "weighted by hand": lambda z, y: (WEIGHTS[y] * F.cross_entropy(z, y, reduction="none")).sum() / WEIGHTS[y].sum(),
    "weighted means": lambda z, y: (WEIGHTS[y] * F.cross_entropy(z, y, reduction="none")).mean() / WEIGHTS[y].mean(),
    "half a sum": lambda z, y: 0.5 * F.cross_entropy(z, y, reduction="sum"),
    "a sum over a sum of labels": lambda z, y: (samples(z, y) * (y > 0)).sum() / ((y > 0).sum() + 1).clamp(min=2),
    "means of classes": lambda z, y: sum(
        ((samples(z, y) * (y == k)).sum() / ((y == k).sum() + 1) for k in range(K)), torch.zeros(())
    ),
    "weights without labels": lambda z, y: (sure(z) * samples(z, y)).mean(),
    "focal by samples": lambda z, y: ((1 - torch.exp(-samples(z, y))) ** 2 * samples(z, y)).mean(),
    "scaled": lambda z, y: -(2 * -F.cross_entropy(z, y)) / 3,
    "scaled in place": accumulated,
    "one hot": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float()),
    "kl_div": lambda z, y: F.kl_div(z.log_softmax(1), F.one_hot(y, K).float(), reduction="batchmean"),
    "multi_margin_loss": F.multi_margin_loss,
    "roots of samples": lambda z, y: F.cross_entropy(z, y, reduction="none").sqrt().mean(),
    "our CrossEntropy": CrossEntropy(class_weights=WEIGHTS.tolist()),
    "our BinaryCrossEntropy": BinaryCrossEntropy(),
    "our Focal": Focal(1.5, WEIGHTS.tolist()),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_that_of_the_plain_half_and_eta_times_that_of_the_mixed(loss: Loss) -> None:
    z = inputs()[0]

    assert apart(seen(loss, z, 0.3), written_out(loss, z, 0.3), z) < 2e-6


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_wrong_weight_or_share_is_noticed(loss: Loss) -> None:
    z = inputs()[0]
    expected = written_out(loss, z, 0.3)

    assert apart(seen(loss, z, 0.3, eta=0.0), expected, z) > 1e-3
    assert apart(seen(loss, z, 0.7), expected, z) > 1e-3


def test_shares_of_samples_mix_the_second_half_alone() -> None:
    z, y, partner, lam = inputs()
    own, other = (F.cross_entropy(z[B:], it, reduction="none") for it in (y, y[partner]))
    expected = F.cross_entropy(z[:B], y) + ETA * (lam * own + (1 - lam) * other).mean()

    assert apart(seen(F.cross_entropy, z, lam), expected, z) < 1e-6


def added_in_place(z: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(z, y)
    loss += z.square().mean()
    return loss


def added_to(z: Tensor, y: Tensor) -> Tensor:
    loss = z.square().mean()
    loss += F.cross_entropy(z, y)
    return loss


TERMS: dict[str, Loss] = {
    "after": lambda z, y: F.cross_entropy(z, y) + z.square().mean(),
    "before": lambda z, y: z.square().mean() + F.cross_entropy(z, y),
    "python's sum": lambda z, y: sum([F.cross_entropy(z, y), z.square().mean()], torch.zeros(())),
    "stacked": lambda z, y: torch.stack([F.cross_entropy(z, y), z.square().mean()]).sum(),
    "in place": added_in_place,
    "in place of a plain one": added_to,
}


@pytest.mark.parametrize("loss", TERMS.values(), ids=TERMS)
def test_a_term_without_labels_counts_once(loss: Loss) -> None:
    z = inputs()[0]

    assert apart(seen(loss, z, 0.3), written_out(F.cross_entropy, z, 0.3) + z.square().mean(), z) < 1e-6


def test_what_is_not_linear_is_done_with_the_mixed_loss() -> None:
    z, total = inputs()[0], written_out(F.cross_entropy, inputs()[0], 0.3)
    z.grad = None
    flooded = seen(lambda z, y: (F.cross_entropy(z, y) - 9).abs() + 9, z, 0.3)
    focal = seen(lambda z, y: (1 - torch.exp(-F.cross_entropy(z, y))) ** 2 * F.cross_entropy(z, y), z, 0.3)
    root = seen(lambda z, y: F.cross_entropy(z, y).sqrt(), z, 0.3)

    assert root.item() == pytest.approx(total.sqrt().item(), rel=1e-6)
    assert flooded.item() == pytest.approx((total - 9).abs().item() + 9, rel=1e-6)
    assert focal.item() == pytest.approx(((1 - torch.exp(-total)) ** 2 * total).item(), rel=1e-6)


NUMBER = "scales a sum over the samples by a number, which for plain and mixed images apart may be another; "
TENSOR = "scales what its samples cost by a tensor, which may be of plain and mixed images together; "
REFUSED: dict[str, tuple[Loss, str]] = {
    "a sum over len": (lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(y), NUMBER),
    "over twice as many": (lambda z, y: F.cross_entropy(z, y, reduction="sum") / (2 * len(y)), NUMBER),
    "over one more": (lambda z, y: F.cross_entropy(z, y, reduction="sum") / (len(y) + 1), NUMBER),
    "over the rows of logits": (lambda z, y: samples(z, y).sum() / z.shape[0], NUMBER),
    "over their elements": (lambda z, y: (-F.one_hot(y, K) * z.log_softmax(1)).sum() / z.numel(), NUMBER),
    "over a tensor": (lambda z, y: F.cross_entropy(z, y, reduction="sum") / torch.tensor(len(y)), TENSOR),
    "over ones": (lambda z, y: F.cross_entropy(z, y, reduction="sum") / torch.ones_like(y).sum(), TENSOR),
    "over a norm": (lambda z, y: F.cross_entropy(z, y, reduction="sum") / z.detach().abs().sum(), TENSOR),
    "over the sum of weights": (lambda z, y: (sure(z) * samples(z, y)).sum() / sure(z).sum(), TENSOR),
    "means over the mean of weights": (lambda z, y: (sure(z) * samples(z, y)).mean() / sure(z).mean(), TENSOR),
    "over a number that left": (lambda z, y: (samples(z, y) * (y > 0)).sum() / max(int((y > 0).sum()), 1), NUMBER),
    "over a sum that is of no half": (
        lambda z, y: (samples(z, y) * (y > 0)).sum() / (sure(z).sum() + (y > 0).sum()),
        TENSOR,
    ),
    "Dice": (
        lambda z, y: 1 - (2 * hits(z, y).sum(0) / (z.softmax(1).sum(0) + F.one_hot(y, K).sum(0) + 1)).mean(),
        "add puts sums over labels beside a tensor that may be of plain and mixed images together; ",
    ),
    "times one over": (lambda z, y: F.cross_entropy(z, y, reduction="sum") * (1 / len(z)), NUMBER),
    "in place": (lambda z, y: F.cross_entropy(z, y, reduction="sum").div_(len(z)), NUMBER),
    "above the mean": (
        lambda z, y: (samples(z, y) * (samples(z, y).detach() > samples(z, y).mean().detach())).mean(),
        "mul compares the labels",
    ),
    "from the mean": (
        lambda z, y: (samples(z, y) - samples(z, y).mean().detach()).square().mean(),
        "sub compares the labels",
    ),
    "from the mean, without a trace": (
        lambda z, y: (samples(z, y) - untraced(2 * F.cross_entropy(z, y))).square().mean(),
        "sub compares the labels",
    ),
    "worst samples": (lambda z, y: F.cross_entropy(z, y, reduction="none").topk(4).values.mean(), "topk compares the"),
    "pairs": (lambda z, y: ((z @ z.T).sigmoid() - (y[:, None] == y).float()).square().mean(), "sub compares the"),
    "weights before the sum": (
        lambda z, y: (WEIGHTS[y] / WEIGHTS[y].sum() * F.cross_entropy(z, y, reduction="none")).sum(),
        "mul compares the labels",
    ),
}


@pytest.mark.parametrize(("loss", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_come_out_wrong_is_refused(loss: Loss, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        seen(loss, inputs()[0], 0.3)

    assert message in str(refusal.value)
    assert str(refusal.value).endswith(
        "; give the mean of what each sample costs, as F.cross_entropy does, or take MixUp with targets='soft'."
    )


def test_means_and_ratios_without_gradient_are_those_of_plain_images() -> None:
    z, y, _, _ = inputs()
    mixture, labels = batch(0.3)
    with mixture.live():
        right = z.argmax(1) == labels
        mean, ratio = right.float().mean(), right.sum() / torch.ones_like(labels).mul(labels >= 0).sum()
        item, by_len = right.float().mean().item(), right.sum() / len(labels)
    expected = (z[:B].argmax(1) == y).float().mean()

    assert expected != (z.argmax(1) == torch.cat([y, y])).float().mean()
    assert [type(mean), type(ratio)] == [Tensor, Tensor]
    assert mean == ratio == item == by_len == expected
    assert not mixture.left_torch


def test_counts_without_gradient_are_those_of_both_halves_and_noticed_where_they_leave() -> None:
    z, y, _, _ = inputs()
    mixture, labels = batch(0.3)
    total = torch.zeros((), dtype=torch.int64)
    with mixture.live():
        right = (z.argmax(1) == labels).sum()
        total += right
        assert not mixture.left_torch
        count = right.item()

    assert count == right == total == (z.argmax(1) == torch.cat([y, y])).sum()
    assert mixture.left_torch
    assert type(total) is Tensor


def test_a_detached_loss_reads_as_the_mixed_one_and_divides_by_it() -> None:
    z, total = inputs()[0], written_out(F.cross_entropy, inputs()[0], 0.3).detach()
    mixture, labels = batch(0.3)
    with mixture.live():
        loss = F.cross_entropy(z, labels)
        detached, number = loss.detach(), loss.item()
        scaled = resolved(loss / loss.detach())

    assert type(detached) is Tensor
    assert detached == number == pytest.approx(total.item(), rel=1e-6)
    assert scaled.item() == pytest.approx(1.0) and scaled.requires_grad
    assert not mixture.left_torch


def test_a_module_with_a_loss_of_its_own_sees_plain_logits() -> None:
    class Margin(nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(z - 0.3 * F.one_hot(y, K), y)

    z = inputs()[0]

    assert apart(seen(Margin(), z, 0.3), written_out(Margin(), z, 0.3), z) < 1e-6
