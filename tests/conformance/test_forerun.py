"""Steps before a fit leave no trace beside any other callback: the fit is the one without them.

By default beside five that watch batches, optimizer steps, layers, labels or parameters; with `-m slow` beside all.
"""

import pytest

from lightning_vision.callbacks import LRRangeTest
from support.conformance.checks import EVERYTHING
from support.conformance.runs import compare, fit
from support.conformance.subjects import subjects

WATCHING = ("EMA", "LoRA", "MixUp", "ProgressiveResizing", "TrAct")


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(it, id=it.name, marks=[] if it.name in WATCHING else pytest.mark.slow)
        for it in subjects()
        if it.kind is not LRRangeTest
    ],
)
def test_a_fit_after_trial_steps_is_the_one_without_them(subject):
    plain, tested = (
        fit(subject.ordinary, [subject.make(), *before], max_epochs=1, refusable=[subject.name])
        for before in ((), (LRRangeTest(num_steps=6),))
    )

    assert compare(tested, plain, EVERYTHING) == []
