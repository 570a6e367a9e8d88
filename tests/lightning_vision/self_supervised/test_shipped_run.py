"""The shipped run learns what README says, from images without labels."""

from pathlib import Path

import pytest

from lightning_vision import main
from support.trainers import QUIET

pytestmark = [pytest.mark.slow, pytest.mark.one_worker]


def test_simclr_on_digits_comes_to_nine_of_ten_by_neighbours(tmp_path: Path) -> None:
    """0.91 and 0.91 when last seen; one of the 180 validation digits is 0.006, and 0.02 about a standard error."""
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu", *QUIET]
    metrics = main(["fit", "--config", "self_supervised/simclr_digits", *place]).metrics

    assert metrics["probe/knn"] >= 0.88
    assert metrics["probe/online"] >= 0.84
    assert len(list(tmp_path.glob("version_0/media/val/embedding_map/*.png"))) == 8
    assert (tmp_path / "version_0" / "backbone.safetensors").is_file()
