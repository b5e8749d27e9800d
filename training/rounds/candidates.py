"""Candidate weights of a round, and the decision which of them becomes the incumbent.

Candidates lie on a line in weight space, from the incumbent to the round's weights. Near a minimum,
interpolated networks are as good as the end points, and often better (Izmailov et al., UAI 2018;
Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022).
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
"""Name of the candidate with the weights of the round's last step."""


@dataclass(frozen=True)
class CandidateWeights:
    """The weights of one candidate.

    Parameters
    ----------
    name : str
        ``raw`` (last step), ``average`` (EMA), or ``step`` and the interpolation length.
    weights : mapping of str to Tensor
        Parameters and buffers by name, on the CPU.
    stale_statistics : bool
        Whether the batch-normalisation statistics do not match the weights and must be recomputed.
    """

    name: str
    weights: Weights
    stale_statistics: bool


@dataclass(frozen=True)
class Decision:
    """Whether a round is accepted, and why.

    Parameters
    ----------
    chosen : str or None
        Name of the accepted candidate; None rolls the round back.
    best : str or None
        Name of the candidate with the lowest guard loss; None if no candidate has finite weights.
    gain : float or None
        Mean gain of the best candidate over the incumbent, see `paired_gain`; None without an
        incumbent.
    error : float or None
        Standard error of the gain; None without an incumbent.
    """

    chosen: str | None
    best: str | None
    gain: float | None
    error: float | None


def candidate_title(name: str) -> str:
    """Return the displayed name of a candidate in the journal."""
    if name.startswith("step "):
        return f"interpolated {name.removeprefix('step ')}"
    return {RAW: "last weights", "average": "EMA"}.get(name, name)


def copy_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copy all parameters and buffers of a model to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def list_candidates(
    weights: Weights, before: Weights | None, trained: Trained, policy: BoostConfig
) -> Iterator[CandidateWeights]:
    """Yield the candidates of a round whose weights are all finite.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Weights of the round's last step, on the CPU.
    before : mapping, or None
        Weights of the incumbent; None if there is no trained incumbent to interpolate with.
    trained : Trained
        Result of the round, with its EMA.
    policy : BoostConfig
        Interpolation lengths, and whether the guard is used. Without the guard there is one
        candidate: the EMA if there is one, else the last weights.
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
            if length < 1  # length 1 is the candidate itself
        ]
    for candidate in candidates:
        if all(bool(tensor.isfinite().all()) for tensor in candidate.weights.values()):
            yield candidate


def _interpolate(before: Weights, after: Weights, length: float) -> Weights:
    """Return ``before + length * (after - before)``; integer buffers are taken from `after`."""
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
    """Choose the candidate with the lowest guard loss, and accept it if its gain is significant.

    Parameters
    ----------
    sets : ValidationSets
        Validation sets that the results were computed on.
    incumbent : ValidationResult or None
        Result of the incumbent; None accepts the best candidate.
    found : mapping of str to ValidationResult
        Result of each candidate, by name.
    policy : BoostConfig
        Required gain, as a multiple of its standard error; without the guard, the candidate is
        always accepted.
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
