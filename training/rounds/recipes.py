"""Recipes: how rounds are planned, trained and validated. Each is one value, chosen by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from presentation.settings import convert
from training.config import BoostConfig, RunConfig


@dataclass(frozen=True)
class Recipe:
    """How rounds are planned, trained and validated.

    Parameters
    ----------
    kind : str
        Name of the kind of model that is trained, from `training.models.kinds.KINDS`.
    policy : callable
        Takes the settings of the run and returns the part of them that keeps a round from making
        the model worse.
    one_round : bool
        Whether the patients of all rounds train at once, with the steps of all rounds.
    """

    kind: str
    policy: Callable[[RunConfig], BoostConfig]
    one_round: bool = False


PLAIN = BoostConfig(
    replay=0, ema_window=0, rate_fall=1, layer_decay=1, step_lengths=(), guarded=False
)
"""No replay, no averaging, no candidates and no guard: every round is accepted."""

BOOST = Recipe(kind="slice", policy=lambda config: config.boost)
"""Rounds whose loss on the guard never rises; `training.rounds.boosting` describes them."""

SEED = Recipe(kind="slice", policy=lambda config: PLAIN)
"""Plain continuation, as the original author did it.

Every round continues from the last one's weights with a new optimizer and schedule, on its own
patients only. Nothing is compared, refused or replayed.
"""

JOINT = Recipe(kind="slice", policy=lambda config: PLAIN, one_round=True)
"""All patients at once, with as many steps as all rounds together.

An upper bound for rounds, and the better choice where the whole cohort is available at once and
fits on the disk.
"""

SEQUENCE = Recipe(kind="cspine-sequence", policy=lambda config: config.boost)
"""The competition winners' shape, in rounds whose loss on the guard never rises.

A vertebra is a sequence of slice positions and a patient seven vertebrae; see
`training.models.sequence_model`.
"""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {"boost": BOOST, "seed": SEED, "joint": JOINT, "sequence": SEQUENCE}
)
"""Every recipe by the name that ``--recipe`` takes."""


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises
    ------
    UsageError
        ``config-invalid`` where `RECIPES` has none of that name.
    """
    return RECIPES[convert(name, str, "recipe", RECIPES)]
