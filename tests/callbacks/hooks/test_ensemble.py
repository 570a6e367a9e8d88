"""The ensemble seam on Trainers: what is kept, what is tested, and that nothing else changes."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import ExactResume
from lightning_vision.callbacks.hooks.ensemble import Ensemble, log_mean_probability
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain, TwoOptimizers
from support.resuming import KilledError, newest, record

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Every(Ensemble):
    """Keeps the module after every `n` steps."""

    neutral = "only a test's"

    def __init__(self, n=5, snapshots=3, name=None):
        super().__init__(snapshots=snapshots, name=name)
        self.n = n

    def due(self, step):
        return step % self.n == 0


def loader():
    return ResumableLoader(labelled_images(60), 6)


def batches():
    return plain_loader(18, 6)


def trained(callback, folder=None, module=Plain, epochs=2):
    """A module after training with `callback`, and its last checkpoint."""
    torch.manual_seed(0)
    model = module()
    saving = [] if folder is None else [ModelCheckpoint(folder, every_n_train_steps=5)]
    record(model, loader, [callback, *saving], max_epochs=epochs)
    return model


def loss_of(trainer, *args, **kwargs):
    return trainer.test(*args, verbose=False, **kwargs)[0]["test/loss"]


def mean_probability(members):
    """By hand: a network with each member's weights, the mean of their softmax, for every test batch."""
    means = []
    for image, _ in batches():
        probabilities = []
        for member in members:
            model = Plain()
            model.load_state_dict(member)
            probabilities.append(model.eval()(image).detach().softmax(1))
        means.append(sum(probabilities) / len(members))
    return means


def loss_by_hand(members):
    targets = [target for _, target in batches()]
    pairs = zip(mean_probability(members), targets, strict=True)
    return float(sum(F.nll_loss(mean.log(), target) for mean, target in pairs) / len(targets))


def test_log_mean_probability_by_hand():
    """Probabilities 1/4 and 3/4 of the first member, 1/2 and 1/2 of the second."""
    logits = torch.tensor([[[0.0, math.log(3)]], [[7.0, 7.0]]])

    assert log_mean_probability(logits).exp().tolist()[0] == pytest.approx([0.375, 0.625], rel=1e-6)


@pytest.mark.parametrize(("dtype", "result"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_log_mean_probability_is_at_least_float32_and_holds_for_huge_logits(dtype, result):
    mean = log_mean_probability(torch.tensor([[[60000.0, 0.0]], [[0.0, 60000.0]]], dtype=dtype))

    assert mean.dtype == result
    assert mean.tolist()[0] == pytest.approx([math.log(0.5)] * 2)


def test_members_are_the_latest_ones_and_equal_the_weights_of_their_step(tmp_path):
    callback = Every(n=4)
    writer = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    record(Plain(), loader, [callback, writer], max_epochs=2, accumulate_grad_batches=1)

    assert callback.steps == [12, 16, 20]
    for step, member in zip(callback.steps, callback.members, strict=True):
        weights = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert member.keys() == weights.keys()
        assert all(torch.equal(member[name], weights[name]) for name in weights)


def test_a_member_is_taken_once_a_step_under_accumulation():
    callback = Every(n=2, snapshots=9)
    record(Plain(), loader, [callback], max_epochs=2, accumulate_grad_batches=3)

    assert callback.steps == [2, 4, 6, 8]


def test_manual_optimisation_keeps_the_module_after_the_batch_in_which_the_step_fell():
    """Two optimizers a batch: steps 3, 9 and 15 fall into the middle of one."""
    callback = Every(n=3, snapshots=9)
    record(TwoOptimizers(), loader, [callback], max_epochs=1)

    assert callback.steps == [4, 6, 10, 12, 16, 18]


def test_one_member_is_the_plain_model_of_its_step():
    callback = Every(n=15, snapshots=1)
    model = trained(callback)
    alone = Plain()
    alone.load_state_dict(callback.members[0])
    ensemble = loss_of(Trainer(callbacks=[callback], **QUIET), model, batches())

    assert callback.steps == [15]
    assert ensemble == pytest.approx(loss_of(Trainer(**QUIET), alone, batches()), rel=1e-6)
    assert ensemble != pytest.approx(loss_of(Trainer(**QUIET), model, batches()), rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_test_scores_the_mean_of_the_members_probabilities(precision):
    callback = Every()
    model = trained(callback)
    trainer = Trainer(callbacks=[callback], precision=precision, **QUIET)
    close = 1e-6 if precision == "32-true" else 2e-2

    assert loss_of(trainer, model, batches()) == pytest.approx(loss_by_hand(callback.members), rel=close)
    # Averaging weights, or taking the last member alone, is something else.
    assert loss_by_hand(callback.members) != pytest.approx(loss_by_hand(callback.members[-1:]), rel=1e-3)


def test_validation_and_prediction_are_the_modules_own():
    callback = Every()
    model = trained(callback)
    losses, predictions = [], []
    for callbacks in ([callback], []):
        trainer = Trainer(callbacks=callbacks, **QUIET)
        losses.append(trainer.validate(model, batches(), verbose=False))
        predictions.append(torch.cat(trainer.predict(model, batches())))

    assert losses[0] == losses[1]
    assert torch.equal(*predictions)


def test_a_fresh_trainer_tests_the_members_of_the_file(tmp_path):
    callback = Every()
    trained(callback, tmp_path)
    fresh = Every()
    loss = loss_of(Trainer(callbacks=[fresh], **QUIET), Plain(), batches(), ckpt_path=newest(tmp_path))

    assert fresh.steps == callback.steps == [10, 15, 20]
    assert loss == pytest.approx(loss_by_hand(callback.members), rel=1e-6)


def test_a_smaller_number_keeps_the_latest_of_the_file_and_none_tests_the_module(tmp_path):
    trained(Every(), tmp_path)
    for snapshots, steps in ((2, [15, 20]), (0, [])):
        fresh = Every(snapshots=snapshots)
        loss_of(Trainer(callbacks=[fresh], **QUIET), Plain(), batches(), ckpt_path=newest(tmp_path))

        assert fresh.steps == steps


def test_a_file_without_members_is_tested_alone_and_says_so(tmp_path):
    """Members of an earlier fit on the same callback must not stand in for a weights-only file."""
    callback = Every()
    model = trained(callback)
    other = Trainer(**QUIET, callbacks=[ModelCheckpoint(tmp_path, save_weights_only=True)], max_epochs=1)
    other.fit(Plain(), loader())
    path = newest(tmp_path)
    alone = loss_of(Trainer(**QUIET), Plain(), batches(), ckpt_path=path)

    with pytest.warns(UserWarning, match="Every: no member was kept yet, so this tests the module alone"):
        loss = loss_of(Trainer(callbacks=[callback], **QUIET), model, batches(), ckpt_path=path)
    assert loss == alone
    assert callback.members == []


def test_a_new_run_forgets_the_members_of_the_old_one():
    callback = Every(n=10)
    trained(callback)
    record(Plain(), loader, [callback], max_steps=4, max_epochs=-1)

    assert callback.steps == []


def test_a_resumed_run_keeps_the_same_members(tmp_path):
    straight = Every(n=4, snapshots=5)
    trained(straight, tmp_path / "straight")
    members = []
    for part, how in (("killed", {"kill_at": 11}), ("resumed", {})):
        torch.manual_seed(0)
        members.append(Every(n=4, snapshots=5))
        module = Plain()
        if part == "resumed":
            how = {"ckpt_path": newest(tmp_path / "killed")}
        writer = ModelCheckpoint(tmp_path / "killed", every_n_train_steps=5)
        record(module, loader, [members[-1], ExactResume(), writer], max_epochs=2, **how)

    assert members[1].steps == straight.steps == [4, 8, 12, 16, 20]
    for ours, theirs in zip(members[1].members, straight.members, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_module_and_changed_weights_are_tested_alone_with_a_warning():
    callback = Every()
    model = trained(callback)
    with torch.no_grad():
        changed = copy.deepcopy(model)
        changed.network[-1].bias += 0.5
    trainer = Trainer(callbacks=[callback], **QUIET)
    for other in (Plain(), changed):
        alone = loss_of(Trainer(**QUIET), other, batches())
        with pytest.warns(UserWarning, match="Every: the module's weights are not those that the fit of the kept"):
            assert loss_of(trainer, other, batches()) == alone

    assert loss_of(trainer, copy.deepcopy(model), batches()) == pytest.approx(loss_by_hand(callback.members), rel=1e-6)


def test_a_fit_that_fails_at_set_up_gives_its_module_no_members():
    class Refusing(Callback):
        def setup(self, trainer, pl_module, stage):
            if stage == "fit":
                raise KilledError

    callback, other = Every(), Plain()
    model = trained(callback)
    with pytest.raises(KilledError):
        Trainer(callbacks=[callback, Refusing()], enable_checkpointing=False, **QUIET).fit(other, loader())
    trainer = Trainer(callbacks=[callback], **QUIET)

    with pytest.warns(UserWarning, match="Every: the module's weights are not those"):
        loss_of(trainer, other, batches())
    assert loss_of(trainer, model, batches()) == pytest.approx(loss_by_hand(callback.members), rel=1e-6)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_test_in_another_precision_than_the_fits_scores_the_members(precision):
    callback = Every()
    model = trained(callback)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Every:")
        loss = loss_of(Trainer(callbacks=[callback], precision=precision, **QUIET), model, batches())
    assert loss == pytest.approx(loss_by_hand(callback.members), rel=1e-6 if precision == "64-true" else 2e-2)


def test_a_fit_goes_on_with_its_own_members_after_files_were_validated_and_tested(tmp_path):
    trained(Every(n=5), tmp_path)
    callback = Every(n=4, snapshots=9)
    trainer = Trainer(callbacks=[callback], max_epochs=1, enable_checkpointing=False, **QUIET)
    model = Plain()
    trainer.fit(model, loader())
    assert callback.steps == [4, 8]

    for scored in (trainer.validate, trainer.predict):
        scored(model, batches(), ckpt_path=newest(tmp_path))
        assert callback.steps == [4, 8]
    tested = loss_of(trainer, model, batches(), ckpt_path=newest(tmp_path))
    assert callback.steps == [10, 15, 20]
    assert tested == pytest.approx(loss_by_hand(callback.members), rel=1e-6)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader())
    assert callback.steps == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("ending", ["end", "exception"])
def test_a_test_leaves_the_module_as_it_was(ending):
    class Failing(Plain):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            if ending == "exception" and batch_idx == 1:
                raise KilledError

    callback = Every()
    model = trained(callback, module=Failing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model))
    identities = [id(it) for it in (*model.parameters(), *model.buffers())]
    trainer = Trainer(callbacks=[callback], **QUIET)
    if ending == "end":
        trainer.test(model, batches(), verbose=False)
    else:
        with pytest.raises(KilledError):
            trainer.test(model, batches(), verbose=False)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [id(it) for it in (*model.parameters(), *model.buffers())] == identities
    assert {"forward", "on_load_checkpoint"} & (set(vars(model)) - attributes) == set()
    assert torch.equal(model(torch.ones(2, 1, 8, 8)), model.network(torch.ones(2, 1, 8, 8)))


def test_a_compiled_module_is_tested_as_the_ensemble_too(compiler):
    callback = Every()
    model = trained(callback)
    compiled = torch.compile(model, backend="eager")
    trainer = Trainer(callbacks=[callback], **QUIET)

    assert loss_of(trainer, compiled, batches()) == pytest.approx(loss_by_hand(callback.members), rel=1e-6)


class Silent(Plain):
    """Never calls its own forward."""

    def test_step(self, batch, batch_idx):
        self.log("test/loss", F.cross_entropy(self.network(batch[0]), batch[1]))


class Maps(Plain):
    """Returns scores that are no logits of classes."""

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self(batch[0]).mean())

    def forward(self, image):
        logits = super().forward(image)
        return logits if self.training else logits[:, :, None]


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            Silent,
            "Every: test_step of Silent did not call the module's forward, so the ensemble cannot stand in for it; "
            "take logits from `self(images)` there, or pass snapshots=0.",
        ),
        (
            Maps,
            "Every: the ensemble averages logits (B, K), and forward returned (6, 10, 1) torch.float32; return logits "
            "from forward, or pass snapshots=0.",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(module, sentence):
    callback = Every()
    model = trained(callback, module=module)

    with pytest.raises(ValueError) as error:
        Trainer(callbacks=[callback], **QUIET).test(model, batches(), verbose=False)
    assert str(error.value) == sentence
