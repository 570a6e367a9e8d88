"""What `predict` writes of a learner without labels, from the files that users read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vision import main
from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised import SimCLR
from support.trainers import QUIET, quiet_trainer

pytestmark = pytest.mark.one_worker

DATA = ["--data", "PlacedDigits", "--data.batch_size", "128", "--trainer.accelerator", "cpu", *QUIET]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint after one step."""
    torch.manual_seed(0)
    learner = SimCLR(backbone="resnet8_cifar", in_channels=1, views="digits", hidden_dim=16, out_dim=8)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(learner, datamodule=PlacedDigits())
    path = str(tmp_path_factory.mktemp("trained") / "last.ckpt")
    trainer.save_checkpoint(path)
    return path


def written(*args: str) -> tuple[dict[str, Any], list[dict[str, Any]], np.ndarray]:
    output = main(["predict", *args]).output
    assert isinstance(output, dict)
    lines = Path(output["jsonl"]).read_text().splitlines()
    return output, [json.loads(line) for line in lines], np.load(output["npy"])


def test_the_rows_are_the_features_of_the_images_that_are_named(trained: str, tmp_path: Path) -> None:
    output, records, rows = written(*DATA, "--ckpt_path", trained, "--output", str(tmp_path), "--sheet", "24")
    data = PlacedDigits()
    data.setup()
    assert data.test_set is not None
    learner = SimCLR.load_from_checkpoint(trained).eval()
    some = torch.tensor([0, 7, 200])
    fetched = data.test_set.fetch(some)
    with torch.no_grad():
        expected = learner.features(data.normalise(fetched.image))

    assert output["count"] == len(data.test_set) == len(rows)
    assert [record["row"] for record in records] == list(range(len(rows)))
    assert [records[place]["target"] for place in some.tolist()] == fetched.target.tolist()
    torch.testing.assert_close(torch.from_numpy(rows[some.numpy()]), expected, rtol=1e-4, atol=1e-5)
    assert Image.open(output["png"]).size[0] > 100


def test_image_files_are_prepared_as_those_of_training(trained: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, shade in enumerate((0, 255)):
        Image.new("L", (50, 50), shade).save(folder / f"{number}.png")
    _, records, rows = written("--ckpt_path", trained, "--images", str(folder), "--output", str(tmp_path), *DATA[4:])

    assert [Path(record["path"]).name for record in records] == ["0.png", "1.png"]
    assert rows.shape == (2, 64) and not np.allclose(rows[0], rows[1])


def test_classes_are_not_listed_of_what_knows_none(trained: str) -> None:
    with pytest.raises(ValueError, match="--top_k 3 goes with classifiers; SimCLR knows no classes"):
        main(["predict", *DATA, "--ckpt_path", trained, "--top_k", "3"])
