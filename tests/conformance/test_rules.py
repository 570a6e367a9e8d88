"""The twelfth guarantee, and the house's rule that a method's class holds no Lightning hook, read from the source."""

import pytest

from support import ROOT
from support.conformance.rules import hooks_outside_seams, private_touches

WING = ROOT / "callbacks"
SOURCES = sorted(WING.rglob("*.py"))


def test_what_is_private_to_lightning_is_touched_in_the_seams_private_files_only():
    public = [path for path in SOURCES if path.parent != WING / "hooks" or not path.name.startswith("_")]

    assert [(str(path), it) for path in public for it in private_touches(path.read_text())] == []


# `resume/` is its own seam: its two callbacks act between steps and on files, where no method of training does.
METHODS = [path for path in SOURCES if path.parent not in (WING, WING / "hooks", WING / "resume")]


def test_a_method_holds_no_lightning_hook():
    assert [(str(path), it) for path in METHODS for it in hooks_outside_seams(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "trainer._run()",
        "self.trainer.fit_loop._data_source",
        "getattr(trainer, '_fit', None)",
        "pl_module._current_fx_name = 'x'",
        "trainer.optimizers[0]._step_count",
        "from lightning.pytorch.loops import _Loop",
        "from lightning.pytorch.core._private import loop",
    ],
)
def test_a_private_touch_is_noticed(source):
    assert len(list(private_touches(source))) == 1


@pytest.mark.parametrize("source", ["trainer.fit_loop", "self._trainer.global_step", "trainer.__class__", "own._x"])
def test_a_public_touch_is_allowed(source):
    assert list(private_touches(source)) == []


def test_a_hook_in_a_method_is_noticed():
    source = "class SAM:\n    def on_fit_start(self, trainer, pl_module): ...\n    def state_dict(self): ...\n"

    assert list(hooks_outside_seams(source)) == ["2: SAM.on_fit_start"]
