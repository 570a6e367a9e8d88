"""The harness itself: what it must notice, it notices; what is harmless, it lets pass."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from support import ROOT
from support.budgets import Budgets
from support.two_ranks import RankError


def test_both_ranks_run_the_function_and_answer_in_order(two_ranks):
    def total(value):
        sum_of_ranks = torch.tensor([value + dist.get_rank()])
        dist.all_reduce(sum_of_ranks)
        return dist.get_rank(), int(sum_of_ranks)

    assert two_ranks(total, 10) == [(0, 21), (1, 21)]


def test_a_pair_serves_many_cases_in_the_folder_of_each_test(two_ranks, tmp_path):
    def whereabouts():
        return os.getpid(), os.getcwd()

    first, second = two_ranks(whereabouts), two_ranks(whereabouts)

    assert first == second
    assert [folder for _, folder in first] == [str(tmp_path)] * 2
    assert len({os.getpid(), *(process for process, _ in first)}) == 3


class Slope(LightningModule):
    """y = w x with squared error; one plain step has a gradient that is known by hand."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch):
        (x,) = batch
        return ((self.w - x) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


def test_a_trainer_inside_joins_the_pair_and_averages_gradients(two_ranks):
    def slope_after_one_step():
        trainer = Trainer(
            accelerator="cpu",
            strategy="ddp",
            devices=2,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        module = Slope()
        # rank 0 sees 1, rank 1 sees 3: w = 0.25 * mean(2 * 1, 2 * 3)
        trainer.fit(module, DataLoader(TensorDataset(torch.tensor([[1.0 + 2.0 * dist.get_rank()]]))))
        return trainer.world_size, float(module.w)

    assert two_ranks(slope_after_one_step) == [(2, 1.0), (2, 1.0)]


def test_what_a_rank_raises_is_raised_with_rank_and_traceback(two_ranks):
    def only_rank_one_fails():
        if dist.get_rank() == 1:
            raise ValueError("one of us is wrong")

    with pytest.raises(ValueError, match="one of us is wrong") as caught:
        two_ranks(only_rank_one_fails)

    assert "on rank 1:" in caught.value.__notes__[0]
    assert "in only_rank_one_fails" in caught.value.__notes__[0]


def test_a_rank_that_waits_for_a_failed_one_is_stopped(two_ranks):
    def only_rank_one_comes():
        if dist.get_rank() == 0:
            raise ValueError("not coming")
        dist.barrier()

    with pytest.raises(ValueError, match="not coming") as caught:
        two_ranks(only_rank_one_comes)

    assert "did not finish" in caught.value.__notes__[-1]


@pytest.mark.slow
def test_a_case_that_hangs_is_reported_and_the_next_case_runs(two_ranks):
    with pytest.raises(RankError, match="no answer from rank 0 within 1 s"):
        two_ranks(time.sleep, 60, timeout=1.0)

    assert two_ranks(dist.get_rank) == [0, 1]


def test_a_case_that_dies_is_reported_and_the_next_case_runs(two_ranks):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RankError, match=r"rank \d died with exit code -9"):
        two_ranks(die)

    assert two_ranks(dist.get_rank) == [0, 1]


def test_a_leak_inside_a_rank_fails_the_case(two_ranks):
    def leave_a_variable():
        os.environ["LEFT_BEHIND"] = "1"

    with pytest.raises(AssertionError, match="rank 0 left behind: environment variables: LEFT_BEHIND"):
        two_ranks(leave_a_variable)

    assert two_ranks(os.environ.get, "LEFT_BEHIND") == [None, None]


LEAKS = """
import os, signal, subprocess, sys, threading, time
import torch, torch.nn.functional as F
import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from support import plugin
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

kept = []

class Mode(TorchFunctionMode):
    def __torch_function__(self, fn, types, args=(), kwargs=None):
        return fn(*args, **(kwargs or {}))

def test_nothing():
    pass

def test_undone(monkeypatch):
    monkeypatch.setattr(F, "cross_entropy", None)
    monkeypatch.setenv("LEFT", "1")
    with Mode(), torch.inference_mode(), torch.autocast("cpu"):
        thread = threading.Thread(target=time.sleep, args=(0.05,))
        thread.start()
    hook = torch.nn.modules.module.register_module_forward_hook(print)
    hook.remove()
    open("in_the_own_folder.txt", "w").close()

def test_leaks_module_hook():
    torch.nn.modules.module.register_module_forward_hook(print)

def test_leaks_backward_hook():
    torch.nn.modules.module.register_module_full_backward_hook(print)

def test_leaks_optimizer_hook():
    register_optimizer_step_post_hook(print)

def test_leaks_function_patch():
    F.cross_entropy = lambda *args: None

def test_leaks_log_patch():
    LightningModule.log = lambda *args: None

def test_leaks_strategy_patch():
    Strategy.training_step = lambda *args: None

def test_leaks_added_method():
    LightningModule.brand_new = lambda *args: None

def test_leaks_function_mode():
    Mode().__enter__()

def test_leaks_signal_handler():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

def test_leaks_variable():
    os.environ["LEFT"] = "1"

def test_leaks_process_group():
    torch.distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=0, world_size=1)

def test_leaks_inference_mode():
    kept.append(torch.inference_mode())
    kept[-1].__enter__()

def test_leaks_grad_mode():
    torch._C._set_grad_enabled(False)

def test_leaks_autocast():
    torch.set_autocast_enabled("cpu", True)

def test_leaks_dtype():
    torch.set_default_dtype(torch.float64)

def test_leaks_determinism():
    torch.use_deterministic_algorithms(True)

def test_leaks_threads_of_torch():
    torch.set_num_threads(2)

def test_leaks_thread():
    threading.Thread(target=time.sleep, args=(2.5,), name="lingering").start()

def test_leaks_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"]))

def test_leaks_file(monkeypatch):
    monkeypatch.setattr(plugin, "_WATCHED", os.getcwd())
    open("in_the_repository.txt", "w").close()

def test_seeds_are_fixed_whoever_ran_before():
    assert torch.initial_seed() == 0
"""


@pytest.fixture
def small_run(pytester, monkeypatch):
    """Runs pytest with our plugin, and nothing else of this repository, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "harness"))

    def run(*arguments):
        return pytester.runpytest_subprocess(
            "-p", "support.plugin", "-p", "support.budgets", "-p", "no:cacheprovider", "-q", *arguments
        )

    return run


def test_each_kind_of_leak_fails_its_test_and_no_other(pytester, small_run):
    pytester.makepyfile(test_leaks=LEAKS)
    run = small_run("-rE")

    red = {line.split()[1].partition("::")[2] for line in run.outlines if line.startswith("ERROR test_leaks.py")}
    leaking = {line.split("def ")[1][:-3] for line in LEAKS.splitlines() if line.startswith("def test_leaks")}
    assert red == {name.partition("(")[0] for name in leaking}
    run.assert_outcomes(passed=len(leaking) + 3, errors=len(leaking))


BUSY = """
import time

def test_busy():
    end = time.process_time() + {seconds}
    while time.process_time() < end:
        pass
"""

PAIRED = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_takes_the_pair(two_ranks, number):
    with open({file!r}, "a") as workers:
        workers.write(os.environ["PYTEST_XDIST_WORKER"] + chr(10))
"""


@pytest.mark.slow
def test_with_two_workers_budgets_are_summed_and_one_worker_has_the_pair(pytester, small_run, tmp_path):
    for folder, seconds in {"good": 0.05, "over": 0.4, "unknown": 0.05}.items():
        pytester.mkdir(folder).joinpath(f"test_{folder}.py").write_text(BUSY.format(seconds=seconds))
    pytester.path.joinpath("good", "test_pair.py").write_text(PAIRED.format(file=str(tmp_path / "workers")))
    pytester.mkdir("tests").joinpath("budgets.toml").write_text(
        'reference = 9.0\n[seconds]\n"good" = 30\n"over" = 0.3\n'
    )

    run = small_run("-n", "2", "--dist", "loadgroup")

    over_budget = [line.split()[-3] for line in run.outlines if line.endswith("OVER BUDGET")]
    assert over_budget == ["over", "unknown"]
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    # pytest 9.2 made xdist 3.8's `loadgroup` ineffective: each worker would start a pair of its own
    assert len(set((tmp_path / "workers").read_text().split())) == 1
    run.assert_outcomes(passed=7)


def test_a_folder_over_its_budget_or_without_one_fails_a_run():
    budgets = Budgets({"good": 30.0, "over": 0.3, "over/deep": 1.0}, reference=0.02)
    spent = {"good/a.py": 0.05, "over/b.py": 0.2, "over/c/d.py": 0.2, "over/deep/e.py": 0.9, "unknown/f.py": 0.05}
    for file, seconds in spent.items():
        for when, properties in (("setup", []), ("call", [("cpu_seconds", seconds)]), ("teardown", [])):
            where = {"nodeid": f"{file}::test", "location": (file, 1, "test"), "keywords": {}}
            budgets.pytest_runtest_logreport(
                pytest.TestReport(**where, outcome="passed", longrepr=None, when=when, user_properties=properties)
            )

    assert budgets.spent == pytest.approx({"good": 0.05, "over": 0.4, "over/deep": 0.9, "unknown": 0.05})
    assert budgets.exceeded() == ["over", "unknown"]


def test_budgets_grow_on_a_slower_machine_and_only_there():
    budgets = Budgets({"folder": 1.0}, reference=0.02)
    budgets.spent["folder"] = 1.5

    for works, slowness in (([], 1.0), ([0.01, 0.01], 1.0), ([0.02, 0.04, 0.5], 2.0), ([0.02, 0.028, 0.9], 1.4)):
        budgets.works = works
        assert budgets.slowness() == pytest.approx(slowness)
        assert budgets.exceeded() == ([] if slowness == 2.0 else ["folder"])


def test_every_test_that_takes_the_pair_is_of_its_group(two_ranks, request):
    takers = [item for item in request.session.items if "two_ranks" in item.fixturenames]
    groups = [[mark.args[0] for mark in item.iter_markers("xdist_group")] for item in takers]

    assert request.node in takers
    assert groups == [["two_ranks"]] * len(takers)
