"""Every test here that takes a `subject`, and does not choose some itself, runs once for each public callback."""

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch

from support.conformance.subjects import Subject, subjects


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "subject" in metafunc.fixturenames and "subject" not in chosen:
        metafunc.parametrize("subject", subjects(), ids=lambda subject: subject.name)


@pytest.fixture(autouse=True)
def named(request: pytest.FixtureRequest, record_property) -> None:
    """Charge the test's seconds to its callback."""
    subject = getattr(getattr(request.node, "callspec", None), "params", {}).get("subject")
    if isinstance(subject, Subject):
        record_property("callback", subject.name)


@pytest.fixture(scope="session")
def compiler() -> None:
    """The first compilation of a process patches torch for good, which is no leak of a callback."""
    torch.compile(torch.nn.Identity(), backend="eager")(torch.zeros(1))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lightning announces devices and gives advice at each of hundreds of fits."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
