"""The sheet that `lightning_vision explain` draws, of digits and a network that read them for some seconds."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from PIL import Image

from lightning_vision import ImageClassifier, main
from lightning_vision.datamodules import Digits


def draw() -> Figure:
    """Eight test digits, with Layer-CAM of an early layer, guided backpropagation and integrated gradients."""
    seed_everything(0, verbose=False)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=100, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, Digits(batch_size=64))
    image, target, _ = next(iter(Digits(batch_size=60).test_dataloader()))
    with TemporaryDirectory() as folder:
        trainer.save_checkpoint(f"{folder}/best.ckpt")
        for label in range(10):
            path = Path(folder, "photos", str(label), "0.png")
            path.parent.mkdir(parents=True)
            Image.fromarray(image[target == label][0, 0].numpy()).save(path)
        words = ["--images", f"{folder}/photos", "--output", f"{folder}/explain", "--trainer.accelerator", "cpu"]
        methods = ["--method", "[layer_cam,guided_backprop,IntegratedGradients]", "--layer", "network.stages.0"]
        output = main(["explain", "--ckpt_path", f"{folder}/best.ckpt", *words, *methods, "--sheet", "8"]).output
        sheet = np.asarray(Image.open(output["png"]))
    figure = Figure(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    return figure
