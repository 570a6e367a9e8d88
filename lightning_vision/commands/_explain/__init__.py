"""The modes of `explain`, one file each, and their names, which need no torch."""

from typing import Literal, get_args

Mode = Literal["maps", "visualise", "multifaceted", "invert", "fool", "filters", "scores", "sanity"]
MODES = get_args(Mode)
METHODS = (
    "grad_cam",
    "grad_cam_plus_plus",
    "layer_cam",
    "score_cam",
    "eigen_cam",
    "guided_backprop",
    "guided_grad_cam",
    "linear_interpreter",
)
