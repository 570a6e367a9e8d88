"""A run that is looked at equals one that is not, whatever the observer does to the module."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torchmetrics.classification import MulticlassAccuracy

from lightning_vision.callbacks.hooks._unnoticed import hooks_of
from lightning_vision.callbacks.hooks.observe import Observe
from support.data import plain_loader
from support.modules import Plain
from support.resuming import Recorder, record


class Rude(Observe):
    """Draws numbers, calls the module in train mode, runs backward, leaves hooks and flags, logs, updates metrics."""

    def look(self, pl_module, batch, outputs, batch_index):
        torch.rand(3), np.random.rand(), random.random()
        pl_module.train()
        pl_module.network[0].register_forward_hook(lambda *_: None)
        pl_module.network[1].register_full_backward_hook(lambda *_: None)
        pl_module.network[2].register_forward_pre_hook(lambda *_: None, with_kwargs=True)
        image, target = batch
        image.requires_grad_()
        logits = pl_module(image)
        F.cross_entropy(logits, target).backward()
        assert image.grad.abs().sum() > 0
        assert all(parameter.grad is not None for parameter in pl_module.parameters() if parameter.requires_grad)
        pl_module.requires_grad_(False)
        if hasattr(pl_module, "accuracy"):
            pl_module.accuracy(logits, target)
        pl_module.log("val/loss", logits.mean())
        image.data.zero_()
        if outputs is not None:
            outputs["logits"].zero_()
        return {"saliency": image.grad.abs().mean()}


class Scored(Plain):
    """Validation with a metric object; returns what a later callback reads; half of the trunk is frozen."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.network[0].bias.requires_grad_(False)

    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen = float(outputs["logits"].abs().sum()), float(batch[0].abs().sum())

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val/accuracy", self.accuracy, on_step=True, on_epoch=True)
        return {"logits": logits}


class Unscored(Plain):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return None


class Unguarded(Observe):
    """What an observer does by itself, with nothing put back but train flags."""

    def look(self, pl_module, batch, outputs, batch_index):
        return {}

    def batch_ends(self, trainer, pl_module, outputs, batch, *_):
        with torch.enable_grad():
            F.cross_entropy(pl_module(batch[0]), batch[1]).backward()


def loaders():
    return plain_loader(30), plain_loader(18)


def run(*callbacks, kind=Scored, **options):
    torch.manual_seed(0)
    module = kind()
    return record(
        module, loaders, callbacks, **{"max_epochs": 2, "val_check_interval": 3, "num_sanity_val_steps": 1} | options
    )


def flat(run):
    return torch.cat([value.flatten() for value in run.state["weights"].values()])


def without_saliency(rows):
    kept = [(step, {name: value for name, value in row.items() if "saliency" not in name}) for step, row in rows]
    return [row for row in kept if row[1]]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_is_looked_at_equals_one_that_is_not(precision):
    # Validation falls into an accumulation window, whose gradients wait.
    options = {"precision": precision, "accumulate_grad_batches": 2}
    plain, draw = run(**options), torch.rand(1)
    looked, same_draw = run(Rude(batches=2), **options), torch.rand(1)

    assert torch.equal(flat(plain), flat(looked))
    assert plain.rows == without_saliency(looked.rows)
    assert plain.rows != looked.rows
    assert torch.equal(draw, same_draw)


def test_an_observer_without_the_guard_is_noticed():
    options = {"accumulate_grad_batches": 2}

    assert (flat(run(**options)) - flat(run(Unguarded(), **options))).abs().max() > 1e-3


def test_nothing_stays_on_the_module():
    torch.manual_seed(0)
    module, numbers = Scored(), []

    class Look(Rude):
        def look(self, pl_module, batch, outputs, batch_index):
            numbers.append(batch_index)
            return super().look(pl_module, batch, outputs, batch_index)

    def read():
        flags = [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
        kept = [(it.requires_grad, it.grad) for it in module.parameters()]
        backward = [(len(it._backward_hooks), len(it._forward_pre_hooks_with_kwargs)) for it in module.modules()]
        return flags, kept, backward, "log" in vars(module)

    before = read()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Look(batches=2)])
    trainer.validate(module, plain_loader(18), verbose=False)

    assert numbers == [0, 1]
    assert read() == before


@pytest.mark.parametrize("how", ["validate", "test"])
def test_inference_mode_is_left_for_the_look(how):
    recorder = Recorder()
    trainer = Trainer(accelerator="cpu", logger=recorder, enable_progress_bar=False, callbacks=[Rude()])
    getattr(trainer, how)(Plain(), plain_loader(12), verbose=False)
    values = [value for _, row in recorder.rows for name, value in row.items() if name.endswith("/saliency")]

    assert len(values) == 1
    assert values[0] > 0


class Types(Observe):
    """Notes types of logits and how often a hook was called."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.types, self.calls = [], 0

    def look(self, pl_module, batch, outputs, batch_index):
        def count(*_):
            self.calls += 1

        pl_module.network[5].register_forward_hook(count)
        self.types.append(pl_module(batch[0]).dtype)
        return {}


def test_it_computes_in_the_precision_of_the_run():
    callback = Types()
    run(callback, precision="bf16-mixed", max_epochs=1, val_check_interval=1.0)

    assert callback.types == [torch.bfloat16] * 2


def test_only_the_first_of_several_loaders_is_looked_at():
    callback = Types()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.validate(Unscored(), [plain_loader(12), plain_loader(12)], verbose=False)

    assert callback.types == [torch.float32]


def test_a_compiled_module_is_looked_at_in_eager_mode(compiler):
    def compilations(*callbacks):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        module = Plain()
        module.network.compile(backend=backend)
        record(module, loaders, callbacks, max_epochs=1)
        return len(graphs)

    callback = Types()

    assert compilations() == compilations(callback) > 0
    assert callback.calls == 1


def test_an_exception_in_the_look_puts_everything_back():
    class Fails(Rude):
        def look(self, pl_module, batch, outputs, batch_index):
            super().look(pl_module, batch, outputs, batch_index)
            raise RuntimeError("in the look")

    module = Plain()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Fails()])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the look"):
        trainer.validate(module, plain_loader(12), verbose=False)

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(it.requires_grad and it.grad is None for it in module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())
    assert "log" not in vars(module)


def test_it_looks_in_every_nth_epoch_and_in_the_sanity_check_of_which_it_logs_nothing():
    class Note(Observe):
        looked = ()

        def look(self, pl_module, batch, outputs, batch_index):
            self.looked += ((pl_module.trainer.sanity_checking, pl_module.current_epoch, batch_index),)
            return {"looked": len(self.looked)}

    callback = Note(every_n_epochs=2, batches=2)
    rows = run(callback, max_epochs=5, val_check_interval=1.0).rows
    trained = [(False, epoch, batch) for epoch in (0, 2, 4) for batch in (0, 1)]

    assert callback.looked == ((True, 0, 0), *trained)
    assert [row["val/looked"] for _, row in rows if "val/looked" in row] == [2, 3, 4, 5, 6, 7]


def test_zero_epochs_switch_it_off():
    class Never(Observe):
        def look(self, pl_module, batch, outputs, batch_index):
            raise AssertionError

    assert run().rows == run(Never(every_n_epochs=0)).rows


def test_on_two_ranks_rank_zero_looks_unless_all_are_asked(two_ranks):
    class Note(Rude):
        def look(self, pl_module, batch, outputs, batch_index):
            self.looked = getattr(self, "looked", 0) + 1
            return super().look(pl_module, batch, outputs, batch_index)

    class All(Note):
        every_rank = True

    def compare():
        options = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 2, "max_epochs": 1}
        plain, results = flat(run(**options)), []
        for callback in (Note(), All()):
            equal = torch.equal(plain, flat(run(callback, **options)))
            results.append((equal, getattr(callback, "looked", 0)))
        return results

    assert two_ranks(compare) == [[(True, 2), (True, 2)], [(True, 0), (True, 2)]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"every_n_epochs": -1}, "Rude: every_n_epochs is -1; give a whole number of at least 0."),
        ({"batches": 0}, "Rude: batches is 0; give a whole number of at least 1."),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        Rude(**settings)

    assert str(refusal.value) == sentence


def test_hooks_of_every_kind_are_where_the_seam_looks_for_them():
    module = torch.nn.Linear(1, 1)

    def count():
        return sum(map(len, hooks_of(module)))

    for number, register in enumerate(
        (
            partial(module.register_forward_hook, always_call=True),
            module.register_forward_pre_hook,
            module.register_full_backward_hook,
            module.register_full_backward_pre_hook,
            module.register_state_dict_pre_hook,
            module.register_load_state_dict_pre_hook,
        )
    ):
        before = count()
        register(lambda *_: None)

        assert count() > before, number
