"""Neural Clamping: one shift of all images and one temperature, learned for a network that stays as it is.

Tang et al. 2022, arXiv:2209.11604. Letters: B batch, C channels, H and W sides, K classes, f the network, delta the
shift, T the temperature, gamma the focal loss's exponent, lambda the shift's penalty. What is minimised:

    mean of focal(f(x + delta) / T, y, gamma) + lambda ||delta||^2
"""

from collections.abc import Callable, Iterable
from math import log

import torch
from torch import Tensor

from .calibration import Calibration
from .losses import focal
from .temperature import fit_temperature

__all__ = ["clamping_loss", "neural_clamping"]

Batches = Iterable[tuple[Tensor, Tensor]]


def clamping_loss(
    network: Callable[[Tensor], Tensor],
    batches: Batches,
    calibration: Calibration,
    focal_gamma: float = 1.0,
    penalty: float = 1.0,
) -> float:
    """What Neural Clamping minimises, over all batches: focal loss of the calibrated logits and the shift's penalty.

    Args:
        network: Maps images `(B, C, H, W)` to logits `(B, K)`; in evaluation mode.
        batches: Images and their classes, int64 `(B,)`.
        calibration: The shift and the temperature.
        focal_gamma: gamma; 0 is the negative log-likelihood.
        penalty: lambda.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for image, target in batches:
            logits = calibration.logits(network, image)
            total += float(focal(logits, target, focal_gamma)) * len(target)
            count += len(target)
    size = 0.0 if calibration.delta is None else float(calibration.delta.square().sum())
    return total / count + penalty * size


def neural_clamping(
    network: Callable[[Tensor], Tensor],
    batches: Batches,
    lr: float = 0.001,
    epochs: int = 20,
    focal_gamma: float = 1.0,
    penalty: float = 1.0,
    temperature: float | None = None,
    delta: Tensor | None = None,
    learn_delta: bool = True,
) -> Calibration:
    """Learn the shift of all images and the temperature that calibrate a network, whose weights stay as they are.

    Adam goes through the batches `epochs` times; of the start and the epochs' ends the one of least loss over all
    batches is returned, so the result is never worse than its start. Nothing is drawn at random.

    Args:
        network: Maps images `(B, C, H, W)` to logits `(B, K)`; in evaluation mode.
        batches: Normalised images and their classes, int64 `(B,)`, not those trained on; gone through again and again.
        lr: Adam's learning rate, for delta in the images' unit and for log T, above 0; the authors' SGD has 0.001.
        epochs: Passes with steps, >= 0; each is followed by one without, to measure.
        focal_gamma: gamma of the focal loss, >= 0; 1 in the authors' code, 0 is the negative log-likelihood.
        penalty: lambda, on the sum of delta's squares, >= 0; 1 in the authors' code, on its norm.
        temperature: T to start from, above 0; None starts from temperature scaling.
        delta: Shift to start from, `(C, H, W)`; None starts from none.
        learn_delta: False leaves delta as it starts; without one this is temperature scaling.

    Raises:
        ValueError: a setting is outside its range, there are no batches, an image has several labels, or no
            temperature fits (see `fit_temperature`).

    Example:
        >>> images, target = torch.eye(4).view(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
        >>> found = neural_clamping(lambda image: 5 * image.flatten(1), [(images, target)], epochs=2)
        >>> found.delta.shape, found.temperature > 1
        (torch.Size([1, 2, 2]), True)

    Reference: Tang et al. 2022, arXiv:2209.11604

    BibTeX:
        @article{tang2024neural,
          title = {Neural Clamping: Joint Input Perturbation and Temperature Scaling for Neural Network Calibration},
          author = {Tang, Yung-Chen and Chen, Pin-Yu and Ho, Tsung-Yi},
          journal = {Transactions on Machine Learning Research},
          year = {2024},
          eprint = {2209.11604},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Adam on log T, so that T stays positive; the start is temperature scaling and no shift; the best epoch is kept.
    """
    settings = {"lr": lr, "epochs": epochs, "focal_gamma": focal_gamma, "penalty": penalty}
    if lr <= 0 or min(settings.values()) < 0:
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise ValueError(f"neural_clamping got {told}; lr must be above 0 and the others at least 0")
    logits, targets = [], []
    with torch.no_grad():
        for image, target in batches:
            logits.append(network(image))
            targets.append(target)
    if not targets:
        raise ValueError("neural_clamping got no batches; give a list or a loader that can be gone through repeatedly")
    if targets[0].ndim != 1:
        raise ValueError("neural_clamping takes one label an image; with several use temperature scaling")
    if temperature is None:
        temperature = fit_temperature(torch.cat(logits), torch.cat(targets))
    shift = torch.zeros_like(image[0]) if delta is None else delta.detach().to(image).clone()
    shift.requires_grad_(learn_delta)
    log_t = torch.tensor(log(temperature), dtype=torch.float64, requires_grad=True)
    learned = [shift, log_t] if learn_delta else [log_t]
    optimizer = torch.optim.Adam(learned, lr=lr)
    best = Calibration(temperature, shift.detach().clone())
    least = clamping_loss(network, batches, best, focal_gamma, penalty)
    for _ in range(epochs):
        for image, target in batches:
            with torch.enable_grad():
                calibrated = network(image + shift) / log_t.exp().to(image)
                loss = focal(calibrated, target, focal_gamma) + penalty * shift.square().sum()
            # Of these alone: the network's weights get no gradients.
            for value, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                value.grad = gradient
            optimizer.step()
        now = Calibration(float(log_t.detach().exp()), shift.detach().clone())
        if (loss_now := clamping_loss(network, batches, now, focal_gamma, penalty)) < least:
            best, least = now, loss_now
    return best
