"""One rank of the pair in `two_ranks`: receives functions, runs them, answers; ends with its parent."""

import os
import pickle
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import lightning.pytorch  # noqa: F401  (loaded before the first case is timed)
import torch
import torch.distributed as dist

from support.process_state import fixed_seed, leaks, read_all
from support.two_ranks import RankError


def _answer(case: bytes, rank: int) -> bytes:
    directory, path, payload = pickle.loads(case)
    os.chdir(directory)
    sys.path[:] = path
    fixed_seed()
    before = read_all()
    begin = time.process_time()
    try:
        fn, args = cloudpickle.loads(payload)
        result: Any = ("returned", fn(*args))
        if found := leaks(before):
            raise AssertionError(f"rank {rank} left behind: {'; '.join(found)}")
        return cloudpickle.dumps((*result, time.process_time() - begin))
    except BaseException as error:  # KeyboardInterrupt and SystemExit are results too
        trace = traceback.format_exc()
        leaks(before)
        return _raised(error, trace, time.process_time() - begin)


def _raised(error: BaseException, trace: str, seconds: float) -> bytes:
    try:
        answer = cloudpickle.dumps(("raised", (error.with_traceback(None), trace), seconds))
        pickle.loads(answer)
        return answer
    except Exception:
        return cloudpickle.dumps(("raised", (RankError(f"{type(error).__name__}: {error}"), trace), seconds))


def main(descriptor: int, folder: str) -> None:
    rank = int(os.environ["RANK"])
    connection = Connection(descriptor)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=5)
    )
    while True:
        try:
            case = connection.recv_bytes()
        except EOFError:
            break
        connection.send_bytes(_answer(case, rank))
    # The other rank may be gone already: nothing is left to agree on.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
