"""Weights go in where they fit, are reported where they do not, and no file runs code."""

import io
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import nn

from lightning_vision.base.weights import load_checkpoint, load_weights, mismatch, module_from_checkpoint, read_weights


def network(classes=10, name="resnet10t"):
    return timm.create_model(name, num_classes=classes, in_chans=1)


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return network()


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil_ran",)


def equal(a, b, skip=()):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a if not name.startswith(skip))


@pytest.mark.parametrize("prefix", ["", "network.", "module.", "module.model.", "backbone.", "network._orig_mod."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_wrappers_and_containers_are_stripped(prefix, container, source, recwarn):
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, "weights.pt")
    target = network()
    load_weights(target, "weights.pt")

    assert equal(target, source)
    assert not [warning for warning in recwarn if "weights.pt" in str(warning.message)]


def test_safetensors_load_and_other_parts_of_a_module_are_reported(source):
    state = {f"model.{name}": tensor for name, tensor in source.state_dict().items()}
    save_file({**state, "projector.weight": torch.zeros(2)}, "weights.safetensors")
    target = network()
    with pytest.warns(UserWarning, match=r"1 not in the network \(projector.weight\)"):
        load_weights(target, "weights.safetensors")

    assert equal(target, source)


def test_a_head_of_another_size_is_dropped_and_reported(source):
    torch.save(source.state_dict(), "weights.pt")
    target = network(classes=3)
    fresh = target.fc.weight.clone()
    with pytest.warns(
        UserWarning, match=r"the classifier \(fc.weight, fc.bias\) has another size and starts untrained"
    ):
        load_weights(target, "weights.pt")

    assert equal(target, source, skip=("fc.",))
    assert torch.equal(target.fc.weight, fresh)


def test_a_few_missing_tensors_are_counted_and_named(source):
    state = source.state_dict()
    del state["layer1.0.bn1.weight"], state["layer1.0.bn1.bias"]
    torch.save(state, "weights.pt")
    missing = r"2 missing \(layer1.0.bn1.weight, layer1.0.bn1.bias\)"
    with pytest.warns(UserWarning, match=missing):
        load_weights(network(), "weights.pt")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (lambda: network(name="resnet18"), "missing"),
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32), "missing"),
        (lambda: timm.create_model("resnet10t", in_chans=3), r"1 of another shape \(conv1.0.weight\)"),
        (lambda: nn.Linear(3, 3), "missing"),
    ],
    ids=["deeper", "transformer", "colour", "linear"],
)
def test_another_architecture_is_refused(target, reason, source):
    torch.save(source.state_dict(), "weights.pt")
    built = target()

    with pytest.raises(ValueError, match=rf"weights.pt holds weights of another architecture than .*: .*{reason}"):
        load_weights(built, "weights.pt")


@pytest.mark.parametrize(
    ("file", "target", "reason"),
    [("resnet34", "resnet18", "96 not in the network"), ("resnet18", "resnet34", "96 missing")],
)
def test_another_depth_of_the_same_kind_is_refused(file, target, reason):
    torch.save(timm.create_model(file, num_classes=2).state_dict(), "weights.pt")

    with pytest.raises(ValueError, match=rf"another architecture than ResNet: {reason}"):
        load_weights(timm.create_model(target, num_classes=2), "weights.pt")


def write_damaged(path, how):
    if how == "pickle with code":
        Path(path).write_bytes(pickle.dumps({"state_dict": Evil()}))
    elif how == "zip with code":
        torch.save({"state_dict": Evil()}, path)
    elif how == "cut":
        torch.save({"state_dict": {"w": torch.zeros(99)}}, path)
        Path(path).write_bytes(Path(path).read_bytes()[:300])
    else:
        Path(path).write_bytes({"empty": b"", "text": b'{"a": 1}', "words": b"hello, these are no weights"}[how])


REFUSALS = [
    ("pickle with code", "was refused: reading it would run code from the file"),
    ("zip with code", r"was refused: reading it would run code from the file \(posix.system\)"),
    ("cut", "is damaged or no torch file"),
    ("empty", "is damaged or no torch file"),
    ("text", "is damaged or no torch file"),
    ("words", "is damaged or no torch file"),
]


@pytest.mark.parametrize("read", [read_weights, load_checkpoint, module_from_checkpoint])
@pytest.mark.parametrize(("how", "message"), REFUSALS, ids=[how for how, _ in REFUSALS])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bad_files_are_refused_in_one_sentence_and_run_nothing(read, how, message):
    write_damaged("bad.ckpt", how)

    with pytest.raises(ValueError, match=rf"^bad.ckpt {message}[^\n]*$"):
        read("bad.ckpt")
    assert not Path("evil_ran").exists()


def test_the_malicious_files_would_have_run():
    write_damaged("bad.ckpt", "zip with code")
    torch.load("bad.ckpt", weights_only=False)

    assert Path("evil_ran").exists()


@pytest.mark.parametrize("read", [read_weights, load_checkpoint, module_from_checkpoint])
@pytest.mark.parametrize("path", ["none.ckpt", "none.safetensors"])
def test_a_missing_file_is_named(read, path):
    with pytest.raises(FileNotFoundError, match=rf"^no \w+ at {path}$"):
        read(path)


def test_a_damaged_safetensors_file_is_named():
    Path("bad.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")

    with pytest.raises(ValueError, match=r"bad.safetensors is damaged or no safetensors file"):
        read_weights("bad.safetensors")


def test_a_file_without_tensors_holds_no_weights():
    torch.save({"state_dict": {"a": 1}}, "weights.pt")

    with pytest.raises(ValueError, match="holds no weights: no tensors by name"):
        read_weights("weights.pt")


def test_weights_alone_are_no_checkpoint(source):
    torch.save(source.state_dict(), "weights.pt")

    with pytest.raises(ValueError, match="is no Lightning checkpoint; a file of weights alone goes to `weights`"):
        load_checkpoint("weights.pt")


def checkpoint(**content):
    return {"state_dict": {}, "pytorch-lightning_version": "2.6.4", **content}


def test_an_open_file_is_read_and_rewound():
    buffer = io.BytesIO()
    torch.save(checkpoint(epoch=3), buffer)
    buffer.seek(0)

    assert [load_checkpoint(buffer)["epoch"] for _ in range(2)] == [3, 3]


class Foreign(LightningModule):
    def __init__(self, width=1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)


def test_a_checkpoint_names_the_class_that_it_is_loaded_as():
    module = Foreign(width=3)
    content = checkpoint(state_dict=module.state_dict(), hyper_parameters={"width": 3})
    torch.save({**content, "class_path": f"{Foreign.__module__}.Foreign"}, "a.ckpt")
    loaded = module_from_checkpoint("a.ckpt")

    assert (type(loaded).__name__, loaded.hparams["width"]) == ("Foreign", 3)
    assert torch.equal(loaded.layer.weight, module.layer.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "a.ckpt does not name its LightningModule"),
        ({"class_path": "os.system"}, "os.system was refused and not called: it is no subclass of LightningModule"),
        ({"class_path": "torch.nn.Linear"}, "torch.nn.Linear was refused and not called"),
        ({"class_path": "antigravity.Net"}, "antigravity.Net is not imported; import the module that defines this"),
    ],
)
def test_a_checkpoint_may_name_nothing_else(content, message):
    torch.save(checkpoint(**content), "a.ckpt")

    with pytest.raises(ValueError, match=message):
        module_from_checkpoint("a.ckpt")


def test_differences_are_counted_by_kind_and_the_first_are_named():
    own = {name: torch.zeros(2) for name in "abcdef"}
    found = {"a": torch.zeros(2), "b": torch.zeros(3), "x": torch.zeros(1)}

    assert mismatch(own, found) == "4 missing (c, d, e, ...), 1 not in the network (x), 1 of another shape (b)"
