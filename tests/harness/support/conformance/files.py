"""Checkpoints: safe to load, of a plain run's form, and usable by those who do not have the callback."""

import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from support.conformance.checks import with_resume
from support.conformance.runs import collate, fit
from support.conformance.subjects import Subject
from support.data import plain_loader

__all__ = ["claims_its_state", "loads_elsewhere", "resumes_with_another_setting", "warns_of_a_plain_loader", "write"]


def write(subject: Subject, folder: Path, weights_only: bool = False) -> Path:
    """A checkpoint from inside the second epoch: a whole one, or one of weights, each of a run of its own."""
    folder = folder / ("weights" if weights_only else "whole")
    writer = ModelCheckpoint(folder, "{step}", save_weights_only=weights_only, every_n_train_steps=2, save_top_k=-1)
    fit(subject.ordinary, [*with_resume(subject), writer])
    return folder / _in_the_second_epoch(subject)


def _in_the_second_epoch(subject: Subject) -> str:
    return "step=6.ckpt" if subject.kind.shortens_epochs else "step=8.ckpt"


def loads_elsewhere(subject: Subject, whole: Path) -> list[str]:
    """Guarantee 4: both files load with `weights_only=True` into a stranger's module, and a fit goes on without it."""
    weights = write(subject, whole.parents[1], weights_only=True)
    found = []
    plain = list(subject.ordinary.make_module().state_dict())
    read = {path: torch.load(path, weights_only=True) for path in (whole, weights)}
    for path, content in read.items():
        if list(content["state_dict"]) != plain and not subject.kind.changes_architecture:
            wrong = sorted(set(content["state_dict"]) ^ set(plain))
            found.append(f"the file in {path.parent.name}/ has the keys {wrong} more or less")
            continue
        subject.prepared(subject.ordinary.make_module()).load_state_dict(content["state_dict"], strict=True)
    for name in read[whole]["state_dict"] if not found else ():
        if not torch.equal(read[whole]["state_dict"][name], read[weights]["state_dict"][name]):
            found.append(f"the weights-only file has another {name} than the whole one")
    resumed = fit(subject.ordinary, ckpt_path=whole, module=subject.prepared(subject.ordinary.make_module()))
    if resumed.counts["global step"] != 10:
        found.append(f"without it, the run goes on to step {resumed.counts['global step']} instead of 10")
    return found


def resumes_with_another_setting(subject: Subject, whole: Path) -> list[str]:
    """Guarantee 10: the state key names no knob, so another setting finds the state; two-way with the neutral one."""
    found = []
    keys = {subject.make(**changed).state_key for changed in [{}, *subject.neutral]}
    if keys != {subject.kind.__qualname__}:
        found.append(f"the state key depends on the setting: {sorted(keys)}")
    for changed in subject.neutral:
        own = subject.make(**changed)
        if fit(subject.ordinary, [own], ckpt_path=whole).counts["global step"] != 10:
            found.append(f"resumed with {changed}, the run does not end at step 10")
    named = subject.make(name="mine").state_key
    if named != f"{subject.kind.__qualname__}[mine]":
        found.append(f"with name='mine' the state key is {named!r}")
    return found


def claims_its_state(subject: Subject, whole: Path) -> list[str]:
    """Guarantee 10: saved state of the class that no callback claims is an error, before training."""
    outcome = fit(subject.ordinary, [subject.make(name="other")], ckpt_path=whole, refusable=[subject.name])
    kept = subject.kind.__qualname__ in torch.load(whole, weights_only=True)["callbacks"]
    if kept and "holds the state of one without a name" not in outcome.refusal:
        return [f"state without a name is dropped by one with a name ({outcome.refusal or 'no refusal'})"]
    try:
        refusal = fit(subject.ordinary, [subject.make(), subject.make()], refusable=[subject.name]).refusal
    except RuntimeError as error:  # Lightning's own, where the callback has a state
        refusal = str(error)
    return [] if refusal else ["two without names are not refused"]


def warns_of_a_plain_loader(subject: Subject, whole: Path) -> list[str]:
    """Guarantee 4: under a loader that cannot resume, going on inside an epoch is warned about in a sentence."""
    folder = whole.parents[1] / "plain"
    writer = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    loader = plain_loader(27, collate_fn=collate(subject.ordinary))
    fit(subject.ordinary, [*with_resume(subject), writer], train_dataloaders=loader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(
            subject.ordinary,
            with_resume(subject),
            ckpt_path=folder / _in_the_second_epoch(subject),
            train_dataloaders=loader,
        )
    said = any("cannot continue inside an epoch" in str(it.message) for it in caught)
    return [] if said else ["no warning of a plain DataLoader"]
