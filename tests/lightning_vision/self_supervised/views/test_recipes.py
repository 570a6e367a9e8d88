"""Views by name: the papers' numbers, and what a config may write."""

import re
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_vision.base.hyperparameters import describe
from lightning_vision.self_supervised.views import RECIPES, View, views_for
from lightning_vision.self_supervised.views.recipes import byol, digits, dino, mae, moco_v2, simclr, vicreg


def test_the_papers_numbers() -> None:
    """Area, then brightness, contrast, saturation and hue, then probabilities of blur and solarisation."""

    def numbers(view: View) -> list[Any]:
        colours = [view.brightness, view.contrast, view.saturation, view.hue]
        return [view.count, view.crop, colours, view.blur, view.solarise]

    byols = [0.4, 0.4, 0.2, 0.1]
    assert [*map(numbers, simclr())] == [[2, (0.08, 1.0), [0.8, 0.8, 0.8, 0.2], 0.5, 0.0]]
    assert [*map(numbers, simclr(strength=0.5))] == [[2, (0.08, 1.0), [0.4, 0.4, 0.4, 0.1], 0.5, 0.0]]
    assert [*map(numbers, moco_v2())] == [[2, (0.2, 1.0), [0.4, 0.4, 0.4, 0.1], 0.5, 0.0]]
    assert [*map(numbers, byol())] == [[1, (0.08, 1.0), byols, 1.0, 0.0], [1, (0.08, 1.0), byols, 0.1, 0.2]]
    assert [*map(numbers, vicreg())] == [[2, (0.08, 1.0), byols, 0.5, 0.1]]
    assert [*map(numbers, dino(224, 96))] == [
        [1, (0.4, 1.0), byols, 1.0, 0.0],
        [1, (0.4, 1.0), byols, 0.1, 0.2],
        [8, (0.05, 0.4), byols, 0.5, 0.0],
    ]
    assert [(view.count, view.crop, view.flip, view.colours) for view in mae()] == [(1, (0.2, 1.0), 0.5, False)]
    assert [(view.count, view.crop, view.flip, view.saturation, view.grey) for view in digits()] == [
        (2, (0.4, 1.0), 0.0, 0.0, 0.0)
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_makes_views_of_the_images_own_size(name: str) -> None:
    kinds = views_for(name)
    made = kinds(torch.randn(2, 3, 20, 20), torch.rand(2, kinds.draws), (0.5,) * 3, (0.2,) * 3)

    assert {tuple(view.shape[2:]) for view in made} == ({(20, 20), (96, 96)} if name == "dino" else {(20, 20)})


def test_views_are_listed_as_objects_as_arguments_and_as_classes() -> None:
    view = View(size=(8, 9), crop=(0.5, 1.0), hue=0.1)
    arguments = {"size": [8, 9], "crop": [0.5, 1.0], "hue": 0.1}
    path = "lightning_vision.self_supervised.views.View"
    written = [view, arguments, {"class_path": path, "init_args": arguments}, {"class_path": "View"}]

    assert views_for(written).views == (view, view, view, View())
    assert views_for(describe([view])).views == (view,)


def test_a_config_names_or_lists_views() -> None:
    def learner(views: str | list[View] = "simclr") -> Any:
        return views

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(learner, "model")
    listed = parser.instantiate(parser.parse_args(['--model.views=[{"size": 8, "crop": [0.2, 1.0]}, {"count": 2}]']))
    named = parser.instantiate(parser.parse_args(["--model.views=digits"]))

    assert views_for(listed.model.views).views == (View(size=8, crop=(0.2, 1.0)), View(count=2))
    assert views_for(named.model.views).views == tuple(digits())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "simclear",
            "views is 'simclear'; give one of simclr, moco_v2, byol, dino, vicreg, mae, digits, or a list of ",
        ),
        ([{"sizes": 8}], "views: a View has no sizes; it has size, count, crop, ratio, antialias, flip, "),
        ([{"class_path": "torch.nn.Linear"}], "views lists a torch.nn.Linear; give Views, whose arguments are size, "),
    ],
    ids=["name", "argument", "class"],
)
def test_what_is_unknown_is_refused_with_what_is_known(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        views_for(written)
