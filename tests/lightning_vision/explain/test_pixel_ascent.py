"""What images made by optimisation share: total variation by hand, steps of known length, pixels that stay pixels."""

import kornia
import pytest
import torch

from lightning_vision.explain._pixel_ascent import PixelSpace, ascend, total_variation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(pixels):
    return (0 * pixels).flatten(1).sum(1)


def test_total_variation_is_that_of_a_worked_example():
    image = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])

    # (1, 2), (edge, 3), (2, edge) and the corner.
    assert total_variation(image).tolist() == [(1 + 4) + 9 + 4]
    assert total_variation(image, beta=1.0).item() == pytest.approx(5**0.5 + 3 + 2, rel=1e-4)


def test_total_variation_along_one_direction_is_kornias():
    image = torch.rand(2, 3, 1, 9, generator=seeded())

    torch.testing.assert_close(
        total_variation(image, beta=1.0), kornia.losses.total_variation(image).sum(1), rtol=1e-4, atol=1e-4
    )


def test_total_variation_of_a_flat_image_has_a_gradient_of_zero():
    image = torch.full((1, 1, 3, 3), 0.5, requires_grad=True)
    total_variation(image, beta=1.0).sum().backward()

    assert image.grad.abs().max().item() == 0


def test_pixels_come_back_from_what_a_model_is_shown():
    space = PixelSpace((0.5, 0.4), (0.2, 0.3), 2, torch.device("cpu"))
    pixels = torch.rand(3, 2, 4, 4, generator=seeded())

    torch.testing.assert_close(space.pixels(space.shown(pixels)), pixels)
    torch.testing.assert_close(space.shown(torch.ones(1, 2, 1, 1)).flatten(), torch.tensor([2.5, 2.0]))


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        (((0.5,), (0.0,), 1), None, "std"),
        (((0.5, 0.5), (1.0,), 3), None, "mean has 2 values"),
        (((0.0,), (1.0,), 1), torch.full((1, 1, 2, 2), 1.5), "pass the mean and std"),
        (((0.0,), (1.0,), 1), torch.full((1, 1, 2, 2), float("nan")), "pass the mean and std"),
        (((0.0,), (1.0,), 1), torch.zeros(1, 2, 2), "must be floats"),
        (((0.0,), (1.0,), 1), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "must be floats"),
    ],
)
def test_pixels_that_are_none_are_refused(settings, images, message):
    with pytest.raises(ValueError, match=message):
        PixelSpace(*settings, torch.device("cpu")).pixels(images)


def test_a_step_is_as_long_as_said_whatever_the_scale_of_the_score():
    slope = torch.randn(1, 1, 4, 4, generator=seeded())
    start = torch.full((1, 1, 4, 4), 0.5)
    moved = [
        ascend(lambda pixels, scale=scale: (scale * slope * pixels).flatten(1).sum(1), start, 3, 0.01, seeded())[0]
        for scale in (1e-3, 1e3)
    ]

    torch.testing.assert_close(moved[0], start + 0.03 * slope / slope.square().mean().sqrt())
    torch.testing.assert_close(moved[0], moved[1])


def test_decay_alone_is_geometric_and_variation_alone_smooths():
    start = torch.rand(1, 1, 6, 6, generator=seeded())
    shrunk, _ = ascend(flat, start, 10, 0.05, seeded(), decay=0.1, rest=0.25)
    smooth, _ = ascend(flat, start, 200, 0.05, seeded(), tv_weight=1.0)

    torch.testing.assert_close(shrunk, 0.25 + 0.9**10 * (start - 0.25))
    assert total_variation(smooth).item() < 0.01 * total_variation(start).item()
    torch.testing.assert_close(smooth.mean(), start.mean())


def test_a_blur_comes_when_it_is_due_and_no_image_is_too_small_for_it():
    start = torch.rand(1, 1, 4, 4, generator=seeded())
    sharp, _ = ascend(flat, start, 3, 0.0, seeded(), blur=2.0, blur_every=4)
    blurred, _ = ascend(flat, start, 4, 0.0, seeded(), blur=2.0, blur_every=4)

    torch.testing.assert_close(sharp, start)
    assert blurred.std() < 0.5 * start.std()


def test_the_gradient_of_a_shifted_look_lands_where_it_was_looked_at():
    """Only the first pixel of what is seen counts; each shift paints the place that lay there."""
    painted, _ = ascend(lambda pixels: pixels[:, 0, 0, 0], torch.zeros(1, 1, 5, 5), 40, 0.01, seeded(), jitter=1)

    # Shifts of one pixel at most, around the edges.
    assert sorted(map(tuple, painted[0, 0].nonzero().tolist())) == [(y, x) for y in (0, 1, 4) for x in (0, 1, 4)]


def test_a_mask_holds_pixels_and_the_range_holds_all():
    mask = torch.zeros(4, 4)
    mask[1:3, 1:3] = 1
    start = torch.full((2, 1, 4, 4), 0.5)
    made, trace = ascend(lambda pixels: pixels.flatten(1).sum(1), start, 50, 0.1, seeded(), mask=lambda step: mask)

    torch.testing.assert_close(made, 0.5 + 0.5 * mask.expand(2, 1, 4, 4))
    assert trace.shape == (51, 2)


def test_it_ends_early_when_all_are_high_enough():
    start = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.6)])
    _, trace = ascend(lambda pixels: pixels.mean((1, 2, 3)), start, 50, 0.1, seeded(), stop_at=0.55)

    assert trace.shape == (6, 2)
    assert (trace[-1] >= 0.55).all() and not (trace[-2] >= 0.55).all()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda pixels: pixels.new_zeros(len(pixels)), "does not depend"),
        (lambda pixels: (0 * pixels).sqrt().flatten(1).sum(1) * pixels.sum(), "not finite"),
    ],
)
def test_what_cannot_rise_is_said(score, message):
    with pytest.raises(ValueError, match=message):
        ascend(score, torch.zeros(1, 1, 2, 2), 2, 0.1, seeded())
