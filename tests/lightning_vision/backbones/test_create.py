"""`create` and `names`: what is handed over, and each refusal with its whole sentence."""

import importlib
import re
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_vision.backbones import create, names

create_module = importlib.import_module("lightning_vision.backbones.create")


def test_names_lists_ours_among_timms() -> None:
    assert names("resnet*_cifar") == [f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56, 110)]
    assert {"resnet18", "resnet8_cifar"} <= set(names())


def test_create_builds_any_timm_name_with_classes_and_channels() -> None:
    network = create("resnet10t", num_classes=4, in_channels=1)

    assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


def test_settings_reach_the_constructor() -> None:
    network = create(
        "cct_2_3x2_32", num_classes=4, in_channels=1, drop_rate=0.25, drop_path_rate=0.5, img_size=8, pos_emb="sine"
    )

    assert network.head_drop.p == 0.25
    assert network.blocks[-1].drop_path.drop_prob == 0.5
    assert network.grid == (2, 2)
    assert network.sine


def test_feature_maps_on_request() -> None:
    network = create("resnet8_cifar", num_classes=4, in_channels=1, features_only=True)

    assert [level.shape[1] for level in network(torch.zeros(1, 1, 8, 8))] == [16, 32, 64]


def test_a_ready_module_passes_through() -> None:
    module = nn.Linear(3, 4)

    assert create(module, num_classes=4, in_channels=1) is module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name_or_module": "resnet8_cifr"},
            "unknown backbone 'resnet8_cifr'; did you mean resnet8_cifar or resnet56_cifar or resnet44_cifar?",
        ),
        ({"name_or_module": "qqqq"}, "unknown backbone 'qqqq'"),
        ({"name_or_module": ""}, "unknown backbone ''"),
        (
            {"name_or_module": "vgg11_bn.nope"},
            "backbone 'vgg11_bn' has no weights tagged 'nope'; its tags are: vgg11_bn.tv_in1k",
        ),
        (
            {"name_or_module": "resnet8_cifar.tv"},
            "backbone 'resnet8_cifar' has no weights tagged 'tv'; its tags are: none",
        ),
        (
            {"pretrained": True},
            "no pretrained weights exist for backbone 'resnet8_cifar'; pass pretrained=False",
        ),
        (
            {"name_or_module": "allcnn_c", "drop_path_rate": 0.1},
            "backbone 'allcnn_c' takes no drop_path_rate; leave drop_path_rate out or choose another backbone",
        ),
        (
            {"depht": 14},
            "backbone 'resnet8_cifar' takes no depht; leave depht out or choose another backbone",
        ),
        ({"name_or_module": 3}, "backbone must be a name or an nn.Module, got 3"),
        (
            {"name_or_module": nn.Identity(), "pretrained": True, "drop_rate": 0.1},
            "pretrained, drop_rate can only be set for a backbone given by name, not for a ready Identity; "
            "set it when you build the module",
        ),
    ],
)
def test_create_refuses_in_one_sentence(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        create(**{"name_or_module": "resnet8_cifar", "num_classes": 4, "in_channels": 1} | arguments)


def test_a_ready_module_for_another_number_of_classes_is_refused() -> None:
    module = timm.create_model("resnet8_cifar", num_classes=10)
    message = (
        "the ResNetCIFAR given as backbone has num_classes=10, but 4 classes are needed; "
        "build it with that number or call its reset_classifier"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        create(module, num_classes=4, in_channels=3)
    module.reset_classifier(4)

    assert create(module, num_classes=4, in_channels=3) is module


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = (
        r"^backbone 'resnet10t' could not be fetched \(\w+\); when offline, pass weights=FILE \(--model.weights FILE\) "
        r"with a copy of https://[\w./-]+/timm/resnet10t\.c3_in1k/resolve/main/model\.safetensors, or pretrained=False$"
    )
    with pytest.raises(ConnectionError, match=message):
        create("resnet10t", num_classes=4, in_channels=1, pretrained=True)
    with pytest.raises(
        ConnectionError, match=r"^backbone 'hf-hub:no/such' could not be fetched \(\w+\); when offline, c"
    ):
        create("hf-hub:no/such", num_classes=4, in_channels=1)


def test_a_hub_that_does_not_answer_is_asked_once_and_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(create_module, "_PATIENCE", 0.2)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes the call and stays silent
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match=r"^backbone 'resnet10t' could not be fetched \(\w*Timeout\w*\)"):
            create("resnet10t", num_classes=4, in_channels=1, pretrained=True)

    assert time.monotonic() - begin < 3


def test_weights_that_an_earlier_run_fetched_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--timm--resnet10t.c3_in1k"
    (kept / "snapshots" / "first").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("first")
    weights = timm.create_model("resnet10t").state_dict()
    save_file(weights, kept / "snapshots" / "first" / "model.safetensors")
    network = create("resnet10t", num_classes=4, in_channels=3, pretrained=True)

    assert torch.equal(network.layer4[0].conv1.weight, weights["layer4.0.conv1.weight"])
    assert network.fc.out_features == 4


def test_an_error_inside_a_network_is_not_taken_for_the_users() -> None:
    with pytest.raises(TypeError, match="'wrong'"):
        create("resnet10t", num_classes=4, in_channels=1, norm_layer=lambda *_, **__: nn.BatchNorm2d(8, wrong=1))
