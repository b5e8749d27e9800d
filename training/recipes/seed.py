"""``seed``: plain continuation, as the original author did it.

Every round goes on from the last one's weights with a fresh optimizer and schedule, on its own
patients only. Whatever comes out is the next incumbent; nothing is tried, refused or replayed.
"""

from training.recipes.recipe import PLAIN, Recipe

SEED = Recipe(kind="slice", policy=lambda config: PLAIN)
