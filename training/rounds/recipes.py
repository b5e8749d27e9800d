"""Recipes: how rounds are planned, trained and validated, each one value with a name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from presentation.setting_types import convert
from training.config import BoostConfig, RunConfig

if TYPE_CHECKING:  # the command line reads the names of the recipes without torch
    from training.optimization.trainer import Trained
    from training.rounds.candidates import Decision


@dataclass(frozen=True)
class Recipe:
    """How rounds are planned, trained and validated.

    Parameters
    ----------
    kind : str
        Kind of model that is trained, a name in `training.models.kinds.KINDS`.
    policy : callable
        Maps the settings of the run to the boosting settings that the recipe uses.
    one_round : bool
        Whether all patients are trained on in one round, with the steps of all rounds.
    train : callable or None
        Function that trains the model on a round, with the parameters of
        `training.models.kinds.Kind.train`; None for that of the kind.
    decide : callable or None
        Function that accepts a candidate or none, with the parameters of
        `training.rounds.candidates.decide`; None for that function.
    """

    kind: str
    policy: Callable[[RunConfig], BoostConfig]
    one_round: bool = False
    train: Callable[..., "Trained"] | None = None
    decide: Callable[..., "Decision"] | None = None


PLAIN = BoostConfig(
    replay=0, ema_window=0, rate_fall=1, layer_decay=1, step_lengths=(), guarded=False
)
"""No replay, no EMA, no interpolation and no guard: every round is accepted."""

BOOST = Recipe(kind="slice", policy=lambda config: config.boost)
"""Guarded rounds whose validation loss never increases; see `training.rounds.boosting`."""

SEED = Recipe(kind="slice", policy=lambda config: PLAIN)
"""Plain continuation, the original author's procedure.

Every round continues from the last round's weights with a new optimizer and schedule, on its own
patients only, without replay or validation decisions."""

JOINT = Recipe(kind="slice", policy=lambda config: PLAIN, one_round=True)
"""All patients in one round, with the steps of all rounds together.

This is an upper bound for rounds, and the better choice if the whole cohort is available and
fits on the disk."""

SEQUENCE = Recipe(kind="cspine-sequence", policy=lambda config: config.boost)
"""Guarded rounds of a sequence model, the architecture of the competition's winners.

A vertebra is a sequence of slice positions, and a patient a sequence of vertebrae; see
`training.models.sequence_model`."""

RECIPES: dict[str, Recipe] = {
    "boost": BOOST,
    "seed": SEED,
    "joint": JOINT,
    "sequence": SEQUENCE,
}
"""Recipes by the name that ``--recipe`` takes."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe with a name.

    Raises
    ------
    UsageError
        ``config-invalid`` if `RECIPES` has none with that name.
    """
    return RECIPES[convert(name, str, "recipe", RECIPES)]
