"""What a recipe is."""

from collections.abc import Callable
from dataclasses import dataclass

from training.config import BoostConfig, RunConfig


@dataclass(frozen=True)
class Recipe:
    """How rounds are planned, trained and judged.

    Parameters
    ----------
    kind : str
        Of `training.kinds.KINDS`: the model that is made.
    policy : callable
        From the run's settings, what of them keeps a round from making the model worse.
    one_round : bool
        All rounds' patients at once, with all rounds' steps.
    """

    kind: str
    policy: Callable[[RunConfig], BoostConfig]
    one_round: bool = False


PLAIN = BoostConfig(replay=0, average=0, rate_fall=1, layer_decay=1, step_lengths=(), guarded=False)
"""Nothing of it."""
