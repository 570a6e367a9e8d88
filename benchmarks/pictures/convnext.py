"""The learning rates of ConvNeXt's two recipes: over time from scratch, over layers when fine-tuned."""

import timm
import torch
from matplotlib.figure import Figure

from lightning_vision.base.param_groups import layer_scales
from lightning_vision.callbacks import WarmUpCosine
from lightning_vision.configs import read_config, shipped

__all__ = ["draw"]


def draw() -> Figure:
    """Left the schedule of `convnext.yaml`; right the rate of each block in `convnext_finetune.yaml`."""
    scratch, tuned = (read_config(shipped()[f"classification/{name}"]) for name in ("convnext", "convnext_finetune"))
    epochs = scratch["trainer"]["max_epochs"]
    schedule = WarmUpCosine(**scratch["callbacks"]["schedule"]["init_args"])
    schedule.plan(1, epochs)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    # The paper's rate, at its batch of 4096 images.
    left.plot(range(epochs), [4e-3 * schedule.factor(epoch) for epoch in range(epochs)], "C0")
    left.set(xlabel="epoch", ylabel="learning rate at 4096 images a step", title="from scratch", ylim=(0, None))
    model = tuned["model"]["init_args"]
    rate, decay = model["optimizer"]["init_args"]["lr"], model["layer_decay"]
    with torch.device("meta"):
        network = timm.create_model("convnext_tiny")
    scales = layer_scales(network, decay)
    names = ["stem.0.weight"]
    names += [f"stages.{s}.blocks.{b}.conv_dw.weight" for s in range(4) for b in range(len(network.stages[s].blocks))]
    names += ["head.fc.weight"]
    rates = [rate * scales[name] for name in names]
    colours = ["0.6", *(f"C{stage}" for stage in range(4) for _ in network.stages[stage].blocks), "0.2"]
    right.bar(range(len(names)), rates, color=colours)
    right.set(xlabel="stage", ylabel="learning rate", yscale="log", title=f"fine-tuned, {decay} a layer")
    right.set_xticks([0, 2, 5, 11, 17, 19], ["stem", "1", "2", "3", "4", "head"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
