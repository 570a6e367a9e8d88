"""Metrics are put back by what torchmetrics keeps private; red here means that torchmetrics has changed that."""

import warnings

import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_vision.callbacks.hooks._metric_states import read_metrics, write_metrics


def counted(*values):
    metric = MeanMetric()
    for value in values:
        metric.update(value)
    return nn.ModuleDict({"mean": metric})


def test_a_metric_that_is_put_back_continues_as_if_never_left():
    saved = read_metrics(counted(1.0, 2.0), ())
    module = counted(50.0, 60.0, 70.0)
    assert module["mean"].compute() == 60.0

    write_metrics(module, saved)
    assert (module["mean"].update_count, module["mean"].compute()) == (2, 1.5)
    module["mean"].update(6.0)
    assert (module["mean"].update_count, module["mean"].compute()) == (3, 3.0)


def test_a_metric_that_is_put_back_does_not_warn_that_it_was_never_updated():
    module = counted()
    write_metrics(module, read_metrics(counted(1.0, 2.0), ()))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module["mean"].compute() == 1.5


def test_the_private_attributes_mean_what_we_take_them_for():
    metric = counted(1.0, 3.0)["mean"]
    assert (vars(metric)["_update_count"], vars(metric)["_computed"]) == (2, None)

    assert torch.equal(metric.compute(), vars(metric)["_computed"])
    metric._computed = torch.tensor(7.0)
    assert metric.compute() == 7.0
