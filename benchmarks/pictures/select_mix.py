"""Digits of which three in ten are mislabelled: some in doubt, the trusted ones they are mixed with, the targets."""

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import SelectMix, label_doubt, out_of_sample_probabilities

from ._trained_digits import digits, rows_of

__all__ = ["draw"]

SAMPLES, SHOWN = 1000, 8


def draw() -> Figure:
    """Three rows: a sample in doubt over its label and a likelier class, its peer, the mixture over its target."""
    images, labels = (it[:SAMPLES] for it in digits())
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(SAMPLES, generator=generator) < 0.3
    given = torch.where(wrong, (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10, labels)
    doubt = label_doubt(out_of_sample_probabilities(images.flatten(1), given, 5), given)
    mix = SelectMix()
    mix.here = doubt.rows()
    drawn = mix.draw(images.shape, np.random.default_rng(6))
    mixed = mix.mix(images, drawn)
    chosen = [it for it in doubt.uncertain.nonzero()[:, 0].tolist() if 0.3 < float(drawn.lam[it]) < 0.8][:SHOWN]
    assert isinstance(mixed.lam, torch.Tensor) and mixed.twin is not None
    partner = mixed.partner[chosen]
    told = [
        f"{own}: {share:.2f}\n{other}: {1 - share:.2f}"
        for own, other, share in zip(given[chosen], mixed.twin[chosen], mixed.lam[chosen].tolist(), strict=True)
    ]
    return rows_of(
        [
            ("in doubt", images[chosen], [f"labelled {given[it]}\nlikelier {doubt.predicted[it]}" for it in chosen]),
            ("its peer", images[partner], [f"labelled {it}" for it in given[partner].tolist()]),
            ("mixed", mixed.images[chosen], told),
        ]
    )
