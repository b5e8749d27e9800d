"""What could be the next incumbent after a round, and which of it is.

Candidates lie on a line in the space of weights, from the incumbent towards what the round trained;
near one minimum such mixtures are networks as good as their ends, and often better (Izmailov et
al., UAI 2018; Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.config import BoostConfig
from training.optimization.trainer import Trained
from training.rounds.validation import ValidationResult, ValidationSets, paired_gain

Weights = Mapping[str, Tensor]
RAW = "raw"
"""Name of the candidate that is what the round trained, as it is."""


@dataclass(frozen=True)
class CandidateWeights:
    """One set of weights.

    Parameters
    ----------
    name : str
        ``raw``, ``average``, or ``step`` and its length.
    weights : mapping of str to Tensor
        Parameters and statistics, on the CPU.
    stale_statistics : bool
        Whether it was put together, so that its statistics are not its own.
    """

    name: str
    weights: Weights
    stale_statistics: bool


@dataclass(frozen=True)
class Decision:
    """What becomes of a round.

    Parameters
    ----------
    chosen : str or None
        The accepted candidate; None rolls the round back.
    best : str or None
        The candidate of the lowest guard loss; None where all of them are no numbers.
    gain, error : float or None
        Of the best one over the incumbent, see `paired_gain`; None where there is no incumbent.
    """

    chosen: str | None
    best: str | None
    gain: float | None
    error: float | None


def copy_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """All parameters and statistics of a model, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def list_candidates(
    weights: Weights, before: Weights | None, trained: Trained, policy: BoostConfig
) -> Iterator[CandidateWeights]:
    """The candidates of a round, those left out that hold a weight which is no number.

    Parameters
    ----------
    weights : mapping of str to Tensor
        As the round left them, on the CPU.
    before : mapping, or None
        The incumbent's weights; None where it was not trained yet, and is not worth a mixture.
    trained : Trained
    policy : BoostConfig
        Without the guard there is but one candidate: the average where there is one, or else the
        weights as they are.
    """
    raw = CandidateWeights(RAW, weights, stale_statistics=False)
    new = raw
    if trained.ema is not None:
        ema = {name: tensor.cpu() for name, tensor in trained.ema.items()}
        new = CandidateWeights("average", {**raw.weights, **ema}, stale_statistics=True)
    candidates = [new] if new is raw or not policy.guarded else [raw, new]
    if before is not None and policy.guarded:
        candidates += [
            CandidateWeights(
                f"step {length:g}", _interpolate(before, new.weights, length), stale_statistics=True
            )
            for length in policy.step_lengths
            if length < 1  # at 1 it is the new one itself
        ]
    for candidate in candidates:
        if all(bool(tensor.isfinite().all()) for tensor in candidate.weights.values()):
            yield candidate


def _interpolate(before: Weights, after: Weights, length: float) -> Weights:
    """``before + length * (after - before)``; what is counted and not learnt stays as after."""
    return {
        name: torch.lerp(before[name], tensor, length) if tensor.is_floating_point() else tensor
        for name, tensor in after.items()
    }


def decide(
    sets: ValidationSets,
    incumbent: ValidationResult | None,
    found: Mapping[str, ValidationResult],
    policy: BoostConfig,
) -> Decision:
    """Choose the candidate of the lowest guard loss; accept it where its gain is beyond doubt.

    Parameters
    ----------
    sets : ValidationSets
    incumbent : ValidationResult or None
        None where there is nothing to protect yet: then the best candidate is accepted.
    found : mapping of str to ValidationResult
        Of each candidate.
    policy : BoostConfig
        Says how much doubt; without the guard whatever was trained is accepted.
    """
    if not found:
        return Decision(None, None, None, None)
    best = min(found, key=lambda name: found[name].loss)
    if incumbent is None:
        return Decision(best, best, None, None)
    gain, error = paired_gain(sets, incumbent, found[best])
    enough = gain > policy.caution * error and found[best].loss < incumbent.loss
    accepted = enough or not policy.guarded
    return Decision(best if accepted else None, best, gain, error)
