"""``boost``: rounds that do not get worse on the guard; `training.boosting` tells how."""

from training.recipes.recipe import Recipe

BOOST = Recipe(kind="slice", policy=lambda config: config.boost)
