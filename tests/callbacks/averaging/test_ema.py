"""EMA equals a loop written by hand, bit for bit, and its closed forms; `test_averages` proves evaluation and files.

Conformance (resume under all conditions, neutral run, pairs) is proved in `conformance/`, equality with timm and torch
in `parity/`.
"""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision

from lightning_vision import main
from lightning_vision.callbacks import EMA
from lightning_vision.callbacks.averaging.ema import ema_share, half_life_to_decay
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.trainers import quiet_trainer


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


def trained(ema, module=Plain, **options):
    """The module after three epochs of ten batches with no validation, and its Trainer."""
    torch.manual_seed(3)
    made = module()
    trainer = quiet_trainer(callbacks=[ema], **{"max_epochs": 3} | options)
    trainer.fit(made, train_loader())
    return made, trainer


class Followed:
    """The average as a loop by hand keeps it: every floating tensor of the state, one after the other."""

    def __init__(self, module, decay, warmup=1.0):
        self.average = {name: value.clone() for name, value in module.state_dict().items()}
        self.decay, self.warmup, self.steps = decay, warmup, 0

    def update(self, module, every=1):
        decay = min(self.decay, (1 + self.steps) / (self.warmup + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.average[name] = torch.lerp(self.average[name], value, 1 - decay**every)
            else:
                self.average[name] = value.clone()
        self.steps += every


def by_hand(decay, warmup=1.0, precision="32", accumulate=1, optimizer=None, mutant="", every=1):
    """Plain, trained by hand on the Trainer's batches, and its average after the last step."""
    torch.manual_seed(3)
    module = Plain()
    followed = Followed(module, decay, warmup)
    stepper = optimizer(module.parameters()) if optimizer else module.configure_optimizers()["optimizer"]
    schedule = None if optimizer else torch.optim.lr_scheduler.StepLR(stepper, 5, gamma=0.8)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, enabled=precision == "16-mixed")
    half = {"32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    loader, steps = train_loader(), 0
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        stepper.zero_grad()
        for number, (image, target) in enumerate(loader, 1):
            with torch.autocast("cpu", half, enabled=half is not None):
                loss = F.cross_entropy(module(image), target)
            scaler.scale(loss / accumulate).backward()
            if number % accumulate == 0 or number == len(loader):
                scaler.step(stepper)
                scaler.update()
                stepper.zero_grad()
                steps += 1
                if schedule is not None:
                    schedule.step()
                if steps % every == 0:
                    followed.update(module, every)
            elif mutant == "micro-batches":
                followed.update(module)
    return followed.average, module.state_dict()


class AdamW(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


CASES = {
    "fp32": ({}, {}),
    "bf16": ({"precision": "bf16-mixed"}, {"precision": "bf16-mixed"}),
    # Scale 2 ** 40 overflows in half precision: the scaler skips steps, which count as steps.
    "fp16": ({"precision": "16-mixed"}, {"precision": "16-mixed"}),
    "accumulate": ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
    "adamw": ({"module": AdamW}, {"optimizer": lambda weights: torch.optim.AdamW(weights, lr=1e-2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_average_and_the_weights_equal_a_loop_by_hand(case):
    options, hand = (dict(it) for it in CASES[case])
    if case == "fp16":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        options = {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}
    ema = EMA(decay=0.8, warmup=10.0)
    module, trainer = trained(ema, **options)
    average, raw = by_hand(decay=0.8, warmup=10.0, **hand)

    assert (12 if case == "accumulate" else 30) == ema.updates == trainer.global_step
    assert case != "fp16" or scaler.get_scale() < 2.0**40
    assert distance(module.state_dict(), average) == 0.0
    assert all(torch.equal(value, raw[name]) for name, value in ema.state_dict()["raw"].items())


@pytest.mark.parametrize("mutant", ["micro-batches", "no warm-up", "other decay"])
def test_a_wrong_average_is_noticed(mutant):
    module, _ = trained(EMA(decay=0.5, warmup=10.0), accumulate_grad_batches=3)
    settings = {"decay": 0.55 if mutant == "other decay" else 0.5, "warmup": 1.0 if mutant == "no warm-up" else 10.0}
    wrong, _ = by_hand(**settings, accumulate=3, mutant=mutant)

    assert distance(module.state_dict(), wrong) > 1e-3


def test_an_update_every_four_steps_equals_a_loop_by_hand():
    module, _ = trained(EMA(decay=0.8, warmup=10.0, every_n_steps=4), max_epochs=3)
    average, raw = by_hand(decay=0.8, warmup=10.0, every=4)
    # Integers are the module's own, two steps after the last update.
    average["network.1.num_batches_tracked"] = raw["network.1.num_batches_tracked"]

    assert distance(module.state_dict(), average) == 0.0


def test_two_optimizers_that_step_in_one_batch_bring_one_update():
    ema = EMA(decay=0.8)
    _, trainer = trained(ema, TwoOptimizers, max_epochs=1)

    assert trainer.global_step == 20
    assert ema.updates == 10


class Line(LightningModule):
    """A weight that moves by one each step: w_t = t."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return -self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_a_straight_line_is_followed_at_its_known_distance():
    """m_t = t - d (1 - d^t) / (1 - d): for w_t = t the lag e_t = t - m_t obeys e_t = d (e_(t-1) + 1)."""
    module, _ = trained(EMA(decay=0.5, warmup=1.0), Line, max_steps=10, max_epochs=1)

    assert module.weight.item() == 10 - 0.5 * (1 - 0.5**10) / 0.5


def test_the_average_starts_with_the_weights_after_the_given_step():
    """From w_4 = 4 by halves: (4 + 5) / 2 = 4.5, 5.25, 6.125, 7.0625."""
    module, _ = trained(EMA(decay=0.5, warmup=1.0, start_step=4), Line, max_steps=8, max_epochs=1)

    assert module.weight.item() == 7.0625


def weight_of_the_start(updates, **settings):
    """What is left of the first weights after so many updates."""
    ema, left = EMA(**settings), 1.0
    for update in range(updates):
        left *= 1 - ema.share(update)
    return left


@pytest.mark.parametrize("half_life", [1, 7, 500])
@pytest.mark.parametrize("every", [1, 5])
def test_half_of_the_start_is_left_after_the_half_life(half_life, every):
    left = weight_of_the_start(half_life, half_life=half_life * every, warmup=1.0, every_n_steps=every)

    assert pytest.approx(0.5, abs=1e-12) == left


def test_warm_up_bounds_the_decay_of_each_step():
    """Steps 0, 1, 2 and 90 of warm-up 10, decay 0.9: 1/10, 2/11, 3/12, then (1 + 90) / (10 + 90) = 0.91 is above."""
    decays = [1 - ema_share(step, 0.9, warmup=10.0) for step in (0, 1, 2, 90)]

    assert pytest.approx([1 / 10, 2 / 11, 3 / 12, 0.9], abs=1e-15) == decays


def test_settings_at_their_ends():
    assert half_life_to_decay(1.0) == 0.5
    assert ema_share(0, decay=0.0) == 1.0
    assert ema_share(0, decay=0.5, every_n_steps=3) == 1.0 - 0.5**3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "EMA: decay is 1.0; give a number from 0 (no average) to below 1."),
        ({"decay": -0.1}, "EMA: decay is -0.1; give a number from 0 (no average) to below 1."),
        (
            {"decay": 0.9, "half_life": 5.0},
            "EMA: both decay=0.9 and half_life=5.0 were given; leave one of them None.",
        ),
        ({"half_life": 0.0}, "EMA: half_life is 0.0; give a finite number of optimizer steps above 0."),
        ({"warmup": 0.5}, "EMA: warmup is 0.5; give a finite number of at least 1."),
        ({"every_n_steps": 0}, "EMA: every_n_steps is 0; give a whole number of at least 1."),
        ({"every_n_steps": 1.5}, "EMA: every_n_steps is 1.5; give a whole number of at least 1."),
        ({"start_step": -1}, "EMA: start_step is -1; give a whole number of at least 0."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        EMA(**settings)

    assert message == str(error.value)


def test_the_shipped_config_takes_a_half_life_from_the_command_line(tmp_path):
    chosen = ["--config", "classification/digits", "--config", "callbacks/ema", "--callbacks.ema.half_life", "50"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    main(["fit", *chosen, *short, *quiet, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)])
    (written,) = tmp_path.glob("version_0/checkpoints/last.ckpt")
    saved = torch.load(written, weights_only=True)["callbacks"]["EMA[ema]"]

    assert saved["updates"] == 2
