"""A pair of processes joined by gloo, started once and given many functions to run.

`TwoRanks.run(fn, *args)` runs `fn(*args)` on both ranks and returns `[result of rank 0, result of rank 1]`. Functions
and classes of test modules are sent by value, so closures and lambdas work; what they return should be tensors and
plain data. The environment is that of an external launcher: `Trainer(accelerator="cpu", strategy="ddp", devices=2)`
joins the existing group and starts nothing.
"""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

__all__ = ["GRACE", "PAIR", "TIMEOUT", "RankError", "TwoRanks"]

TIMEOUT = 120.0  # seconds a case may take
GRACE = 5.0  # seconds the other rank has left when one has failed: it may wait for the failed one for ever
TESTS = Path(__file__).resolve().parents[2]


class RankError(Exception):
    """A rank died, did not answer in time, or raised something that cannot be sent."""


class TwoRanks:
    """The pair; it starts with the first `run` and again after a case that lost it."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.cpu_seconds = 0.0  # of the living pair's cases
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Start both processes; they wait for their first case."""
        self._folder = tempfile.TemporaryDirectory(prefix="two_ranks_")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(2):
            ours, theirs = socket.socketpair()
            # A seed that an earlier test has left there would be set in each fit.
            environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"} | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "two_ranks",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            with open(Path(self._folder.name) / f"rank{rank}.log", "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "support.rank", str(theirs.fileno()), self._folder.name],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # A Ctrl-C meant for pytest reaches the pair through `stop` alone.
                    start_new_session=True,
                )
            theirs.close()
            self.processes.append(process)
            self._connections.append(Connection(ours.detach()))

    def stop(self) -> None:
        """Kill the pair; the next `run` starts another."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for connection in self._connections:
            connection.close()
        if self._folder is not None:
            self._folder.cleanup()
        self.processes, self._connections, self._folder = [], [], None
        self.cpu_seconds = 0.0  # what they took counts among that of ended children now

    def run(self, fn: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        """Run `fn(*args)` on both ranks.

        Raises:
            Exception: what a rank raised (of two, rank 0's), with the rank and its traceback as notes.
            RankError: a rank died or `timeout` seconds passed; the pair is killed.
        """
        if not self.processes:
            self.start()
        case = pickle.dumps((os.getcwd(), list(sys.path), _by_value((fn, args))))
        for connection in self._connections:
            connection.send_bytes(case)
        replies = self._collect(timeout)
        self.cpu_seconds += sum(reply[2] for reply in replies.values())
        failures = {rank: reply[1] for rank, reply in sorted(replies.items()) if reply[0] == "raised"}
        if failures:
            error = next(iter(failures.values()))[0]
            for rank, (_, trace) in failures.items():
                error.add_note(f"on rank {rank}:\n{trace}")
            if len(replies) < 2:
                error.add_note(f"the other rank did not finish within {GRACE:.0f} s of this and was stopped")
                self.stop()
            raise error
        return [replies[rank][1] for rank in range(2)]

    def _collect(self, timeout: float) -> dict[int, tuple[str, Any, float]]:
        replies: dict[int, tuple[str, Any, float]] = {}
        deadline = time.monotonic() + timeout
        while len(replies) < 2:
            waiting = [connection for rank, connection in enumerate(self._connections) if rank not in replies]
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready and any(reply[0] == "raised" for reply in replies.values()):
                return replies
            if not ready:
                raise self._lost(f"no answer from rank {min({0, 1} - replies.keys())} within {timeout:.0f} s")
            for connection in ready:
                rank = self._connections.index(connection)
                try:
                    replies[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    raise self._lost(f"rank {rank} died with exit code {self.processes[rank].wait()}") from None
                if replies[rank][0] == "raised":
                    deadline = min(deadline, time.monotonic() + GRACE)
        return replies

    def _lost(self, reason: str) -> RankError:
        assert self._folder is not None
        logs = [(Path(self._folder.name) / f"rank{rank}.log").read_text(errors="replace") for rank in range(2)]
        self.stop()
        error = RankError(reason)
        for rank, log in enumerate(logs):
            error.add_note(f"last lines of rank {rank}:\n" + "\n".join(log.splitlines()[-40:]))
        return error


def _by_value(payload: Any) -> bytes:
    """Pickle `payload`; what is defined in test modules travels with its code, `support` and packages by name."""
    already = cloudpickle.list_registry_pickle_by_value()
    modules = [module for module in list(sys.modules.values()) if _is_test_code(module, already)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(payload)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _is_test_code(module: ModuleType, already: set[str]) -> bool:
    file = Path(getattr(module, "__file__", None) or "")
    in_our_tests = file.is_relative_to(TESTS) and not file.is_relative_to(TESTS / "harness")
    return (in_our_tests or file.name.startswith(("test_", "conftest"))) and module.__name__ not in already


# Where a run of tests keeps its pair.
PAIR = pytest.StashKey[TwoRanks]()
