"""The classifier is a hand-written loop's, learns, and leaves the module that it watches as it was.

That every run with it equals one without, and resumes exactly, is proved in `conformance/` too.
"""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks import OnlineProbe, softmax_gradient
from support.compare import seeded
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Featured, Plain
from support.trainers import quiet_trainer


class Pixels(Featured):
    """Features are pixels, which no training moves."""

    def features(self, image):
        return image.flatten(1)


def fit(probe, module=None, train=None, val=None, **options):
    trainer = quiet_trainer(callbacks=[probe], **{"max_epochs": 2, "num_sanity_val_steps": 0, **options})
    trainer.fit(module or Pixels(), train or plain_loader(60), val or plain_loader(30))
    return trainer


def test_the_gradient_is_autograds_and_a_wrong_one_is_noticed():
    generator = torch.Generator().manual_seed(0)
    features, head = torch.randn(9, 5, generator=generator), torch.randn(6, 4, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, -1, 2, 0, 7, -100])
    known = (targets >= 0) & (targets < 4)
    logits = F.pad(features, (0, 1), value=1.0) @ head
    (expected,) = torch.autograd.grad(F.cross_entropy(logits[known], targets[known], reduction="sum"), head)
    found, count = softmax_gradient(head.detach(), features, targets)
    mutant, _ = softmax_gradient(head.detach(), features, targets.clamp(0, 3))

    assert count == 6
    torch.testing.assert_close(found, expected)
    assert (mutant - expected).abs().max() > 0.1


def test_it_is_a_hand_written_loop_bit_for_bit(tmp_path):
    probe = OnlineProbe(lr=0.01, weight_decay=0.1)
    trainer = fit(probe, default_root_dir=tmp_path)
    head = torch.nn.Parameter(torch.zeros(65, 10))
    optimizer = torch.optim.Adam([head], lr=0.01, weight_decay=0.1)
    for _ in range(2):
        for image, target in plain_loader(60):
            gradient, count = softmax_gradient(head.detach(), image.flatten(1), target)
            head.grad = gradient / count
            optimizer.step()
    image, target = labelled_images(30).tensors
    right = ((F.pad(image.flatten(1), (0, 1), value=1.0) @ head).argmax(1) == target).double().mean()

    assert torch.equal(probe.kept()["head"], head.detach())
    assert float(trainer.callback_metrics["probe/online"]) == pytest.approx(float(right))


def test_it_learns_what_its_features_tell(tmp_path):
    class Half(Featured):
        """Half of what the labels say, and much that they do not."""

        def features(self, image):
            level = (3 * image.mean((1, 2, 3)))[:, None]
            return torch.cat([(-(level - torch.arange(10.0)).square()).exp(), image.flatten(1)[:, :8]], 1)

    told = fit(OnlineProbe(lr=0.1), Half(), max_epochs=6, default_root_dir=tmp_path).callback_metrics["probe/online"]
    short = fit(OnlineProbe(lr=1e-4), Half(), max_epochs=1, default_root_dir=tmp_path).callback_metrics["probe/online"]

    assert told > 0.5 and told > short + 0.2


def test_the_module_sees_nothing_of_it_and_a_probe_that_reaches_it_would_be_noticed(tmp_path):
    class Gradients(Featured):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_before_optimizer_step(self, optimizer):
            self.seen.append([it.grad.clone() for it in self.parameters()])

    class Reaches(Gradients):
        """What a probe that trains along, in training mode, would do to batch norm."""

        def features(self, image):
            for part in self.modules():
                part.training = True
            self.network[1](self.network[0](image).detach())
            self.network[1].num_batches_tracked += 1
            with torch.no_grad():
                self.network[0].weight.add_(1e-3)
            return super().features(image)

    def run(kind, *probes):
        module = seeded(kind)
        torch.manual_seed(5)
        trainer = quiet_trainer(callbacks=list(probes), max_epochs=2, default_root_dir=tmp_path)
        trainer.fit(module, plain_loader(24), plain_loader(12))
        tensors = [*module.state_dict().values(), *(it for step in module.seen for it in step)]
        return [*tensors, torch.get_rng_state()], trainer.optimizers[0].state_dict()["param_groups"]

    plain, groups = run(Gradients)
    probed, probed_groups = run(Gradients, OnlineProbe())
    reached, _ = run(Reaches, OnlineProbe())

    assert all(map(torch.equal, probed, plain)) and len(probed) == len(plain)
    assert groups == probed_groups
    assert not all(map(torch.equal, reached, plain))


def test_two_ranks_learn_what_one_process_learns_from_all(two_ranks, tmp_path):
    def run(world):
        rank = torch.distributed.get_rank() if world == 2 else 0
        # The ranks' last batches differ in size: rows 4 and 4, then 4 and 3 of fifteen.
        data = [(rank, world)]
        images = labelled_images(16)
        train = [
            tuple(it[list(range(start + rank, min(start + 8, 15), world))] for it in images.tensors) for start in (0, 8)
        ]
        loader = torch.utils.data.DataLoader(train, batch_size=None)
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False} if data[0][1] == 2 else {}
        probe = OnlineProbe(lr=0.01)
        fit(probe, train=loader, max_epochs=1, default_root_dir=tmp_path, limit_val_batches=0, **options)
        return probe.kept()["head"]

    left, right = two_ranks(run, 2)
    alone = run(1)

    assert torch.equal(left, right)
    torch.testing.assert_close(left, alone, atol=1e-6, rtol=1e-5)
    assert (alone.abs() > 1e-3).any()


def test_a_checkpoint_goes_on_with_it_and_is_measured_by_it(tmp_path):
    train = ResumableLoader(labelled_images(30), 6)
    straight = OnlineProbe(lr=0.01)
    trainer = fit(straight, train=train, max_epochs=1, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    read = torch.load(tmp_path / "end.ckpt", weights_only=True)
    again, measured = OnlineProbe(lr=0.01), OnlineProbe(num_classes=10)
    fit_again = quiet_trainer(callbacks=[again], max_epochs=2, default_root_dir=tmp_path)
    fit_again.fit(Pixels(), ResumableLoader(labelled_images(30), 6), plain_loader(30), ckpt_path=tmp_path / "end.ckpt")
    whole = OnlineProbe(lr=0.01)
    fit(whole, train=ResumableLoader(labelled_images(30), 6), max_epochs=2, default_root_dir=tmp_path)
    evaluation = quiet_trainer(callbacks=[measured], default_root_dir=tmp_path)
    (scores,) = evaluation.validate(Pixels(), plain_loader(30), ckpt_path=tmp_path / "end.ckpt", verbose=False)

    assert not any("head" in name for name in read["state_dict"])
    assert torch.equal(again.kept()["head"], whole.kept()["head"])
    assert not torch.equal(again.kept()["head"], straight.kept()["head"])
    assert scores["probe/online"] == float(trainer.callback_metrics["probe/online"])


def test_a_step_that_overflows_leaves_the_classifier_finite(tmp_path):
    class Overflows(Pixels):
        def features(self, image):
            return torch.where(image.flatten(1).mean(1, keepdim=True) > 2, torch.inf, image.flatten(1))

    probe = OnlineProbe(lr=0.01)
    fit(probe, Overflows(), default_root_dir=tmp_path, limit_val_batches=0)

    assert bool(probe.kept()["head"].isfinite().all()) and bool((probe.kept()["head"] != 0).any())


def test_one_that_was_never_trained_says_so():
    trainer = quiet_trainer(callbacks=[OnlineProbe()])
    with pytest.warns(UserWarning, match="^OnlineProbe: its classifier was never trained, so nothing was measured"):
        trainer.validate(Pixels(), plain_loader(6), verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "OnlineProbe: num_classes is 1; give a whole number of at least 2."),
        ({"lr": 0}, "OnlineProbe: lr is 0; give a number above 0."),
        ({"weight_decay": -1}, "OnlineProbe: weight_decay is -1; give a finite number of at least 0."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        OnlineProbe(**settings)

    assert str(caught.value) == message


def test_nobody_who_tells_the_classes_is_refused_before_the_first_step(tmp_path):
    class Silent(Plain):
        def features(self, image):
            return image.flatten(1)

    module = Silent()
    with pytest.raises(
        ValueError, match=r"^OnlineProbe: how many classes there are is not known, for neither datamodule"
    ):
        fit(OnlineProbe(), module, default_root_dir=tmp_path)

    assert module.trainer.global_step == 0


def test_another_number_of_features_is_refused_in_a_sentence():
    probe = OnlineProbe(num_classes=3)
    probe.begin(torch.zeros(2, 4))
    kept = probe.kept()
    kept["head"] = torch.zeros(6, 3)
    with pytest.raises(
        ValueError, match=r"^OnlineProbe: the checkpoint's classifier is of 5 features and 3 classes, and"
    ):
        probe.take_back(kept)
