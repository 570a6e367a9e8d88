"""Random views of a batch, made on the device: every image of it is changed by numbers of its own."""

from .recipes import RECIPES, views_for
from .view import View
from .views import Views

__all__ = ["RECIPES", "View", "Views", "views_for"]
