"""``joint``: all patients at once, with as many steps as all rounds together.

What rounds would reach if nothing were ever forgotten; where the whole cohort is there at once and
fits on the disk, the better choice.
"""

from training.recipes.recipe import PLAIN, Recipe

JOINT = Recipe(kind="slice", policy=lambda config: PLAIN, one_round=True)
