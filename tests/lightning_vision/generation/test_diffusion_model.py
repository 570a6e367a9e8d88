"""What is learned is a hand-written loop's; images follow from seed and number; averages are what is sampled."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import EMA
from lightning_vision.generation import EDM, NCSN, Consistency, Diffusion, DiffusionModel, Edit, FlowMatching
from lightning_vision.generation.draws import Draws
from support.compare import distance
from support.generators import OneLayer, tiny_diffusion
from support.learners import resumed
from support.trainers import quiet_trainer

PROCESSES = [
    (process, sampler)
    for process in (
        FlowMatching(),
        FlowMatching("optimal", "logit_normal"),
        Diffusion(),
        Diffusion("cosine", 50, "v", clip=2.0),
        EDM(),
        NCSN(levels=3),
    )
    for sampler in process.samplers
]
IDS = [f"{type(process).__name__}-{sampler}-{number}" for number, (process, sampler) in enumerate(PROCESSES)]


def batches(count=3, size=6):
    random = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 1, 8, 8, generator=random), torch.randint(3, (size,), generator=random))
        for _ in range(count)
    ]


def fitted(model, **options):
    trainer = quiet_trainer(max_epochs=1, **options)
    trainer.fit(model, DataLoader(batches(), batch_size=None))
    return trainer


def by_hand(hide=0.5, along=lambda noise, data, t: (1 - t) * noise + t * data, rank=0):
    """Three steps of flow matching, written down; labels are hidden for a share of the images."""
    network = tiny_diffusion().network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for number, (data, label) in enumerate(batches()):
        draws = DiffusionModel.batch_draws(_Rank(rank), data, number, True)
        noise = torch.randn(data.shape, generator=draws)
        times, hidden = torch.rand(2, len(data), generator=draws)
        label = torch.where(hidden < hide, 3, label)
        t = times[:, None, None, None]
        loss = (network(along(noise, data, t), times, label) - (data - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()


class _Rank:
    """What `batch_draws` asks of a module."""

    _trainer, seed, current_epoch = None, 0, 0

    def __init__(self, rank):
        self.rank = rank


def test_it_learns_as_a_hand_written_loop():
    model = tiny_diffusion(label_dropout=0.5)
    fitted(model)

    assert distance(model.network.state_dict(), by_hand()) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [{"hide": 0.0}, {"along": lambda noise, data, t: t * noise + (1 - t) * data}],
    ids=["labels never hidden", "time backwards"],
)
def test_a_wrong_loop_is_noticed(wrong):
    model = tiny_diffusion(label_dropout=0.5)
    fitted(model)

    assert distance(model.network.state_dict(), by_hand(**wrong)) > 1e-3


@pytest.mark.parametrize(("process", "sampler"), PROCESSES, ids=IDS)
def test_an_image_follows_from_seed_and_number_alone(process, sampler):
    model = tiny_diffusion(process=process, sampler=sampler)
    nn.init.normal_(model.network.end[-1].weight, std=0.1)
    whole = model.sample(5, seed=3)

    parts = torch.cat([model.sample(2, seed=3), model.sample(3, label=[2, 0, 1], seed=3, first=2)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert (model.sample(5, seed=4) - whole).abs().max() > 0.1
    assert whole.isfinite().all()


@pytest.mark.parametrize(("process", "sampler"), PROCESSES, ids=IDS)
def test_known_pixels_are_kept_exactly_and_the_rest_is_made(process, sampler):
    model = tiny_diffusion(process=process, sampler=sampler)
    image = batches()[0][0][:2]
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    made = model.sample(2, edit=Edit(image, mask))

    assert torch.equal(made[..., :4], image[..., :4])
    assert (made - image)[..., 4:].abs().max() > 0.1


@pytest.mark.parametrize(("process", "sampler"), [it for it in PROCESSES if it[1] != "langevin"])
def test_the_sampler_itself_leads_known_pixels_home(process, sampler, monkeypatch):
    """Not only are they put back when all is over: what surrounds them has seen them on the way."""
    image, mask = batches()[0][0][:2], torch.ones(1, 1, 8, 8, dtype=torch.bool)
    found = []
    kept = Edit.kept
    monkeypatch.setattr(Edit, "kept", lambda self, estimate: (found.append(estimate), kept(self, estimate))[1])
    tiny_diffusion(process=process, sampler=sampler).sample(2, edit=Edit(image, mask), steps=8)

    # The last call is that at the end. EDM's and Diffusion's last estimates stand at a little noise.
    assert (found[-1] - image).abs().max() < 1e-3


@pytest.mark.parametrize(("process", "sampler"), PROCESSES, ids=IDS)
def test_with_little_strength_an_image_stays_nearly_as_it_was(process, sampler):
    model = tiny_diffusion(process=process, sampler=sampler)
    image = batches()[0][0][:4]
    less, more = (
        (model.sample(4, edit=Edit(image, strength=it), steps=2) - image).square().mean() for it in (0.1, 0.9)
    )

    assert less < more / 2


def test_guidance_of_nothing_is_conditional_and_counts_calls():
    model = tiny_diffusion(network=OneLayer(), network_settings=None, guidance=2.0)
    plain = model.sample(3, guidance=0.0)
    assert model.network_calls == 4
    noise = Draws(0, range(3)).normal(1, 8, 8)
    by_hand = FlowMatching().sample(model.network.eval(), noise, 4, torch.tensor([0, 1, 2]))

    assert torch.equal(plain, by_hand)
    assert (model.sample(3) - plain).abs().max() > 1e-3
    assert model.network_calls == 8


def test_what_is_sampled_and_saved_is_the_average(tmp_path):
    """In validation, in the file, and after the fit; and it is not what was trained."""
    seen = []
    model, ema = tiny_diffusion(), EMA(decay=0.5, warmup=1.0)
    model.on_validation_epoch_end = lambda: seen.append(model.sample(2))
    trainer = quiet_trainer(max_epochs=1, callbacks=[ema], num_sanity_val_steps=0)
    trainer.fit(model, DataLoader(batches(), batch_size=None), DataLoader(batches(1), batch_size=None))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DiffusionModel.load_from_checkpoint(tmp_path / "last.ckpt")
    raw = tiny_diffusion()
    fitted(raw)

    assert torch.equal(again.sample(2), model.sample(2))
    assert torch.equal(seen[0], model.sample(2))
    assert (raw.sample(2) - model.sample(2)).abs().max() > 1e-3


def test_a_checkpoint_rebuilds_process_and_network(tmp_path):
    model = tiny_diffusion(process=Diffusion("cosine", 20, "v"), sampler="ddim", sampler_settings={"eta": 1.0})
    fitted(model).save_checkpoint(tmp_path / "last.ckpt")
    again = DiffusionModel.load_from_checkpoint(tmp_path / "last.ckpt")

    assert again.process == Diffusion("cosine", 20, "v")
    assert torch.equal(again.sample(2), model.sample(2))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["left_out"] == {}


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(lambda: tiny_diffusion(num_classes=0), tmp_path) == []


def test_a_network_of_ones_own_is_taken_and_asked_for_again(tmp_path):
    model = tiny_diffusion(network=OneLayer(), network_settings=None)
    fitted(model).save_checkpoint(tmp_path / "last.ckpt")

    assert model.sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"network \(a OneLayer\); pass it again"):
        DiffusionModel.load_from_checkpoint(tmp_path / "last.ckpt")
    again = DiffusionModel.load_from_checkpoint(tmp_path / "last.ckpt", network=OneLayer())
    assert torch.equal(again.sample(2), model.sample(2))


def test_without_labels_none_are_read():
    model = tiny_diffusion(conditional=False)
    fitted(model)

    assert model.num_classes == 0
    assert model.network.conditions.label is None
    with pytest.raises(ValueError, match=r"^DiffusionModel was trained without labels; leave label out$"):
        model.sample(2, label=1)


class Halves(nn.Module):
    """A VAE by hand: the code is the image's 4 x 4 means of four, three times as large."""

    def encode(self, image):
        mean = 3 * nn.functional.avg_pool2d(image, 2)
        return mean, torch.zeros_like(mean)

    def decode(self, code):
        return nn.functional.interpolate(code / 3, scale_factor=2)


def test_in_a_latent_space_codes_have_unit_size_and_images_come_back():
    model = tiny_diffusion(latent_vae=Halves())
    fitted(model)
    image = batches()[0][0]
    code = model.latent.encode(image)

    assert model.code_shape == (1, 4, 4)
    assert code.var().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(model.latent.decode(code), Halves().decode(Halves().encode(image)[0]))
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert tiny_diffusion(latent_vae=Halves(), latent_scale=0.5).latent.scale == 0.5


def test_an_average_leaves_the_scale_of_codes_as_it_was_measured(tmp_path):
    """As a buffer it would be averaged from what it is before it is measured."""
    scales = []
    for callbacks in ([], [EMA(decay=0.999, warmup=1.0)]):
        model = tiny_diffusion(latent_vae=Halves())
        fitted(model, callbacks=callbacks).save_checkpoint(tmp_path / "last.ckpt")
        again = DiffusionModel.load_from_checkpoint(tmp_path / "last.ckpt", latent_vae=Halves())
        scales += [model.latent.scale, again.latent.scale]

    assert len(set(scales)) == 1 and scales[0] > 0


def test_a_vae_of_images_normalised_otherwise_is_refused():
    vae = Halves()
    vae.preprocessing = {"mean": [0.5], "std": [0.25]}
    model = tiny_diffusion(latent_vae=vae)
    model.preprocessing = {"mean": [0.0], "std": [0.25]}
    with pytest.raises(
        ValueError, match=r"^the VAE was trained on images with mean \[0.5\] and these have \[0.0\]; norm"
    ):
        fitted(model)


def test_a_process_that_follows_the_progress_wants_to_know_the_end():
    model = tiny_diffusion(process=Consistency(coupling="independent"))
    with pytest.raises(
        ValueError, match=r"^Consistency changes with the training's progress, which nobody knows; give m"
    ):
        quiet_trainer(max_epochs=-1).fit(model, DataLoader(batches(), batch_size=None))


def test_of_numbers_far_apart_no_two_images_begin_alike():
    """These two share a stream where a seed has 32 bits."""
    first, second = (Draws(0, [number]).normal(8) for number in (50699, 55170))

    assert (first - second).abs().max() > 0.1
    assert not torch.equal(Draws(0, [1, 2]).normal(4)[0], Draws(1, [1]).normal(4)[0])


@pytest.mark.parametrize("process", [FlowMatching(time_law="logit_normal"), EDM(), Diffusion(), NCSN()])
def test_in_half_precision_losses_are_numbers(process):
    model = tiny_diffusion(process=process).bfloat16()
    image, label = batches()[0]
    loss = model.losses(image.bfloat16(), label, torch.Generator().manual_seed(0))["loss"]

    assert loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "resnet"}, "network is 'resnet'; give unet or dit, or a module of your own"),
        ({"network_settings": {"width": 3}}, "network_settings: got an unexpected keyword argument 'width'"),
        (
            {"image_size": 9},
            "UNet got 9 x 9 pixels and halves its images, so their sides are 2, 4, 6, ...; resize them, or give fewer "
            "`multiples`",
        ),
        ({"sampler": "ddim"}, "FlowMatching: sampler is 'ddim'; give one of euler, midpoint, heun"),
        ({"steps": 0}, "the number of steps is 0; give at least 1"),
        ({"process": Diffusion(steps=10), "steps": 11}, "the number of steps is 11; give 1 to 10"),
        ({"sampler_settings": {"eta": 1}}, "FlowMatching: the sampler euler has no setting 'eta'; leave it out"),
        (
            {"process": Diffusion(), "sampler_settings": {"eta": 2.0}},
            "eta is 2.0; give 0, which draws nothing, to 1, which draws as much as DDPM",
        ),
        (
            {"guidance": 1.0, "conditional": False},
            "guidance is 1.0 and the network was trained without labels; leave guidance at 0",
        ),
        (
            {"guidance": 1.0, "label_dropout": 0.0},
            "guidance is 1.0 and label_dropout=0 never showed the network an image without a label; leave "
            "guidance at 0",
        ),
        ({"label_dropout": 1.5}, "DiffusionModel: label_dropout is 1.5; give a share of the labels, 0 to 1"),
        ({"num_classes": -1}, "DiffusionModel: num_classes is -1; give 0, for no labels, or more"),
        ({"seed": -1}, "DiffusionModel: seed is -1; give a number of at least 0"),
        ({"latent_vae": nn.Identity()}, "the Identity given as latent_vae has no `encode`; give a VAE"),
        (
            {"latent_vae": Halves(), "latent_scale": 0},
            "latent_scale is 0; give a number above 0, or None to measure it",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny_diffusion(**settings)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": 3}, "label 3 is none of the 3 classes; give 0 to 2"),
        ({"label": [0, 1]}, "there are labels of shape (2,) for 4 images; give one for each"),
        ({"steps": 0}, "the number of steps is 0; give at least 1"),
        (
            {"count": 0},
            "sample(count=0, seed=0, first=0): give at least one image, and a seed and a first number that "
            "are not negative",
        ),
        (
            {"edit": Edit(torch.zeros(1, 1, 8, 8))},
            "the images to go on from are (1, 1, 8, 8); give (4, 1, 8, 8), normalised",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(asked, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny_diffusion().sample(**{"count": 4} | asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength is 0.0; give a share of the way to noise, above 0 and at most 1"),
        (
            {"mask": torch.ones(1, 1, 8, 8)},
            "the mask has numbers of torch.float32; give bool, True where pixels are kept",
        ),
        (
            {"mask": torch.ones(1, 1, 4, 8, dtype=torch.bool)},
            "the mask has the shape (1, 1, 4, 8) and the images (1, 1, 8, 8); give one that fits",
        ),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Edit(torch.zeros(1, 1, 8, 8), **settings)


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"^DiffusionModel learns images of \(1, 8, 8\) \(C, H, W\) and got \(3, 8, 8\)"
    ):
        tiny_diffusion().training_step((torch.zeros(2, 3, 8, 8), torch.zeros(2)), 0)
    with pytest.raises(ValueError, match=r"has num_classes=3 and the batches have no labels; give 0$"):
        tiny_diffusion().training_step((torch.zeros(2, 1, 8, 8),), 0)


def test_two_ranks_draw_their_own_noise_and_keep_equal_weights(two_ranks):
    from support.learners import unlabelled

    def trained(make, data):
        model = make()
        trainer = quiet_trainer(max_steps=3, strategy="ddp", devices=2)
        trainer.fit(model, data())
        image = torch.zeros(4, 1, 8, 8)
        return torch.rand(3, generator=model.batch_draws(image, 0, True)), model.network.state_dict()

    (first, ours), (second, theirs) = two_ranks(trained, partial(tiny_diffusion, num_classes=0), unlabelled)
    assert distance(ours, theirs) == 0.0
    assert (first - second).abs().min() > 1e-4
