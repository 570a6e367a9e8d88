"""Fixtures of every test: a folder of its own, fixed seeds, the leak check and the two-rank pair."""

import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import torch

from support import ROOT
from support.process_state import fixed_seed, leaks, read_all
from support.two_ranks import PAIR, TwoRanks

torch.set_num_threads(1)

# ---------------------------------------------------------------------------------------------------------------------
# Files written into the repository by this process, told by an audit hook: exact while others edit the same tree.
# ---------------------------------------------------------------------------------------------------------------------

_written: list[str] = []
_WATCHED = str(ROOT) + os.sep
_CACHES = (".git", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".coverage", ".egg-info")


def _note_writes(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = args
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event == "os.mkdir":
        path = args[0]
    elif event == "os.rename":
        path = args[1]
    else:
        return
    if isinstance(path, (str, os.PathLike)):
        name = os.path.abspath(os.fspath(path))
        if isinstance(name, str) and name.startswith(_WATCHED) and not any(cache in name for cache in _CACHES):
            _written.append(name)


sys.addaudithook(_note_writes)


def _other_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


def _children(pair: TwoRanks) -> set[int]:
    """Process ids of our living children, apart from the pair and from Python's own trackers."""
    own = {process.pid for process in pair.processes} | {resource_tracker._resource_tracker._pid}
    multiprocessing.active_children()  # joins those that have ended
    found = set()
    # The kernel's own lists, twice a test, thousands of times: to ask each process for its parent takes milliseconds.
    for thread in os.listdir("/proc/self/task"):
        # A thread may end meanwhile. Where a kernel keeps no list, the harness's own test of leaks is red.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as children:
            found |= set(map(int, children.read().split()))
    return {child for child in found - own if not _has_ended(child)}


def _has_ended(child: int) -> bool:
    try:
        with open(f"/proc/{child}/stat", "rb") as status:
            return status.read().rpartition(b")")[2].split(maxsplit=1)[0] == b"Z"
    except OSError:
        return True


def _settled(read: Callable[[], set[Any]], before: set[Any]) -> set[Any]:
    """What is new and still there after a second: workers need a moment to end."""
    deadline = time.monotonic() + 1.0
    while (new := read() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    return new


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path) -> Iterator[None]:
    """The working directory is the test's own; `support.ROOT` is the repository."""
    with contextlib.chdir(tmp_path):
        yield


@pytest.fixture(autouse=True)
def no_leaks(own_folder: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves hooks, patches, modes, settings, variables, threads, processes or files behind."""
    pair = request.config.stash[PAIR]
    fixed_seed()
    threads, children = _other_threads(), _children(pair)
    _written.clear()
    before = read_all()
    yield
    found = leaks(before)
    if new := _settled(_other_threads, threads):
        found.append(f"threads: {', '.join(sorted(thread.name for thread in new))}")
    if new := _settled(lambda: _children(pair), children):
        found.append(f"child processes: {sorted(new)}")
    if _written:
        found.append(f"files written into the repository: {', '.join(sorted(set(_written)))}")
    if found:
        pytest.fail("left behind: " + "; ".join(found), pytrace=False)


@pytest.fixture(scope="session")
def _first_compilation() -> None:
    """The first compilation of a process patches `torch.nn.Module` for good, which is no leak of a test."""
    torch.compile(torch.nn.Identity(), backend="eager")(torch.zeros(1))


@pytest.fixture
def compiler(_first_compilation: None) -> Iterator[None]:
    """For tests that call `torch.compile`: what they compiled is forgotten afterwards."""
    yield
    torch.compiler.reset()


@pytest.fixture
def two_ranks(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """`two_ranks(fn, *args, timeout=120)` runs `fn(*args)` on two gloo ranks: `[result of rank 0, of rank 1]`."""
    return request.config.stash[PAIR].run


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PAIR] = TwoRanks()
    config.addinivalue_line("markers", "xdist_group(name): tests that share one worker")
    config.addinivalue_line("markers", "one_worker: of a module whose tests share what costs seconds to make")


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[PAIR].stop()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on two ranks share one worker, so that a run has one pair; those of a `one_worker` module, too."""
    for item in items:
        if "two_ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("two_ranks"))
        elif item.get_closest_marker("one_worker"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
