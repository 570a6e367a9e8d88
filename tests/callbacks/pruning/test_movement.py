"""Movement pruning: scores by hand, a hand-written training loop, steps that a scaler skips, and a resume."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import Pruning
from lightning_vision.callbacks.pruning._scores import keep_largest
from lightning_vision.callbacks.pruning.magnitude import Magnitude
from lightning_vision.callbacks.pruning.movement import Movement, add_movement_scores
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.pruning import moment_of
from support.trainers import quiet_trainer

BEGIN = 4


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


def pruning():
    return Pruning(sparsity=0.7, criterion="movement", begin_step=BEGIN)


def weight(values, gradient):
    it = torch.nn.Parameter(torch.tensor(values))
    it.grad = torch.tensor(gradient)
    return it


def test_a_score_grows_while_its_weight_moves_away_from_zero():
    score = torch.zeros(4)
    add_movement_scores([score], [torch.tensor([2.0, -2.0, 0.5, 0.0])], [torch.tensor([-1.0, -1.0, 3.0, 9.0])])
    add_movement_scores([score], [torch.tensor([3.0, -1.0, 0.25, 0.0])], [torch.tensor([-1.0, -1.0, 3.0, 9.0])])

    assert score.tolist() == [5.0, -3.0, -2.25, 0.0]


def test_a_small_weight_that_grows_stays_and_a_large_one_that_shrinks_goes():
    criterion = Movement()
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight = weight([[0.1, 5.0]], [[-1.0, 1.0]])
    criterion.observe({"weight": layer.weight})
    moment = moment_of(layer, None, step=1)

    assert criterion.keep(moment, 1)["weight"].tolist() == [[True, False]]
    assert Magnitude().keep(moment, 1)["weight"].tolist() == [[False, True]]


def by_hand(steps, mutant=""):
    """Plain, trained by hand on the Trainer's batches; after step `BEGIN` three of ten weights are kept, and held."""
    torch.manual_seed(3)
    module = Plain()
    names = [name for name, it in module.named_parameters() if it.ndim > 1]
    parameters = dict(module.named_parameters())
    scores = {name: torch.zeros_like(parameters[name]) for name in names}
    stepper = module.configure_optimizers()["optimizer"]
    schedule = torch.optim.lr_scheduler.StepLR(stepper, 5, gamma=0.8)
    masks = {}
    for step, (image, target) in enumerate(train_loader(), start=1):
        loss = F.cross_entropy(module(image), target)
        stepper.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].grad.mul_(mask)
            before = {name: parameters[name].clone() for name in names}
            stepper.step()
            schedule.step()
            for name in names:
                moved = (parameters if mutant == "after the step" else before)[name] * parameters[name].grad
                scores[name] -= -moved if mutant == "towards zero" else moved
            if step == BEGIN:
                flat = torch.cat([scores[name].flatten() for name in names])
                least = flat.sort(descending=True).values[len(flat) - round(0.7 * len(flat)) - 1]
                masks = {name: scores[name] >= least for name in names}
                for name in names:
                    stepper.state[parameters[name]]["momentum_buffer"].mul_(masks[name])
            for name, mask in masks.items():
                parameters[name].mul_(mask)
        if step == steps:
            return module, masks
    raise AssertionError("too few batches")


def trained(*callbacks, dropout=0.5, ckpt_path=None, **options):
    torch.manual_seed(3)
    module = Plain(dropout)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_steps": 8} | options)
    trainer.fit(module, train_loader(), ckpt_path=ckpt_path)
    return module


def test_the_masks_and_the_weights_equal_a_loop_by_hand():
    callback = pruning()
    module = trained(callback)

    expected, masks = by_hand(8)
    assert all(torch.equal(callback.kept_masks[name], mask) for name, mask in masks.items())
    assert distance(module.state_dict(), expected.state_dict()) == 0.0


@pytest.mark.parametrize("mutant", ["after the step", "towards zero"])
def test_a_wrong_movement_is_noticed(mutant):
    assert distance(trained(pruning()).state_dict(), by_hand(8, mutant)[0].state_dict()) > 1e-3


def test_a_step_that_a_scaler_skips_counts_nothing():
    scores = [torch.zeros(2), torch.zeros(1)]
    weights = [torch.ones(2), torch.ones(1)]
    add_movement_scores(scores, weights, [torch.tensor([1.0, 2.0]), torch.tensor([torch.inf])])
    add_movement_scores(scores, weights, [torch.tensor([torch.nan, 2.0]), torch.tensor([3.0])])
    assert [score.tolist() for score in scores] == [[0.0, 0.0], [0.0]]

    add_movement_scores(scores, weights, [torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    assert [score.tolist() for score in scores] == [[-1.0, -2.0], [-3.0]]


def test_many_small_steps_of_half_precision_are_summed_in_single():
    criterion = Movement()
    it = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    it.grad = torch.full_like(it, -1.0)
    for _ in range(300):
        criterion.observe({"weight": it})

    assert criterion.state_dict()["scores"]["weight"].tolist() == [300.0]  # bfloat16 stops at 256


def test_a_weight_without_gradients_has_not_moved():
    criterion = Movement()
    module = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False))
    module[0].weight = weight([[1.0, 1.0]], [[1.0, -1.0]])
    criterion.observe(dict(module.named_parameters()))
    masks = criterion.keep(moment_of(module, None, step=1), 3)

    assert [mask.tolist() for mask in masks.values()] == [[[False, True]], [[True], [True]]]


def test_a_resumed_run_goes_on_with_the_scores(tmp_path):
    every = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    straight = trained(pruning(), every, dropout=0.0, enable_checkpointing=True)
    file = tmp_path / "epoch=0-step=2.ckpt"
    resumed = trained(pruning(), dropout=0.0, ckpt_path=file)

    assert distance(resumed.state_dict(), straight.state_dict()) == 0.0
    content = torch.load(file, weights_only=True)
    content["callbacks"]["Pruning"]["gathered"]["scores"] = {}
    torch.save(content, file)
    forgetful = trained(pruning(), dropout=0.0, ckpt_path=file)
    assert distance(forgetful.state_dict(), straight.state_dict()) > 1e-3


def test_the_state_is_saved_and_goes_on():
    straight, first, second = Movement(), Movement(), Movement()
    for step in range(6):
        it = weight([1.0 + step, -2.0], [0.5, step / 4])
        straight.observe({"weight": it})
        if step == 3:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        (first if step < 3 else second).observe({"weight": it})

    assert second.state_dict()["scores"]["weight"].equal(straight.state_dict()["scores"]["weight"])
    assert not first.state_dict()["scores"]["weight"].equal(straight.state_dict()["scores"]["weight"])


def test_a_beginning_before_any_step_is_refused():
    with pytest.raises(ValueError, match=r"^Pruning: criterion='movement' looks at the gradients .* give begin_step="):
        Pruning(criterion="movement")
    with pytest.raises(
        ValueError, match=r"^Movement: masks are asked for at step 0, before any step was observed; let"
    ):
        Movement().keep(moment_of(Plain(), None), 10)


def test_equal_scores_keep_the_count():
    scores = {"a": torch.zeros(5), "b": torch.zeros(3)}
    kept = {"a": torch.tensor([True, False, True, True, False]), "b": torch.ones(3, dtype=torch.bool)}
    masks = keep_largest(scores, kept, 4)

    assert sum(int(mask.sum()) for mask in masks.values()) == 4
    assert not any((masks[name] & ~kept[name]).any() for name in kept)
