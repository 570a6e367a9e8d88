"""DINO's loss and centre against lightly's, its limits, its frozen last layer and its target."""

import copy
import math

import pytest
import torch
from lightly.loss import DINOLoss
from lightning.pytorch import Callback

from lightning_vision.self_supervised.dino import DINO, Centre, dino_loss
from lightning_vision.self_supervised.prototypes import Prototypes
from support.joined_losses import alone, on_a_rank
from support.learners import moves, resumed, shared, tiny, unlabelled
from support.trainers import quiet_trainer

CROPS = [{"size": 8, "count": 2, "crop": [0.4, 1.0]}, {"size": 4, "count": 3, "crop": [0.1, 0.4]}]


def dino(**options):
    small = {"bottleneck_dim": 8, "views": CROPS, "momentum": 0.9}
    return tiny(DINO, **(small | options))


def outputs(views, rows=4, dim=6):
    random = torch.Generator().manual_seed(views)
    return torch.randn(views, rows, dim, generator=random, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(("seen", "views"), [(2, 2), (2, 5), (1, 3)])
def test_value_gradient_and_centre_are_lightlys_over_several_steps(seen, views):
    theirs = DINOLoss(output_dim=6, teacher_temp=0.07, warmup_teacher_temp_epochs=1, center_momentum=0.8).double()
    centre = Centre(6, 0.8).double()
    student, same = outputs(views), outputs(views)
    for step in range(3):
        teacher = outputs(seen).detach() + step
        loss = dino_loss([*teacher], [*student], centre.mean, 0.07, 0.1)
        expected = theirs([*teacher], [*same])
        centre.collect(0, [*teacher])
        centre.follow()

        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, student)[0], torch.autograd.grad(expected, same)[0])
        torch.testing.assert_close(centre.mean, theirs.center.view(6))


def test_it_is_the_double_loop_over_pairs_of_different_views():
    teacher, student, centre = outputs(2).detach(), outputs(4).detach(), torch.rand(6)
    terms, own = [], []
    for view, wanted in enumerate(((teacher - centre) / 0.05).softmax(2)):
        for other, said in enumerate((student / 0.1).log_softmax(2)):
            (own if view == other else terms).append(-(wanted * said).sum(1).mean())
    loss = dino_loss([*teacher], [*student], centre, 0.05, 0.1)

    torch.testing.assert_close(loss, torch.stack(terms).mean())
    # The mutant that also compares a view with itself.
    assert (loss - torch.stack(terms + own).mean()).abs() > 1e-2


def test_without_centring_or_sharpening_it_is_another_loss():
    teacher, student = outputs(2).detach(), outputs(2).detach()
    centre = teacher.mean((0, 1))
    loss = dino_loss([*teacher], [*student], centre, 0.05, 0.1)

    assert (loss - dino_loss([*teacher], [*student], 0 * centre, 0.05, 0.1)).abs() > 1e-2
    assert (loss - dino_loss([*teacher], [*student], centre, 0.1, 0.1)).abs() > 1e-2


def test_a_teacher_without_an_opinion_and_an_undecided_student_cost_log_k():
    flat = torch.zeros(2, 3, 50)

    assert dino_loss([*flat], [*flat], torch.zeros(50), 0.04, 0.1).item() == pytest.approx(math.log(50))
    # Teachers that always say the same are centred to that after a while.
    collapsed = torch.zeros(2, 3, 50)
    collapsed[..., 7] = 1
    centre = Centre(50, 0.5)
    for _ in range(40):
        centre.collect(0, [*collapsed])
        centre.follow()
    assert dino_loss([*collapsed], [*flat], centre.mean, 0.04, 0.1).item() == pytest.approx(math.log(50))


def test_the_teacher_gets_no_gradient():
    teacher, student = outputs(2), outputs(3)

    dino_loss([*teacher], [*student], torch.zeros(6), 0.07, 0.1).backward()

    assert teacher.grad is None and student.grad.abs().max() > 0


def test_micro_batches_move_the_centre_as_one_batch():
    rows = torch.randn(7, 6)
    parts, whole = Centre(6, 0.9), Centre(6, 0.9)
    for number, piece in enumerate(rows.split([2, 5])):
        parts.collect(number, [piece])
    whole.collect(0, [rows])
    for centre in (parts, whole):
        centre.follow()

    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.mean, 0.1 * rows.mean(0))
    parts.follow()
    torch.testing.assert_close(parts.mean, whole.mean)


def test_a_batch_that_is_computed_again_moves_the_centre_once():
    learner, plain = dino(), dino()
    image = torch.rand(4, 1, 24, 24)
    for one, times in ((learner, 3), (plain, 1)):
        for _ in range(times):
            one.losses(image, torch.rand(4, one.draws, generator=torch.Generator().manual_seed(0)))
        with torch.no_grad():  # as batch norms are measured again
            one.losses(image + 1, torch.rand(4, one.draws))
        one.centre.follow()

    torch.testing.assert_close(learner.centre.mean, plain.centre.mean)
    assert plain.centre.mean.abs().max() > 0


def test_two_ranks_with_unequal_rows_are_one_process(two_ranks):
    def joined(views):
        first, second = views
        centre = Centre(4, 0.9).double()
        loss = dino_loss([first.detach()], [first, second], centre.mean, 0.07, 0.1)
        centre.collect(0, [first.detach()])
        centre.follow()
        return loss + centre.mean.sum()

    def mean_of_means(views):
        first, second = views
        theirs = DINOLoss(output_dim=4, teacher_temp=0.07, warmup_teacher_temp_epochs=1).double()
        return theirs([first.detach()], [first, second]) + theirs.center.sum()

    expected = alone(joined, 2, 4)
    for found in two_ranks(on_a_rank, joined, 2, 4):
        torch.testing.assert_close(found, expected)
    assert (two_ranks(on_a_rank, mean_of_means, 2, 4)[0][1] - expected[1]).abs().max() > 1e-3


def test_prototypes_are_a_weight_normalised_layer_of_torchs():
    ours = Prototypes(5, 7, learned_lengths=True)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 7, bias=False))
    theirs.weight = 3 * ours.weight.detach()
    rows = torch.randn(4, 5)
    with torch.no_grad():
        ours.lengths.copy_(theirs.parametrizations.weight.original0.view(-1))

    torch.testing.assert_close(ours(5 * rows), theirs(torch.nn.functional.normalize(rows)))
    assert Prototypes(5, 7)(100 * rows).abs().max() <= 1 + 1e-6


def test_the_teacher_sees_the_first_views_and_the_student_all():
    learner = dino().eval()
    views = [torch.randn(2, 1, side, side) for side in (8, 8, 4, 4, 4)]
    student, teacher = learner.embeddings(views)

    assert len(student) == 5 and len(teacher) == 2
    torch.testing.assert_close(teacher[1], learner.network(views[1]))
    torch.testing.assert_close(student[4], learner.network(views[4]))
    assert len(dino(global_views=1).embeddings(views)[1]) == 1


class _Weights(Callback):
    def __init__(self):
        self.prototypes, self.projector, self.centre = [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.prototypes.append(pl_module.network.prototypes.weight.detach().clone())
        self.projector.append(pl_module.network.projector[0].weight.detach().clone())
        self.centre.append(pl_module.centre.mean.clone())

    on_train_end = on_train_epoch_start


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_last_layer_rests_for_the_first_epochs(frozen):
    watch = _Weights()
    quiet_trainer(callbacks=[watch], max_epochs=2, limit_train_batches=2).fit(
        dino(freeze_last_layer=frozen), unlabelled()
    )

    moved = [not torch.equal(*pair) for pair in zip(watch.prototypes, watch.prototypes[1:], strict=False)]
    assert moved == [not frozen, True]
    assert not torch.equal(watch.projector[0], watch.projector[1])
    assert not torch.equal(watch.centre[0], watch.centre[1])


def test_evaluation_leaves_the_centre_alone():
    learner = dino()
    learner.eval().losses(torch.randn(2, 1, 8, 8), torch.rand(2, learner.draws))
    learner.centre.follow()

    assert learner.centre.mean.abs().max() == 0


def test_the_target_moves_once_a_step_and_a_shared_one_is_noticed():
    assert moves(dino(momentum_end=None)) == ["stays", "moves"] * 2
    assert moves(shared(dino(momentum_end=None))) != ["stays", "moves"] * 2


def test_the_target_has_the_last_layer_too():
    assert [name for name, _ in dino().target.copy.named_children()] == ["backbone", "projector", "prototypes"]


def test_the_teachers_temperature_rises_as_lightlys():
    learner = dino(warmup_teacher_temp_epochs=5)
    theirs = DINOLoss(output_dim=6, teacher_temp=0.07, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=5)

    assert [learner.teacher_temperature(epoch) for epoch in range(5)] == pytest.approx(
        theirs.teacher_temp_schedule.tolist()
    )
    assert learner.teacher_temperature(9) == 0.07
    assert dino(warmup_teacher_temp_epochs=0).teacher_temperature(0) == 0.07


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(lambda: dino(warmup_teacher_temp_epochs=2), tmp_path) == []


def test_it_rebuilds_from_its_checkpoint(tmp_path):
    learner = dino(out_dim=12)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(learner, unlabelled())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = copy.deepcopy(learner.state_dict())

    rebuilt = DINO.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)

    assert rebuilt.centre.mean.abs().max() > 0
    assert all(torch.equal(value, state[name]) for name, value in rebuilt.state_dict().items())


def test_a_transformer_takes_views_of_several_sizes_or_is_refused():
    small = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 8}
    sentence = (
        r"a view is 4 x 4 pixels and the VisionTransformer takes 8 x 8 only; give backbone_settings: {dynamic_img_"
    )

    def on(backbone, settings):
        return DINO(backbone=backbone, in_channels=1, views=CROPS, out_dim=8, backbone_settings=settings)

    with pytest.raises(ValueError, match=sentence):
        on("vit_tiny_patch16_224", small)
    learner = on("vit_tiny_patch16_224", small | {"dynamic_img_size": True})
    assert learner.losses(torch.randn(2, 1, 8, 8), torch.rand(2, learner.draws))["loss"].isfinite()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="a temperature of DINO is 0; give one above 0"):
        dino(student_temp=0)
    with pytest.raises(ValueError, match="global_views is 6 and `views` gives 5; give 1 to 5"):
        dino(global_views=6)
