"""The picture of the measures of maps: one map, what it points at, its curves, and what is left without the weights."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks import grad_cam
from lightning_vision.callbacks.explain.sheet import overlay
from lightning_vision.datamodules import PlacedDigits
from lightning_vision.explain import localisation_boxes, perturbation_curve, randomised_layers

__all__ = ["Templates", "draw"]

SIZE, SHARPNESS, STEPS = 17, 50.0, 48
SAMPLE = 33


class Templates(nn.Module):
    """Tells digits by how well the mean of each class fits anywhere on the image: maps, then their maximum."""

    def __init__(self) -> None:
        super().__init__()
        pixels, labels = load_digits(return_X_y=True)
        images, target = torch.from_numpy(pixels).float().view(-1, 1, 8, 8), torch.from_numpy(labels)
        means = torch.stack([images[target == label].mean(0) for label in range(10)])
        means = F.interpolate(means, (SIZE, SIZE), mode="bilinear", align_corners=False)
        means = means - means.mean((2, 3), keepdim=True)
        self.match = nn.Conv2d(1, 10, SIZE, padding=SIZE // 2, bias=False)
        self.match.weight = nn.Parameter(means / means.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, image: Tensor) -> Tensor:
        fit: Tensor = F.relu(self.match(image - image.mean())).amax((2, 3))
        return SHARPNESS * fit / fit.norm(dim=1, keepdim=True).clamp_min(0.5)


def draw() -> Figure:
    """A digit on noise, told by templates of the ten mean digits."""
    data = PlacedDigits(canvas="plain")
    data.setup()
    assert data.test_set is not None
    index = torch.tensor([SAMPLE])
    fetched = data.test_set.fetch(index)
    images, label = fetched.image.float() / 255, int(fetched.target)
    top, left, bottom, right = data.boxes("test", index)[0].tolist()
    model = Templates()
    maps = grad_cam(model, images, "match", label)
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    grey, seen, curves, forgotten = figure.subplots(1, 4, width_ratios=[1, 1, 1.5, 1])
    picture = fetched.image[0].expand(3, -1, -1).permute(1, 2, 0).numpy()
    grey.imshow(picture)
    grey.set_title(f"a {label}, told as {int(model(images).argmax())}")
    seen.imshow(overlay(picture, maps[0].numpy()))
    peak = divmod(int(maps[0].argmax()), maps.shape[2])
    seen.plot(peak[1], peak[0], "x", color="white", markersize=9, markeredgewidth=2)
    found = localisation_boxes(maps, 0.5)[0].tolist()
    for box, colour in (([left, top, right, bottom], "white"), (found, "black")):
        corner, sides = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
        seen.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=1.5))
    seen.set_title("peak, true box (white),\nbox above 0.5 (black)", fontsize=9)
    empty = torch.zeros_like(images)
    for name, start, end in (("insertion", empty, images), ("deletion", images, empty)):
        curve = perturbation_curve(model, start, end, maps, label, STEPS)[0]
        area = float(torch.trapezoid(curve)) / STEPS
        curves.plot(torch.linspace(0, 1, STEPS + 1), curve, label=f"{name}, area {area:.2f}")
    curves.set(xlabel="share of pixels, the map's largest first", ylabel="probability", ylim=(0, 1))
    curves.legend(fontsize=8)
    blank = randomised_layers(model, lambda model, images: grad_cam(model, images, "match", label), images)[0]
    forgotten.imshow(overlay(picture, blank.maps[0].numpy()))
    forgotten.set_title(f"the layer drawn anew:\nrank correlation {float(blank.spearman):.2f}", fontsize=9)
    for axes in (grey, seen, forgotten):
        axes.set(xticks=[], yticks=[])
    return figure
