"""Recipes: how a round's slices change the incumbent. Each is one function, chosen by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from training.recipes.seed import train_seed_round

TrainRound = Callable[..., float]

RECIPES: Mapping[str, TrainRound] = MappingProxyType({"seed": train_seed_round})
