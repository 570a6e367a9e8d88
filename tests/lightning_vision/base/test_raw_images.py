"""Files reach the network as the datamodule's own batches do."""

import torch
from PIL import Image

from lightning_vision.base.raw_images import read_batch
from lightning_vision.datamodules import Digits
from lightning_vision.images import normalise

HAND = {"channels": 1, "image_size": (1, 2), "resize": "crop", "mean": [0.4], "std": [0.2]}


def test_a_file_is_scaled_by_hand():
    image = Image.new("L", (2, 1))
    image.putdata([0, 255])
    image.save("a.png")

    batch = read_batch(["a.png"], HAND, torch.device("cpu"))

    assert (batch.shape, batch.dtype) == ((1, 1, 1, 2), torch.float32)
    torch.testing.assert_close(batch.flatten(), torch.tensor([-2.0, 3.0]))


def test_modules_and_datamodules_normalise_bit_for_bit_alike():
    data = Digits()
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    before = pixels.clone()
    told = data.preprocessing

    assert torch.equal(normalise(pixels, told["mean"], told["std"]), data.normalise(pixels))
    assert torch.equal(pixels, before)
