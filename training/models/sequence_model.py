"""Sequence model: vertebrae as sequences of slice positions, patients as sequences of vertebrae.

An image encoder of transformers maps each position to features. A bidirectional LSTM over the
positions is optional. Gated attention (Ilse, Tomczak and Welling, ICML 2018, arXiv:1802.04712)
weights the positions, and the vertebra's logit is the weighted mean of their logits. The patient
head reads all vertebrae, corrects their logits and computes the patient's logit on top of the
noisy-or. All corrections are initialised to zero: a new model's position logit is that of its
encoder, its vertebra logit a soft maximum, and its patient logit the noisy-or.

The architecture follows the competition's first place (15 positions, two-layer LSTM, a second model
over the vertebrae); the code is our own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from storage_schemas.targets import COMPETITION
from training.config import InputConfig, Pooling
from training.models.encoders import count_features, make_encoder, read_features, run_encoder
from training.models.slice_model import PRIOR, load_model

MODEL_TYPE = "cspine-sequence"
_PRIOR_LOGIT = math.log(PRIOR / (1 - PRIOR))
_LEAST_RISK = 1e-6
"""Lower bound of the summed risk, which keeps the logarithm finite."""


class CervicalSequenceConfig(PreTrainedConfig):
    """Configuration of `CervicalSequenceModel`, stored in ``config.json``.

    Parameters
    ----------
    encoder : PreTrainedConfig or dict
        Configuration of the image encoder, any of transformers with pooled features.
    positions : int
        Largest number of slices per vertebra.
    pooling : {"lstm", "attention"}
        Whether an LSTM runs over the positions before the attention pooling.
    width : int
        Hidden features of the LSTM in each direction; with ``attention``, features are projected to
        twice the width.
    layers : int
        Layers of the LSTM.
    patient_width : int
        Hidden features of the LSTM over the vertebrae in each direction.
    dropout : float
        Dropout probability before the LSTM and before the patient head.
    levels : sequence of str, optional
        Names of the levels, from head to feet; the competition's by default.
    """

    model_type = MODEL_TYPE
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012 - transformers reads it from the class

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        positions: int = 15,
        pooling: Pooling = "lstm",
        width: int = 256,
        layers: int = 2,
        patient_width: int = 32,
        dropout: float = 0.1,
        levels: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        if encoder is None:
            encoder = {"model_type": "vit"}
        if isinstance(encoder, dict):
            kind = encoder.get("model_type", "")
            encoder = AutoConfig.for_model(
                kind, **{name: value for name, value in encoder.items() if name != "model_type"}
            )
        self.encoder = encoder
        self.positions = positions
        self.pooling = pooling
        self.width = width
        self.layers = layers
        self.patient_width = patient_width
        self.dropout = dropout
        self.levels = list(levels or COMPETITION.levels)
        super().__init__(**others)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``, without the levels if they are the default."""
        found: dict[str, Any] = super().to_diff_dict()
        if self.levels == list(COMPETITION.levels):
            del found["levels"]
        return found


@dataclass
class SequenceOutput(ModelOutput):
    """Output of a sequence model.

    Parameters
    ----------
    logits : Tensor, shape (patients, targets)
        Final logits in the order of the label columns; a missing level gets a logit inferred from
        the others.
    vertebra_logits : Tensor, shape (patients, levels)
        Logit of each vertebra by itself; a learned constant for missing levels.
    position_logits : Tensor, shape (patients, levels, positions)
        Fracture logit of each position; 0 for masked positions.
    own_logits : Tensor, shape (patients, levels, positions)
        Fracture logit of each position by the encoder alone.
    weights : Tensor, shape (patients, levels, positions)
        Attention weight of each position; non-negative, with sum 1 over a vertebra and 0 if it is
        missing.
    features : Tensor, shape (patients, levels, positions, features)
        Pooled features of the encoder; 0 for masked positions.
    patches : Tensor, shape (slices, patches, features), or None
        Patch features of the encoder; None if `features` were given.
    """

    logits: Tensor | None = None
    vertebra_logits: Tensor | None = None
    position_logits: Tensor | None = None
    own_logits: Tensor | None = None
    weights: Tensor | None = None
    features: Tensor | None = None
    patches: Tensor | None = None


class CervicalSequenceModel(PreTrainedModel):
    """Sequence model of cervical fractures; see the module's description.

    Parameters
    ----------
    config : CervicalSequenceConfig
        Configuration of the model.
    """

    config_class = CervicalSequenceConfig
    main_input_name = "pixel_values"
    base_model_prefix = "sequence"
    _no_split_modules: list[str] = []  # noqa: RUF012 - transformers reads it from the class
    _supports_sdpa = True

    def __init__(self, config: CervicalSequenceConfig) -> None:
        super().__init__(config)
        self.encoder = make_encoder(config.encoder)
        features = count_features(config.encoder)
        self.classifier = nn.Linear(features, 1)
        self.positions = PositionPooling(features, config)
        self.patient = PatientHead(2 * config.width, config)
        # The loss is a mean over the batch, so `Trainer` must not scale it (transformers 5.9+).
        self.accepts_loss_kwargs = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier:
            init.constant_(module.bias, _PRIOR_LOGIT)
        elif isinstance(module, PositionPooling | PatientHead):
            module.begin()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        valid: Tensor | None = None,
        features: Tensor | None = None,
        **_: Any,
    ) -> SequenceOutput:
        """Compute logits from pixels or from encoder features.

        Parameters
        ----------
        pixel_values : Tensor, shape (slices, channels, size, size)
            Inputs of all valid positions, in order of patient, level and position.
        valid : Tensor, shape (patients, levels, positions), bool
            Mask of the positions in use; they come first in each vertebra.
        features : Tensor, shape (patients, levels, positions, features)
            Encoder features, instead of pixels.
        """
        if valid is None or (pixel_values is None) == (features is None):
            raise ValueError("forward needs `valid`, and either `pixel_values` or `features`")
        patches = None
        if pixel_values is not None:
            found = read_features(run_encoder(self.encoder, pixel_values))
            patches = found.patches
            features = found.pooled.new_zeros(*valid.shape, found.pooled.shape[-1])
            features = features.masked_scatter(valid[..., None], found.pooled)
        assert features is not None
        own = self.classifier(features)[..., 0]
        logits, weights, summary, vertebrae = self.positions(features, own, valid)
        present = valid.any(dim=2)
        both, alone = self.patient(summary, vertebrae, present)
        return SequenceOutput(
            logits=both,
            vertebra_logits=alone,
            position_logits=logits,
            own_logits=own.masked_fill(~valid, 0),
            weights=weights,
            features=features,
            patches=patches,
        )


class PositionPooling(nn.Module):
    """LSTM and gated attention over the positions of a vertebra.

    Parameters
    ----------
    features : int
        Number of features of the encoder.
    config : CervicalSequenceConfig
        Configuration of the model.
    """

    def __init__(self, features: int, config: CervicalSequenceConfig) -> None:
        super().__init__()
        both = 2 * config.width
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(features)
        if config.pooling == "lstm":
            self.lstm = nn.LSTM(
                features, config.width, config.layers, batch_first=True, bidirectional=True
            )
        else:
            self.project = nn.Linear(features, both)
        self.context = nn.Linear(both, 1)
        self.gate, self.signal = nn.Linear(both, both), nn.Linear(both, both)
        self.score = nn.Linear(both, 1)
        self.sharpness = nn.Parameter(torch.ones(()))

    def begin(self) -> None:
        """Initialise all corrections to zero, so that position logits are those of the encoder."""
        for layer in (self.context, self.score):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)
        init.ones_(self.sharpness)

    def forward(
        self, features: Tensor, own: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits and weights of the positions, and summary and logit of each vertebra."""
        state = self._read(self.dropout(self.norm(features)), valid)
        logits = (own + self.context(state)[..., 0]).masked_fill(~valid, 0)
        gated = torch.tanh(self.signal(state)) * torch.sigmoid(self.gate(state))
        score = self.score(gated)[..., 0] + self.sharpness * logits
        lowest = torch.finfo(score.dtype).min
        weights = score.masked_fill(~valid, lowest).softmax(dim=-1).masked_fill(~valid, 0)
        summary = (weights[..., None] * state).sum(dim=-2)
        return logits, weights, summary, (weights * logits).sum(dim=-1)

    def _read(self, features: Tensor, valid: Tensor) -> Tensor:
        if hasattr(self, "project"):
            return functional.gelu(self.project(features))
        present = valid.any(dim=-1)
        counts = valid.sum(dim=-1)[present].cpu()
        state = features.new_zeros(*valid.shape, 2 * self.lstm.hidden_size)
        if not len(counts):
            return state
        packed = pack_padded_sequence(
            features[present], counts, batch_first=True, enforce_sorted=False
        )
        read, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=valid.shape[-1]
        )
        return state.masked_scatter(present[..., None, None], read.to(state.dtype))


class PatientHead(nn.Module):
    """LSTM over the vertebrae of a patient, with an embedding for missing ones.

    Parameters
    ----------
    summary : int
        Number of features of a vertebra.
    config : CervicalSequenceConfig
        Configuration of the model.
    """

    def __init__(self, summary: int, config: CervicalSequenceConfig) -> None:
        super().__init__()
        width = config.patient_width
        levels = len(config.levels)
        self.expected = nn.Parameter(torch.zeros(levels))
        self.missing = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(torch.zeros(levels, width))
        self.dropout = nn.Dropout(config.dropout)
        self.summary = nn.Linear(summary + 1, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.levels = nn.Linear(2 * width, 1)
        self.overall = nn.Linear(4 * width, 1)

    def begin(self) -> None:
        """Initialise all corrections to zero."""
        init.constant_(self.expected, _PRIOR_LOGIT)
        for parameter in (self.missing, self.place):
            init.normal_(parameter, std=0.02)
        for layer in (self.levels, self.overall):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)

    def forward(self, summary: Tensor, logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final logits of all targets, and the logits of each vertebra by itself."""
        alone = torch.where(present, logits, self.expected.to(logits.dtype))
        hidden = self.summary(self.dropout(torch.cat([summary, logits[..., None]], dim=-1)))
        hidden = torch.where(present[..., None], hidden, self.missing.to(hidden.dtype))
        state, _ = self.lstm(torch.tanh(hidden + self.place))
        levels = alone + self.levels(state)[..., 0]
        pooled = torch.cat([state.mean(dim=1), state.amax(dim=1)], dim=-1)
        overall = noisy_or(levels) + self.overall(pooled)[..., 0]
        return torch.cat([overall[:, None], levels], dim=1), alone


def noisy_or(logits: Tensor) -> Tensor:
    """Compute the logit of at least one fracture, with independent levels.

    Parameters
    ----------
    logits : Tensor, shape (patients, levels)
        Logits of the levels.

    Returns
    -------
    Tensor, shape (patients,)
        Logit of the patient.
    """
    # With r the sum of -log(1 - p), the odds are exp(r) - 1.
    risk = functional.softplus(logits).sum(dim=-1).clamp(min=_LEAST_RISK)
    return risk + torch.log(-torch.expm1(-risk))


def load_sequence_model(folder: Path) -> tuple[CervicalSequenceModel, InputConfig]:
    """Load a folder written by `training.models.slice_model.save_model`, with strict checks.

    Raises
    ------
    UsageError
        ``model-invalid`` if a weight is missing, unexpected or of another shape, or if the input
        settings do not fit the encoder.
    """
    model, inputs = load_model(folder, CervicalSequenceModel)
    return cast(CervicalSequenceModel, model), inputs


AutoConfig.register(MODEL_TYPE, CervicalSequenceConfig, exist_ok=True)
AutoModel.register(CervicalSequenceConfig, CervicalSequenceModel, exist_ok=True)
