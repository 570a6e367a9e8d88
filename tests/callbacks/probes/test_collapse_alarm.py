"""A module that is built to collapse is caught, by each threshold alone, and one that is not is left alone."""

import warnings

import pytest
import torch

from lightning_vision.callbacks import CollapseAlarm
from support.compare import seeded
from support.data import plain_loader
from support.modules import Featured
from support.trainers import quiet_trainer


class Collapses(Featured):
    """It is trained to give all images the same features, as two branches that only agree end up doing."""

    def training_step(self, batch, batch_idx):
        return (self.features(batch[0]) - 1).square().sum(1).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Line(Featured):
    """Its features lie on a line through the origin, to both sides: spread out, and of one direction."""

    def features(self, image):
        found = super().features(image)
        return (image.mean((1, 2, 3)) - 1.5).sign()[:, None] * torch.linspace(1, 2, found.shape[1])


class NotFinite(Featured):
    def features(self, image):
        return super().features(image) / 0


def fit(module, folder, epochs=4, **settings):
    trainer = quiet_trainer(callbacks=[CollapseAlarm(**settings)], max_epochs=epochs, default_root_dir=folder)
    trainer.fit(module, plain_loader(48), plain_loader(24))
    return trainer


def numbers(trainer):
    return [float(trainer.callback_metrics[f"probe/collapse_{key}"]) for key in ("spread", "rank")]


def test_a_module_that_collapses_raises_the_alarm(tmp_path):
    with pytest.warns(
        UserWarning, match=r"^CollapseAlarm: after step \d+ the features of the val images have collapsed"
    ):
        trainer = fit(seeded(Collapses), tmp_path, epochs=12)

    assert numbers(trainer)[0] < 0.05
    assert trainer.current_epoch == 12


def test_one_that_learns_raises_none(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="CollapseAlarm")
        trainer = fit(seeded(Featured), tmp_path, action="error")

    assert min(numbers(trainer)) > 0.2


def test_one_direction_is_caught_by_the_rank_though_it_is_spread(tmp_path):
    with pytest.warns(UserWarning, match="their rank is"):
        trainer = fit(Line(), tmp_path, epochs=1)
    spread, rank = numbers(trainer)

    assert spread > 0.5 and rank < 0.01
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="CollapseAlarm")
        fit(Line(), tmp_path, epochs=1, least_rank=0.0)


def test_stop_ends_the_fit_and_error_raises(tmp_path):
    with pytest.warns(UserWarning, match=r"The fit ends here\.$"):
        stopped = fit(Line(), tmp_path, epochs=5, action="stop")
    with pytest.raises(
        RuntimeError, match=r"^CollapseAlarm: after step 8 the features of the val images have collapsed"
    ):
        fit(Line(), tmp_path, epochs=5, action="error")

    assert stopped.current_epoch == 1


def test_features_that_are_not_finite_are_a_collapse(tmp_path):
    with pytest.raises(RuntimeError, match="some are not finite"):
        fit(NotFinite(), tmp_path, action="error")


def test_a_validation_or_test_has_nothing_to_stop(tmp_path):
    trainer = quiet_trainer(callbacks=[CollapseAlarm(action="error")], default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="the features of the test images have collapsed"):
        (scores,) = trainer.test(Line(), plain_loader(24), verbose=False)

    assert scores["probe/test/collapse_rank"] < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least_spread": 2}, "CollapseAlarm: least_spread is 2; give a number from 0 to 1."),
        ({"least_rank": -1}, "CollapseAlarm: least_rank is -1; give a number from 0 to 1."),
        ({"action": "shout"}, "CollapseAlarm: action is 'shout'; give 'warn', 'stop' or 'error'."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        CollapseAlarm(**settings)

    assert str(caught.value) == message
