"""When how much is pruned: Zhu and Gupta 2017, arXiv:1710.01878, equation 1, with an initial sparsity of 0."""

__all__ = ["cubic_sparsity", "pruning_step"]


def cubic_sparsity(step: int, sparsity: float, begin_step: int, end_step: int) -> float:
    """The sparsity after so many optimizer steps on its way up from 0, fast at first.

    It is s (1 - (1 - (t - t0) / (t1 - t0))^3) between t0 and t1, 0 before and s after them.

    Args:
        step: Optimizer steps t.
        sparsity: Share s of weights that are zero at the end.
        begin_step: t0.
        end_step: t1, above t0.

    >>> cubic_sparsity(50, sparsity=0.5, begin_step=0, end_step=100)
    0.4375
    """
    done = min(max((step - begin_step) / (end_step - begin_step), 0.0), 1.0)
    return sparsity * (1.0 - (1.0 - done) ** 3)


def pruning_step(step: int, begin_step: int, end_step: int | None, every_n_steps: int) -> int | None:
    """The latest step up to this one at which the schedule prunes, None if there was none.

    It prunes after every `every_n_steps` steps from `begin_step` on, where there is nothing to prune yet, and at
    `end_step`; or at `begin_step` alone if there is no end.

    >>> [pruning_step(step, begin_step=2, end_step=9, every_n_steps=3) for step in (2, 5, 7, 8, 9, 20)]
    [None, 5, 5, 8, 9, 9]
    """
    if end_step is None:
        return begin_step if step >= begin_step else None
    if step >= end_step:
        return end_step
    last = begin_step + (step - begin_step) // every_n_steps * every_n_steps
    return last if last > begin_step else None
