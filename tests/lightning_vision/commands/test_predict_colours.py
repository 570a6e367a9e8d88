"""What `predict` writes of a module that gives images colours, from the files that users read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import decode_image

from lightning_vision import main
from lightning_vision.datamodules import ImageFolder
from lightning_vision.generation import ColourisationGAN
from support.photos import photo_folder
from support.trainers import QUIET, quiet_trainer

pytestmark = pytest.mark.one_worker


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and a checkpoint after one step."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    data = ImageFolder(photo_folder(folder / "photos", ("cat", "flower"), 5), image_size=16, batch_size=4)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(ColourisationGAN(channels=4, image_size=16), datamodule=data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder


def written(trained: Path, *args: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    given = ["--images", str(trained / "photos" / "cat"), "--batch_size", "2", "--trainer.accelerator", "cpu", *QUIET]
    output = main(["predict", "--ckpt_path", str(trained / "last.ckpt"), *given, *args]).output
    assert isinstance(output, dict)
    return output, [json.loads(line) for line in Path(output["jsonl"]).read_text().splitlines()]


def test_each_image_becomes_a_file_that_is_named_for_it(trained: Path, tmp_path: Path) -> None:
    output, records = written(trained, "--output", str(tmp_path), "--sheet", "3")
    model = ColourisationGAN.load_from_checkpoint(trained / "last.ckpt")
    data = ImageFolder(predict_root=trained / "photos" / "cat", image_size=16, batch_size=5)
    (batch,) = quiet_trainer().predict(model, datamodule=data)
    files = [tmp_path / record["file"] for record in records]

    assert output["count"] == len(records) == 5 and Path(output["colourised"]) == tmp_path / "colourised"
    assert [file.name for file in files] == [f"{it['index']:06d}_{Path(it['path']).stem}.png" for it in records]
    assert torch.equal(torch.stack([decode_image(str(file)) for file in files]), batch["image"])
    assert sorted(tmp_path.glob("colourised/*")) == files
    assert decode_image(output["png"]).shape[0] == 3


def test_an_earlier_prediction_is_kept_unless_told_otherwise(trained: Path, tmp_path: Path) -> None:
    written(trained, "--output", str(tmp_path))
    own = tmp_path / "colourised" / "own.png"
    own.touch()
    with pytest.raises(FileExistsError, match="add --overwrite"):
        written(trained, "--output", str(tmp_path))
    (tmp_path / "colourised" / "000000_cat_0.png").write_bytes(b"")
    _, records = written(trained, "--output", str(tmp_path), "--overwrite", "true")

    assert all((tmp_path / record["file"]).stat().st_size for record in records) and own.exists()


def test_classes_are_not_asked_for(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"^--top_k 3 goes with classifiers; ColourisationGAN knows no classes$"):
        written(trained, "--top_k", "3")
