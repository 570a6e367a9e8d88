"""Show what a checkpoint looks at in images, or what its network has learnt, as pictures, a page and tables."""

import importlib
import inspect
import tempfile
from pathlib import Path
from typing import Any, Literal

from lightning_vision.commands._explain import MODES, Mode
from lightning_vision.commands._explain.methods import known_methods
from lightning_vision.commands._explain.subject import Files, Subject
from lightning_vision.commands._files import output_folder
from lightning_vision.commands._report import print_table, require, require_one_process

READING = ("images", "batch_size", "on_bad_image")


def run(
    cli: Any,
    ckpt_path: str,
    images: str | None = None,
    mode: Mode = "maps",
    method: list[str] | str | None = None,
    layer: str | None = None,
    class_index: list[int | str] | int | str | None = None,
    channel: list[int] | int | None = None,
    facets: int | None = None,
    features: str | None = None,
    steps: int | None = None,
    top_k: int | None = None,
    sheet: int | None = None,
    batch_size: int | None = None,
    on_bad_image: Literal["error", "skip"] | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write maps of a folder's images, or what another mode shows.

    Args:
        ckpt_path: Checkpoint to explain; without a configured model the network is rebuilt from it.
        images: Image file, or folder searched with all its sub-folders; prepared as the checkpoint was trained.
        mode: `maps`: where in the images the evidence lies. `visualise`: images that a class or channel answers to
            most. `multifaceted`: several of them for a class, each begun from a group of its images. `invert`: images
            made again from what a layer says of them. `fool`: images that look like nothing and are taken for a class.
            `filters`: how many kernels are spent or alike. `scores`: insertion and deletion of each method. `sanity`:
            maps while layers are made random.
        method: grad_cam, the default, grad_cam_plus_plus, layer_cam, score_cam, eigen_cam, guided_backprop,
            guided_grad_cam, linear_interpreter, or an attribution of captum by name; several as `[grad_cam,eigen_cam]`.
        layer: Dotted name of the layer that is looked at; without it the last one that has maps.
        class_index: Class by number or name; without it each image's predicted one. Some modes take several.
        channel: Channels of `layer` to visualise.
        facets: Groups of images, and so pictures, of a class in `multifaceted`, 4 if not given.
        features: Dotted name of the layer by whose output `multifaceted` groups; without it what the head is given.
        steps: Steps of an optimisation, or changes of an image while it is scored; each mode has its own default.
        top_k: Classes listed for each image, most probable first, 5 if not given.
        sheet: The first so many images go on the sheet, 16 if not given, 0 draws none; so many are inverted (8) or
            looked at by `sanity` (4).
        batch_size: Files of `images` at once, 64 if not given.
        on_bad_image: Stop at a file that cannot be decoded (`error`, if not given), or leave it out.
        output: Folder for the files; without it `explain` in the run's folder or the current one.
        overwrite: Replace the files of an earlier explanation.

    Returns:
        The paths written by their kinds (`html`, `png`, `csv`, and `maps`, a folder), and what the mode measured.

    Raises:
        ValueError: an option does not belong to the mode or is out of its range, there is no such layer, class or
            method, no image is found, the network has nothing that the mode could show, or there are several processes.
        FileNotFoundError: there is no such folder or checkpoint.
        FileExistsError: a file exists and `overwrite` is off.
    """
    given: dict[str, Any] = {
        "images": images,
        "method": method,
        "layer": layer,
        "class_index": class_index,
        "channel": channel,
        "facets": facets,
        "features": features,
        "steps": steps,
        "top_k": top_k,
        "sheet": sheet,
        "batch_size": batch_size,
        "on_bad_image": on_bad_image,
    }
    given = {name: value for name, value in given.items() if value is not None}
    # Here, for each mode imports what no other needs.
    shown = importlib.import_module(f"lightning_vision.commands._explain.{mode}")
    taken = _taken(mode)
    for name in given:
        if name not in taken:
            others = ", ".join(other for other in MODES if name in _taken(other))
            raise ValueError(f"--{name} does not go with --mode {mode}; it goes with {others}")
    require(cli, "model")
    require_one_process(cli, "explain")
    reads = "images" in taken
    if reads and images is None:
        raise ValueError(f"--mode {mode} needs --images, a folder of image files")
    subject = Subject(cli, ckpt_path)
    options = {name: value for name, value in given.items() if name not in READING}
    if "layer" in options:
        subject.check_layer(options["layer"])
    # What was mistyped is told before what is there already.
    subject.class_numbers(class_index)
    if method is not None and mode != "fool":
        known_methods(method)
    place = output or str(Path(cli.run_dir or cli.trainer.default_root_dir) / "explain")
    if reads:
        options["files"] = Files(subject, str(images), {name: given[name] for name in READING[1:] if name in given})
        if Path(place).absolute().is_relative_to(Path(str(images)).absolute()):
            raise ValueError(f"--output {place} lies inside --images {images}, where it would be found as images")
    folder = output_folder(cli, place, shown.FILES, overwrite)
    # Files appear when all are complete.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".explain-") as scratch:
        found: dict[str, Any] = shown.write(subject, Path(scratch), **options)
        for earlier in (folder / "maps").glob("[0-9]*_*.png") if mode == "maps" else ():
            earlier.unlink()
        written = {}
        for part in sorted(Path(scratch).rglob("*.*")):
            path = folder / part.relative_to(scratch)
            path.parent.mkdir(exist_ok=True)
            part.replace(path)
            if path.parent == folder:
                written[path.suffix[1:]] = str(path)
            else:
                written[path.parent.name] = str(path.parent)
    print_table("written", written)
    return {**written, **found}


def _taken(mode: str) -> set[str]:
    """The options of a mode are the arguments of its function; one that takes files takes what reads them."""
    written = importlib.import_module(f"lightning_vision.commands._explain.{mode}").write
    names = set(inspect.signature(written).parameters) - {"subject", "folder"}
    return names - {"files"} | set(READING) if "files" in names else names
