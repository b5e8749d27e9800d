"""``seed``: plain continuation, as the original author did it.

Every round goes on from the last one's weights with a fresh optimizer and schedule, on its own
patients only. Whatever comes out is the next incumbent; nothing is tried, refused or replayed.
"""

from transformers import PreTrainedModel

from training.config import InputConfig, RunConfig
from training.inputs import index_slices
from training.shards import RoundShards
from training.trainer import Log, train_slices


def train_seed_round(
    model: PreTrainedModel,
    shards: RoundShards,
    *,
    inputs: InputConfig,
    config: RunConfig,
    number: int,
    log: Log,
) -> float:
    """Train one round, in place.

    Parameters
    ----------
    model : PreTrainedModel
        The incumbent.
    shards : RoundShards
        Of this round.
    inputs : InputConfig
        The model's own.
    config : RunConfig
    number : int
        Of the round, from 1; with the run's seed it decides every draw.
    log : callable
        See `training.trainer.train_slices`.

    Returns
    -------
    float
        The mean training loss.
    """
    crops = range(len(shards.vertebrae))
    return train_slices(
        model,
        shards,
        index_slices(shards, crops, inputs.trim_mm, config.train.weak_target),
        inputs=inputs,
        augment=config.augment,
        config=config.train,
        seed=1000 * config.seed + number,
        log=log,
    )
