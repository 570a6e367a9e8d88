import torch
import torch.nn.functional as F

from lightning_vision.self_supervised.patches import normalise_patches, patchify, unpatchify


def test_patches_are_those_of_an_unfold():
    image = torch.randn(2, 3, 6, 8)
    for patch in ((2, 2), (3, 4), (1, 8), (6, 8)):
        unfolded = F.unfold(image, patch, stride=patch).mT

        assert torch.equal(patchify(image, patch), unfolded)


def test_images_come_back_exactly_and_so_do_patches():
    image = torch.randn(2, 3, 6, 8)
    for patch, grid in (((2, 2), (3, 4)), ((3, 4), (2, 2)), ((6, 2), (1, 4))):
        patches = patchify(image, patch)

        assert torch.equal(unpatchify(patches, patch, grid), image)
        assert torch.equal(patchify(unpatchify(patches, patch, grid), patch), patches)


def test_putting_patches_together_is_a_pixel_shuffle():
    patches = torch.randn(2, 12, 3 * 4)
    maps = patches.unflatten(1, (3, 4)).permute(0, 3, 1, 2)

    assert torch.equal(unpatchify(patches, (2, 2), (3, 4)), F.pixel_shuffle(maps, 2))


def test_a_grid_with_rows_and_columns_exchanged_is_noticed():
    image = torch.randn(1, 1, 4, 8)

    assert not torch.equal(unpatchify(patchify(image, (2, 2)), (2, 2), (4, 2)), image)


def test_normalised_patches_have_mean_0_and_variance_1_and_come_back():
    patches = 3 + 5 * torch.randn(2, 4, 48)

    normal, mean, std = normalise_patches(patches)

    torch.testing.assert_close(normal.mean(2), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.var(2), torch.ones(2, 4))
    torch.testing.assert_close(normal * std + mean, patches)


def test_a_flat_patch_becomes_0():
    assert normalise_patches(torch.full((1, 1, 4), 0.3))[0].abs().max() < 1e-3
