"""Raw files give what the network says about the datamodule's batches."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.records import prediction_records
from lightning_vision.datamodules import Digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a digits run, and the run's test images and logits."""
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, optimizer=optimizer)
    data = Digits(batch_size=50)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = Trainer(accelerator="cpu", logger=False, max_epochs=1, **quiet)
    run.fit(module, datamodule=data)
    path = tmp_path_factory.mktemp("run") / "a.ckpt"
    run.save_checkpoint(path)
    pixels, target, index = next(iter(data.test_dataloader()))
    image, target = data.on_after_batch_transfer((pixels, target, index), 0)
    with torch.no_grad():
        logits = module.eval()(image)
    return path, pixels, logits


@pytest.fixture
def files(trained):
    names = [f"digit{i}.png" for i in range(50)]
    for name, pixels in zip(names, trained[1], strict=True):
        Image.fromarray(pixels[0].numpy()).save(name)
    return names


def test_a_loaded_checkpoint_predicts_files_as_the_run_predicted_batches(trained, files):
    path, _, logits = trained
    records = ImageClassifier.load_from_checkpoint(path, weights_only=True).predict(files)

    torch.testing.assert_close(torch.tensor([r["probabilities"] for r in records]), logits.softmax(1))
    assert [record["label"] for record in records] == logits.argmax(1).tolist()
    assert [record["path"] for record in records] == files
    assert [record["index"] for record in records] == list(range(50))


def test_the_batch_size_changes_nothing(trained, files):
    module = ImageClassifier.load_from_checkpoint(trained[0])
    whole, parts = (torch.tensor([r["probabilities"] for r in module.predict(files, batch_size=b)]) for b in (64, 7))

    torch.testing.assert_close(whole, parts)


def test_one_file_and_no_files_are_lists_too(trained, files):
    module = ImageClassifier.load_from_checkpoint(trained[0])

    assert [record["path"] for record in module.predict(files[3])] == [files[3]]
    assert module.predict([]) == []


def test_files_of_other_sizes_and_modes_are_converted(trained):
    module = ImageClassifier.load_from_checkpoint(trained[0])
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save("wide.png")

    assert len(module.predict("wide.png", top_k=2)[0]["top_k"]) == 2


def test_prediction_leaves_modes_and_gradients_as_they_were(trained, files):
    module = ImageClassifier.load_from_checkpoint(trained[0]).train()
    module.network.stem.eval()
    before = [part.training for part in module.modules()]
    module.predict(files[:2])

    assert [part.training for part in module.modules()] == before
    assert torch.is_grad_enabled()


def test_a_module_that_has_met_no_data_says_so():
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)

    with pytest.raises(ValueError, match="the preprocessing of raw images is unknown; train on a datamodule"):
        module.predict(["a.png"])


@pytest.mark.parametrize(("name", "error"), [("none.png", FileNotFoundError), ("text.png", ValueError)])
def test_a_bad_file_is_named(name, error, trained):
    with open("text.png", "w") as file:
        file.write("no image")

    with pytest.raises(error, match=name):
        ImageClassifier.load_from_checkpoint(trained[0]).predict([name])


def test_a_record_by_hand():
    (record,) = prediction_records(torch.tensor([[0.25, 0.5, 0.25]]), [7], ["cat", "dog", "owl"], ["a.png"], top_k=2)

    assert json.loads(json.dumps(record)) == {
        "path": "a.png",
        "index": 7,
        "label": 1,
        "class_name": "dog",
        "probabilities": [0.25, 0.5, 0.25],
        "top_k": [
            {"label": 1, "class_name": "dog", "probability": 0.5},
            {"label": 0, "class_name": "cat", "probability": 0.25},
        ],
    }


def test_predict_step_hands_on_index_and_target(trained):
    module = ImageClassifier.load_from_checkpoint(trained[0]).eval()
    image = torch.randn(2, 1, 8, 8)
    batch = {"image": image, "index": torch.tensor([3, 4]), "target": torch.tensor([1, 2])}

    assert module.predict_step(batch, 0).keys() == {"index", "target", "probabilities"}
    assert module.predict_step({"image": image, "index": batch["index"]}, 0).keys() == {"index", "probabilities"}
    torch.testing.assert_close(module.predict_step(batch, 0)["probabilities"], module(image).softmax(1))


def test_training_takes_over_the_preprocessing_and_a_checkpoint_keeps_it(trained):
    loaded = ImageClassifier.load_from_checkpoint(trained[0])

    assert loaded.preprocessing == Digits().preprocessing
    assert loaded.class_names == [str(k) for k in range(10)]
