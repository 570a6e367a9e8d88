"""Pruning: most weights are zero from some step on, and stay so.

With n weights in all Linear and convolutional layers, round(s n) of them are zero at sparsity s, chosen by a criterion.
They go at once, or along the cubic schedule of Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks._fields import Fields
from ..hooks.sparsity import Sparsity
from ._criteria import criterion_named
from ._criterion import Criterion, Moment
from ._shares import keep_by_layer, keep_with_floor
from .gradual import cubic_sparsity, pruning_step
from .n_of_m import keep_n_of_m, parse_n_of_m

__all__ = ["Pruning"]


@final
class Pruning(Sparsity):
    """Sets the least important weights to zero, at once or along a schedule, and keeps them there.

    By default nine of ten weights go before the first optimizer step, the smallest of all Linear and convolutional
    layers together, the head included. Biases, norms and parameters that are no such layer's are left alone. Masked
    weights have zero gradients for clipping and SAM, zero momentum and zero averages; files hold them as zeros under
    the names of a plain run. It acts at the end of a training batch, so a validation and a checkpoint see what was
    pruned. A table of all layers ends the fit.

    Args:
        sparsity: Share of weights that are zero at the end, in [0, 1); None is 0.9, or what `pattern` leaves. 0 is
            neutral.
        criterion: What decides: `magnitude`, `random`, `synflow`, `movement` or `rate_distortion`.
        scope: `global` compares the weights of all layers; `layer` takes the same share of each.
        begin_step: Optimizer steps before the first pruning; 0 is before training.
        end_step: None prunes once, at `begin_step`; else sparsity rises cubically until this step, which is the last
            one that prunes.
        every_n_steps: Optimizer steps from one pruning of the schedule to the next, at least 1; 100 as its authors.
        min_weights: Weights that stay in each layer at least, or all if it has fewer; 0 is none. Without it a layer
            may lose all of them.
        pattern: `N:M`, as `2:4`: of each M consecutive inputs the N largest weights stay. Layers whose inputs are no
            multiple of M are left dense, or refused if `include` names them. It has a sparsity of its own.
        include: Shell patterns of names of layers or their weights, as `["network.layer4.*"]`; None is all.
        exclude: Shell patterns of those that are left out, as `["head"]`.
        reactivation: Share of each pruning, in [0, 1], that goes to weights whose removal wakes dead ReLU units; 0
            leaves all of it to the criterion.
        image_key: Key of the images, if batches are mappings, for criteria that look at images.
        target_key: Key of the labels, if batches are mappings.
        seed: Seed of what criteria draw, >= 0.
        name: Part of the state key, and the name of the table's file.

    Shape:
        Weights of any shape; one boolean mask of its shape for each, and one of its type while fitting.

    Raises:
        ValueError: from the constructor, for a setting out of range or two that contradict one another; before the
            first step, if a shell pattern matches no layer, or the sparsity leaves fewer weights than asked for.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import Pruning
        >>> trainer = Trainer(callbacks=[Pruning(sparsity=0.9)], accelerator="cpu", logger=False)

    Reference: Gupta et al. 2022, arXiv:2209.14624

    BibTeX:
        @article{gupta2022complexity,
          title = {Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude Pruning},
          author = {Gupta, Manas and Camci, Efe and Keneta, Vishandi Rudy and Vaidyanathan, Abhishek and Kanodia, Ritwik
            and Foo, Chuan-Sheng and Wu, Min and Lin, Jie},
          year = {2022},
          eprint = {2209.14624},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There a trained network is pruned and fine-tuned; here the moment is a setting, and the default is before
        training. Gradual pruning follows Zhu and Gupta 2017, arXiv:1710.01878, per optimizer step.

    See also:
        `lightning_vision.callbacks.hooks.masks`, the seam for criteria of your own.
    """

    neutral = ({"sparsity": 0.0},)

    def __init__(
        self,
        sparsity: float | None = None,
        criterion: str = "magnitude",
        scope: Literal["global", "layer"] = "global",
        begin_step: int = 0,
        end_step: int | None = None,
        every_n_steps: int = 100,
        min_weights: int = 0,
        pattern: str | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        reactivation: float = 0.0,
        image_key: str = "image",
        target_key: str = "target",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(include=include, exclude=exclude, name=name)
        if sparsity is not None and not (isinstance(sparsity, (int, float)) and 0.0 <= sparsity < 1.0):
            raise ValueError(f"Pruning: sparsity is {sparsity!r}; give a share from 0 (dense) to below 1.")
        if scope not in ("global", "layer"):
            raise ValueError(f"Pruning: scope is {scope!r}; give 'global' or 'layer'.")
        whole("Pruning", "begin_step", begin_step, 0)
        if end_step is not None:
            whole("Pruning", "end_step", end_step, begin_step + 1)
        whole("Pruning", "every_n_steps", every_n_steps, 1)
        whole("Pruning", "min_weights", min_weights, 0)
        number("Pruning", "reactivation", reactivation, 0, 1)
        whole("Pruning", "seed", seed, 0)
        self.criterion, self.scope, self.pattern, self.reactivation = criterion, scope, pattern, reactivation
        self.begin_step, self.end_step, self.every_n_steps = begin_step, end_step, every_n_steps
        self.min_weights, self.image_key, self.target_key, self.seed = min_weights, image_key, target_key, seed
        self.sparsity = 0.9 if sparsity is None else float(sparsity)
        self._group = None if pattern is None else parse_n_of_m("Pruning", pattern)
        if self._group is not None:
            own = 1 - self._group[0] / self._group[1]
            self.sparsity = own
            self._refuse_beside_pattern(
                sparsity=(own if sparsity is None else sparsity, own),
                criterion=(criterion, "magnitude"),
                scope=(scope, "global"),
                end_step=(end_step, None),
                min_weights=(min_weights, 0),
                reactivation=(reactivation, 0.0),
            )
        self.forget()
        if self.observes and self.last_step() == 0:
            raise ValueError(
                f"Pruning: criterion={criterion!r} looks at the gradients of earlier steps, and before step 0 there "
                "are none; give begin_step=, or end_step= for a schedule."
            )

    def forget(self) -> None:
        self._reached = 0.0  # the share that masks were last given for
        self._given_pattern: str | None = None
        self._criterion = criterion_named("Pruning", self.criterion)
        self.observes = type(self._criterion).observe is not Criterion.observe and not self.off
        if self.reactivation:
            # Here, for most runs do without it.
            from .reactivation import Reactivation

            self._criterion = Reactivation(self._criterion, self.reactivation)
        self.needs_batch = self._criterion.needs_images and not self.off

    def last_step(self) -> int:
        return self.begin_step if self.end_step is None else self.end_step

    def due(self, step: int) -> bool:
        point = pruning_step(step, self.begin_step, self.end_step, self.every_n_steps)
        if self.off or point is None:
            return False
        return point > self.given_at or self._lags(point)

    def masks(self, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        chosen = {name: weights[name] for name in self.chosen}
        if self._group is not None:
            found = {name: keep_n_of_m(weight, *self._group) for name, weight in chosen.items()}
            return {name: mask & self.kept_masks.get(name, mask) for name, mask in found.items()}
        share = self._share(step)
        moment = self._moment(step, chosen)
        sizes = {name: weight.numel() for name, weight in chosen.items()}
        left = {name: int(mask.sum()) for name, mask in moment.kept.items()}
        if self.scope == "global":
            count = min(_stay(sum(sizes.values()), share), sum(left.values()))
            found = keep_with_floor(self._criterion, moment, count, self.min_weights)
        else:
            counts = {name: max(_stay(size, share), min(size, self.min_weights)) for name, size in sizes.items()}
            counts = {name: min(count, left[name]) for name, count in counts.items()}
            found = keep_by_layer(self._criterion, moment, counts)
        if empty := [name for name, mask in found.items() if left[name] and not mask.any()]:
            rank_zero_warn(
                f"Pruning: nothing is left of {', '.join(empty)} after {step} optimizer steps; give min_weights= so "
                "that some weights stay in each layer."
            )
        return found

    def given(self, trainer: Trainer) -> None:
        super().given(trainer)
        self._reached, self._given_pattern = self._share(self.given_at), self.pattern

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        self._criterion.observe({name: weights[name] for name in self.chosen if name in weights})

    def choose(self, pl_module: LightningModule, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self._criterion.fits(pl_module)
        if self._group is not None:
            return self._groupable(weights, self._group[1])
        sizes = [weight.numel() for weight in weights.values()]
        stay, floors = _stay(sum(sizes), self.sparsity), sum(min(size, self.min_weights) for size in sizes)
        if self.scope == "global" and stay < max(floors, 1):
            raise ValueError(
                f"Pruning: sparsity={self.sparsity} leaves {stay:,} of {sum(sizes):,} weights, and min_weights="
                f"{self.min_weights} needs {max(floors, 1):,} in {len(sizes)} layers; lower one of them."
            )
        return weights

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "criterion": self.criterion,
            "gathered": self._criterion.state_dict(),
            "reached": self._reached,
            "pattern": self._given_pattern,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["criterion"] == self.criterion:
            self._criterion.load_state_dict(state_dict["gathered"])
        self._reached, self._given_pattern = state_dict["reached"], state_dict["pattern"]
        if self._reached > self.sparsity and not self.off:
            rank_zero_warn(
                f"Pruning: the checkpoint was pruned to a sparsity of {self._reached:g}, above sparsity="
                f"{self.sparsity:g}, and what went stays zero; give sparsity=0 to let it go."
            )

    def _share(self, step: int) -> float:
        if self.end_step is None:
            return self.sparsity
        return cubic_sparsity(step, self.sparsity, self.begin_step, self.end_step)

    def _lags(self, point: int) -> bool:
        """Whether masks of a checkpoint say less than they would by now, for they are of other settings."""
        another = self.pattern not in (None, self._given_pattern)
        return another or self._share(point) > self._reached or not self.kept_masks.keys() >= set(self.chosen)

    def _moment(self, step: int, weights: Mapping[str, Tensor]) -> Moment:
        assert self.module is not None
        kept = {
            name: self.kept_masks.get(name, torch.ones_like(weight, dtype=torch.bool))
            for name, weight in weights.items()
        }
        images = None
        if self._criterion.needs_images:
            images = Fields("Pruning", self.image_key, self.target_key).image(self.batch)
        # A stream of its own for each pruning, so that there is no state to save.
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return Moment(step, weights, kept, self.module, images, random)

    def _groupable(self, weights: Mapping[str, Tensor], group: int) -> Mapping[str, Tensor]:
        fit = {name: weight for name, weight in weights.items() if weight.shape[1] % group == 0}
        unfit = next((name for name in weights if name not in fit), None)
        if unfit is not None and (self.include is not None or not fit):
            inputs = weights[unfit].shape[1]
            raise ValueError(
                f"Pruning: {unfit} has {inputs} inputs, which are no groups of {group} for pattern={self.pattern!r}; "
                "name other layers with include=, or give sparsity= in its place."
            )
        return fit

    def _refuse_beside_pattern(self, **given: Any) -> None:
        against = {argument: pair for argument, pair in given.items() if pair[0] not in (pair[1], None)}
        if against:
            raise ValueError(
                f"Pruning: pattern={self.pattern!r} says how much goes and when, which "
                f"{', '.join(f'{argument}={value!r}' for argument, (value, _) in against.items())} would change; give "
                f"{', '.join(f'{argument}={plain!r}' for argument, (_, plain) in against.items())}"
                f"{' (null in YAML)' if 'end_step' in against else ''}."
            )


def _stay(total: int, sparsity: float) -> int:
    """How many of `total` weights stay; rounded as torch's pruning rounds those that go."""
    return total - round(sparsity * total)
