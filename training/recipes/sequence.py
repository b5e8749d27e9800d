"""``sequence``: the winners' shape, in rounds that do not get worse on the guard.

One vertebra is a sequence of positions, the patient seven vertebrae; see
`training.sequence_model`.
"""

from training.recipes.recipe import Recipe

SEQUENCE = Recipe(kind="cspine-sequence", policy=lambda config: config.boost)
