"""The winners' shape: a vertebra read as a sequence of positions, a patient as seven vertebrae.

An image encoder of transformers turns each position into features. Over the positions runs a
bidirectional LSTM, or nothing; a gated attention (Ilse, Tomczak and Welling, ICML 2018,
arXiv:1802.04712) then weighs them, and the vertebra's logit is the weighted mean of the positions'
logits. The patient head reads the seven vertebrae, corrects their logits, and answers for the
patient beside their noisy-or. Every correction starts at zero, so a new model is no worse than its
parts: each position says what its encoder says, a vertebra is a soft maximum, a patient a noisy-or.

The shape is that of the competition's first place (15 positions, a two-layer LSTM, a second model
over the seven vertebrae); nothing of its code is here.
"""

import math
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

from storage_schemas.vertebrae import CERVICAL, LABEL_COLUMNS
from training.config import InputConfig, Pooling
from training.models.encoders import count_features, make_encoder, read_features, run_encoder
from training.models.slice_model import PRIOR, load_model

MODEL_TYPE = "cspine-sequence"
_PRIOR_LOGIT = math.log(PRIOR / (1 - PRIOR))
_LEAST_RISK = 1e-6
"""What at least the levels of a patient add up to, so that the logarithm has a value."""


class CervicalSequenceConfig(PreTrainedConfig):
    """The configuration of `CervicalSequenceModel`, as it stands in ``config.json``.

    Parameters
    ----------
    encoder : PreTrainedConfig or dict
        Of the image encoder; any of transformers with features of whole inputs.
    positions : int
        Slices of a vertebra that are looked at, at most.
    pooling : {"lstm", "attention"}
        Whether positions read each other before they are weighed.
    width, layers : int
        Hidden features, a direction, and layers of the LSTM; of ``attention``, twice the width is
        what the features are projected to.
    patient_width : int
        Hidden features, a direction, of the LSTM over the seven vertebrae.
    dropout : float
        Before the LSTM and the patient head.
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
        super().__init__(**others)


@dataclass
class SequenceOutput(ModelOutput):
    """What the model says of some patients.

    Parameters
    ----------
    logits : Tensor, shape (patients, 8)
        In the order of `LABEL_COLUMNS`; a missing level has the one that the others suggest.
    vertebra_logits : Tensor, shape (patients, 7)
        Of each vertebra on its own; of a missing one, what is expected of that level.
    position_logits : Tensor, shape (patients, 7, positions)
        Whether the fracture is seen there; 0 where there is no position.
    own_logits : Tensor, shape (patients, 7, positions)
        The same, by the encoder alone, which does not hear of the other positions.
    weights : Tensor, shape (patients, 7, positions)
        Of each position in its vertebra: at least 0, their sum 1, or 0 in a missing vertebra.
    features : Tensor, shape (patients, 7, positions, features)
        Of the encoder, 0 where there is no position.
    patches : Tensor, shape (slices, patches, features), or None
        Of the encoder, where it ran.
    """

    logits: Tensor | None = None
    vertebra_logits: Tensor | None = None
    position_logits: Tensor | None = None
    own_logits: Tensor | None = None
    weights: Tensor | None = None
    features: Tensor | None = None
    patches: Tensor | None = None


class CervicalSequenceModel(PreTrainedModel):
    """See the module.

    Parameters
    ----------
    config : CervicalSequenceConfig
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
        # A loss that is a mean over the batch: `Trainer` is not to scale it (transformers 5.9+).
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
        """Read patients, from pixels or from features that the encoder gave before.

        Parameters
        ----------
        pixel_values : Tensor, shape (slices, channels, size, size)
            Of all valid positions of all vertebrae of all patients, in this order.
        valid : Tensor, shape (patients, 7, positions), bool
            Which positions there are: of each vertebra the first so many, or none.
        features : Tensor, shape (patients, 7, positions, features)
            Instead of pixels.
        """
        if valid is None or (pixel_values is None) == (features is None):
            raise ValueError("valid positions, and either their pixels or their features")
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
    """The positions of a vertebra: each with its neighbours in view, then all weighed.

    Parameters
    ----------
    features : int
        Of the encoder.
    config : CervicalSequenceConfig
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
        """Start without corrections: a position's logit is its own, its weight follows from it."""
        for layer in (self.context, self.score):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)
        init.ones_(self.sharpness)

    def forward(
        self, features: Tensor, own: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and weights of positions; summary and logit of each vertebra."""
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
    """The seven vertebrae of a patient; those that are missing are known to be.

    Parameters
    ----------
    summary : int
        Features of a vertebra.
    config : CervicalSequenceConfig
    """

    def __init__(self, summary: int, config: CervicalSequenceConfig) -> None:
        super().__init__()
        width = config.patient_width
        self.expected = nn.Parameter(torch.zeros(len(CERVICAL)))
        self.missing = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(torch.zeros(len(CERVICAL), width))
        self.dropout = nn.Dropout(config.dropout)
        self.summary = nn.Linear(summary + 1, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.levels = nn.Linear(2 * width, 1)
        self.overall = nn.Linear(4 * width, 1)

    def begin(self) -> None:
        """Start without corrections."""
        init.constant_(self.expected, _PRIOR_LOGIT)
        for parameter in (self.missing, self.place):
            init.normal_(parameter, std=0.02)
        for layer in (self.levels, self.overall):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)

    def forward(self, summary: Tensor, logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """All eight logits, and those of each vertebra alone."""
        alone = torch.where(present, logits, self.expected.to(logits.dtype))
        seen = self.summary(self.dropout(torch.cat([summary, logits[..., None]], dim=-1)))
        seen = torch.where(present[..., None], seen, self.missing.to(seen.dtype))
        state, _ = self.lstm(torch.tanh(seen + self.place))
        levels = alone + self.levels(state)[..., 0]
        pooled = torch.cat([state.mean(dim=1), state.amax(dim=1)], dim=-1)
        overall = noisy_or(levels) + self.overall(pooled)[..., 0]
        both = torch.cat([overall[:, None], levels], dim=1)
        assert both.shape[1] == len(LABEL_COLUMNS)
        return both, alone


def noisy_or(logits: Tensor) -> Tensor:
    """The logit of "at least one is broken", as if levels broke independently.

    Parameters
    ----------
    logits : Tensor, shape (patients, levels)

    Returns
    -------
    Tensor, shape (patients,)
    """
    # With r the sum of -log(1 - p), the odds are exp(r) - 1.
    risk = functional.softplus(logits).sum(dim=-1).clamp(min=_LEAST_RISK)
    return risk + torch.log(-torch.expm1(-risk))


def load_sequence_model(folder: Path) -> tuple[CervicalSequenceModel, InputConfig]:
    """Reload a folder written by `training.models.slice_model.save_model`, every weight of it.

    Raises
    ------
    UsageError
        ``model-invalid`` where a weight is missing, spare or of another shape, or where the inputs
        are not those of the encoder.
    """
    model, inputs = load_model(folder, CervicalSequenceModel)
    return cast(CervicalSequenceModel, model), inputs


AutoConfig.register(MODEL_TYPE, CervicalSequenceConfig, exist_ok=True)
AutoModel.register(CervicalSequenceConfig, CervicalSequenceModel, exist_ok=True)
