"""Recipes: how rounds are planned, trained and judged. Each is one value, chosen by name."""

from collections.abc import Mapping
from types import MappingProxyType

from training.recipes.boost import BOOST
from training.recipes.joint import JOINT
from training.recipes.recipe import PLAIN, Recipe
from training.recipes.seed import SEED
from training.recipes.sequence import SEQUENCE

__all__ = ["PLAIN", "RECIPES", "Recipe"]

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {"boost": BOOST, "seed": SEED, "joint": JOINT, "sequence": SEQUENCE}
)
