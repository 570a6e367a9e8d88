"""Networks as files: a torch.export program, an ONNX model, or plain weights for timm.

The two programs take pixel values as image files hold them and give logits; scaling, normalisation and calibration are
inside, so nothing but resizing is left to the program that runs them. A timm file holds weights alone. Each format is a
pair: `write_X` makes a file, `read_X` loads it back as a function from images to logits, as a stranger would.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.classification.calibration import Calibration
from lightning_vision.images import normalise

__all__ = [
    "RawPixels",
    "onnx_program",
    "read_onnx",
    "read_timm",
    "read_torch_export",
    "require_onnx",
    "trace_program",
    "write_onnx",
    "write_timm",
    "write_torch_export",
]

METADATA = "metadata.json"


class RawPixels(nn.Module):
    """A network that takes images as files hold them, 0 to 255, and normalises them itself.

    Args:
        network: Takes normalised images `(B, C, H, W)`, gives logits `(B, K)`; shared, not copied.
        mean: Mean of each channel, for pixel values from 0 to 1.
        std: Standard deviation of each channel, for pixel values from 0 to 1.
        calibration: Shifts normalised images and divides logits; None does neither.

    Shape:
        uint8 `(B, C, H, W)` to float32 `(B, K)`.
    """

    def __init__(
        self, network: nn.Module, mean: list[float], std: list[float], calibration: Calibration | None = None
    ) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std
        self.calibration = calibration

    def forward(self, image: Tensor) -> Tensor:
        image = normalise(image, self.mean, self.std)
        logits: Tensor = (
            self.network(image) if self.calibration is None else self.calibration.logits(self.network, image)
        )
        return logits


def trace_program(network: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """The network as a program whose batch size is free.

    Args:
        network: One that takes pixels, with the network inside as `network`; in evaluation mode, on the CPU.
        image: Example `(B, C, H, W)`, uint8, at least two images; only B may differ when the program runs.

    Raises:
        ValueError: the network does something that a program cannot express.
    """
    try:
        return torch.export.export(network, (image,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    except Exception as error:
        inner = type(network.network).__name__
        raise ValueError(
            f"torch.export cannot express {inner} ({_first_line(error)}); `--format timm` writes its weights alone"
        ) from error


def write_torch_export(program: torch.export.ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    """Write a program for `torch.export.load`.

    Args:
        program: From `trace_program`.
        metadata: What a program that runs the file needs to know; lies in its extra file `metadata.json`.
        path: File to write, ends in `.pt2`.
    """
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """Function from uint8 images `(B, C, H, W)` to logits `(B, K)` in a torch.export file."""
    return torch.export.load(path).module()


def require_onnx() -> None:
    """Refuse to go on without what writes and runs ONNX files.

    Raises:
        ModuleNotFoundError: one of onnx, onnxscript and onnxruntime is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f'ONNX files need {name}; pip install "lightning_vision[export]"')


def write_onnx(program: torch.export.ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    """Write an ONNX model with input `image`, output `logits` and a free batch size.

    Args:
        program: From `trace_program`.
        metadata: Becomes the model's metadata properties.
        path: File to write.

    Raises:
        ValueError: the network does something that ONNX cannot express.
    """
    model = onnx_program(program, ["logits"])
    model.model.metadata_props.update(metadata)
    model.save(path)


def onnx_program(program: torch.export.ExportedProgram, outputs: list[str]) -> Any:
    """A program as torch's `ONNXProgram`, with input `image`, named outputs and a free batch size.

    Raises:
        ValueError: the network does something that ONNX cannot express.
    """
    try:
        return torch.onnx.export(
            program,
            input_names=["image"],
            output_names=outputs,
            dynamic_shapes={"image": {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"ONNX cannot express this network ({_first_line(error)}); use `--format torch_export`"
        ) from error


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Function from uint8 images `(B, C, H, W)` to logits `(B, K)` in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def write_timm(network: nn.Module, metadata: dict[str, str], path: Path) -> None:
    """Write the weights as safetensors, for `timm.create_model(NAME, checkpoint_path=PATH)`.

    Args:
        network: A network that timm built.
        metadata: Goes into the file's header.
        path: File to write, ends in `.safetensors`.
    """
    from safetensors.torch import save

    weights = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    path.write_bytes(save(weights, metadata={"format": "pt", **metadata}))


def read_timm(path: Path, name: str, arguments: dict[str, Any]) -> nn.Module:
    """The network that `timm.create_model(name, **arguments, checkpoint_path=path)` builds, in evaluation mode.

    Raises:
        ValueError: timm builds another network from these arguments than the one whose weights the file holds.
    """
    import timm

    try:
        return timm.create_model(name, **arguments, checkpoint_path=str(path)).eval()
    except RuntimeError as error:
        raise ValueError(f"timm's {name} has other weights than this network: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
