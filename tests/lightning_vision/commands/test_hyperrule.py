"""`hyperrule` counts a folder, writes a config by the rule, and `fit` runs it."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_vision import main
from lightning_vision.classification.bit import hyperrule
from lightning_vision.commands.hyperrule import config
from lightning_vision.configs import read_config, shipped
from support.photos import photo_folder


def test_a_folder_is_counted_and_the_written_config_trains() -> None:
    photo_folder("my photos", ("brick", "cat"), number=10)
    main(["hyperrule", "--root", "my photos", "--output", "configs/bit.yaml", "--batch_size", "4"])
    written = yaml.safe_load(Path("configs/bit.yaml").read_text())

    # Twenty photographs of 40 to 110 pixels, of which validation and test get some: small data of small images.
    assert Path("configs/bit.yaml").read_text().startswith("# Fine-tune on 16 photographs of about ")
    assert written["data"]["init_args"]["root"] == str(Path("my photos").absolute())
    assert (written["data"]["init_args"]["train_size"], written["data"]["init_args"]["image_size"]) == (160, 128)
    assert written["trainer"]["max_steps"] == 500
    assert written["trainer"]["accumulate_grad_batches"] == 512 // 4
    assert "mixup" not in written["callbacks"]

    small = ["--model.backbone", "resnetv2_18", "--model.pretrained", "false", "--data.num_workers", "0"]
    small += ["--data.train_size", "40", "--data.image_size", "32"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    quiet += ["--trainer.enable_model_summary", "false", "--trainer.max_steps", "2"]
    result = main(["fit", "--config", "configs/bit.yaml", *small, *quiet])

    assert (Path(result.run_dir or "") / "checkpoints" / "last.ckpt").is_file()


def test_the_shipped_config_is_the_rule_for_small_data_of_larger_images() -> None:
    assert read_config(shipped()["classification/bit"]) == yaml.safe_load(config(hyperrule(1000, (224, 224)), 32))


@pytest.mark.parametrize(("images", "steps"), [(20_000, 10_000), (500_000, 20_000)])
def test_larger_data_is_mixed_and_trained_longer(images: int, steps: int) -> None:
    written = yaml.safe_load(config(hyperrule(images, (32, 32)), 64, "a: b"))

    assert written["callbacks"]["mixup"] == {"class_path": "MixUp", "init_args": {"alpha": 0.1}}
    assert written["callbacks"]["schedule"]["init_args"]["warmup"] == 500
    assert written["trainer"]["max_steps"] == steps
    assert written["trainer"]["val_check_interval"] == steps // 10 * 8
    assert written["data"]["init_args"]["root"] == "a: b"


def test_a_batch_that_does_not_add_up_is_refused() -> None:
    photo_folder("photos", ("brick", "cat"), number=10)
    message = "--batch_size 100 is no divisor of the rule's 512; try 16, 32 or 64"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        main(["hyperrule", "--root", "photos", "--batch_size", "100"])
    assert not Path("bit.yaml").exists()


def test_a_file_that_exists_is_kept() -> None:
    Path("bit.yaml").write_text("mine")

    with pytest.raises(FileExistsError, match=r"^bit\.yaml exists; choose another --output or add --overwrite$"):
        main(["hyperrule", "--root", "photos"])
    assert Path("bit.yaml").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_said() -> None:
    photo_folder("photos", ("brick", "cat"), number=10)
    Path("taken").write_text("no folder")

    with pytest.raises(ValueError, match=r"^cannot write to taken/here: Not a directory; choose another --output$"):
        main(["hyperrule", "--root", "photos", "--output", "taken/here/bit.yaml"])
    with pytest.raises(ValueError, match=r"^--output photos is a folder; name a file in it$"):
        main(["hyperrule", "--root", "photos", "--output", "photos", "--overwrite"])


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no folder nowhere; root must hold"):
        main(["hyperrule", "--root", "nowhere"])


def test_a_file_without_a_size_is_named() -> None:
    root = photo_folder("photos", ("brick", "cat"), number=10)
    for path in root.glob("*/*"):
        path.write_bytes(b"no image")

    with pytest.raises(ValueError, match=r"^cannot read the size of the image .*; repair or remove it$"):
        main(["hyperrule", "--root", "photos"])
