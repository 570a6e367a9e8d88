"""Activation sparsity: logged fractions are those counted by hand, over all batches and both processes."""

import csv

import pytest
import timm
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_vision.callbacks import ActivationSparsity, count_nonzero
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class MLP(Plain):
    """Three hidden ReLU layers of random weights."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 256), act(), nn.Linear(256, 256), act(), nn.Linear(256, 10)
        )


def counted(module, loader, tolerance=0.0):
    """By hand: for each activation the share of entries that are not zero."""
    shares, module = {}, module.eval()
    for index in (2, 4):
        outputs = torch.cat([module.network[: index + 1](image).detach() for image, _ in loader])
        shares[f"network.{index}"] = float((outputs.abs() > tolerance).double().mean())
    return shares


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_row_111_the_logged_fraction_is_the_counted_one_and_a_half_at_random(tolerance, tmp_path):
    module, loader = MLP(), plain_loader(50, batch_size=8)
    trainer = quiet_trainer(callbacks=[ActivationSparsity(tolerance=tolerance)], default_root_dir=tmp_path)
    (logged,) = trainer.validate(module, loader, verbose=False)
    by_hand = counted(module, loader, tolerance)

    assert {name: logged[f"val/nonzero/{name}"] for name in by_hand} == pytest.approx(by_hand, abs=1e-7)
    assert logged["val/nonzero"] == pytest.approx(sum(by_hand.values()) / 2, abs=1e-7)
    assert tolerance or abs(logged["val/nonzero"] - 0.5) < 0.05


def test_the_mean_over_the_last_short_batch_or_over_one_batch_would_be_noticed(tmp_path):
    module, loader = MLP(), plain_loader(50, batch_size=8)
    batches = [counted(module, [batch])["network.2"] for batch in loader]
    (logged,) = quiet_trainer(callbacks=[ActivationSparsity()], default_root_dir=tmp_path).test(
        module, loader, verbose=False
    )

    assert abs(logged["test/nonzero/network.2"] - sum(batches) / len(batches)) > 1e-6
    assert abs(logged["test/nonzero/network.2"] - batches[0]) > 1e-6


def test_each_mlp_of_a_transformer_is_counted_and_gates_are_not():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2)
    squeezing = timm.create_model("seresnet18")

    assert list(ActivationSparsity().watched(vit)) == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert not [name for name in ActivationSparsity().watched(squeezing) if name.endswith("se.fc1")]
    assert list(ActivationSparsity(layers="blocks.*.mlp.fc?").watched(vit)) == [
        f"blocks.{block}.mlp.fc{number}" for block in (0, 1) for number in (1, 2)
    ]


def test_a_table_of_the_latest_validation_is_written(tmp_path, capsys):
    module, loader = MLP(), plain_loader(12)
    trainer = quiet_trainer(callbacks=[ActivationSparsity()], logger=CSVLogger(tmp_path), max_epochs=2)
    trainer.fit(module, loader, loader)
    with open(tmp_path / "lightning_logs/version_0/report/val_activation_sparsity.csv") as file:
        rows = list(csv.reader(file))
    latest = trainer.callback_metrics

    assert rows[0] == ["layer", "entries", "nonzero", "fraction"]
    assert [row[:2] for row in rows[1:]] == [["network.2", "3072"], ["network.4", "3072"]]
    assert [float(row[3]) for row in rows[1:]] == pytest.approx(
        [float(latest[f"val/nonzero/{row[0]}"]) for row in rows[1:]], abs=1e-6
    )
    assert "network.2" not in capsys.readouterr().out
    trainer.validate(module, loader, verbose=False)
    assert "%  network.2" in capsys.readouterr().out


def on_a_rank(folder):
    import torch.distributed as dist

    module, loader = MLP(), ResumableLoader(labelled_images(20), 4, dist.get_rank(), 2)
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "default_root_dir": folder}
    (logged,) = quiet_trainer(callbacks=[ActivationSparsity()], **options).validate(module, loader, verbose=False)
    return logged


def test_two_processes_log_the_sum_over_both(two_ranks, tmp_path):
    first, second = two_ranks(on_a_rank, tmp_path)
    by_hand = counted(MLP(), plain_loader(20))

    assert first == second
    assert {name: first[f"val/nonzero/{name}"] for name in by_hand} == pytest.approx(by_hand, abs=1e-7)


def test_counts_of_a_tensor():
    assert count_nonzero(torch.tensor([[0.0, -0.2], [0.1, 3.0]])).tolist() == [3, 4]
    assert count_nonzero(torch.tensor([[0.0, -0.2], [0.1, 3.0]]), tolerance=0.1).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": -1.0}, "ActivationSparsity: tolerance is -1.0; give a finite number of at least 0."),
        ({"every_n_epochs": -1}, "ActivationSparsity: every_n_epochs is -1; give a whole number of at least 0."),
        ({"layers": 3}, "ActivationSparsity: layers is 3; give a pattern such as 'blocks.*.act', or a list of them."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        ActivationSparsity(**settings)

    assert message == str(error.value)


def test_a_module_without_activations_is_refused_before_it_trains():
    with pytest.raises(ValueError) as error:
        quiet_trainer(callbacks=[ActivationSparsity()], max_epochs=1).fit(MLP(nn.Tanh), plain_loader(6))

    assert str(error.value) == (
        "ActivationSparsity: MLP has no MLP block with an activation and neither ReLU nor GELU layers; name layers "
        "with layers=, or make its activations layers instead of functions."
    )


def test_layers_that_no_forward_calls_are_told_of(tmp_path):
    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.spare = torch.nn.ReLU()

    trainer = quiet_trainer(callbacks=[ActivationSparsity(layers="spare")], default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="^ActivationSparsity: spare put out nothing, so nothing was counted there"):
        trainer.validate(Unused(), plain_loader(6), verbose=False)

    assert not any("nonzero" in name for name in trainer.callback_metrics)
