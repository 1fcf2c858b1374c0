"""Forecasters of time series."""

from typing import Any

import torch

from .example import Example

STEPS, AHEAD = 8, 4
REALS = ["time", "value"]


def batch() -> dict[str, Any]:
    """Makes two series with a past and a future, as a loader of the library gives them."""
    past, future = torch.randn(2, STEPS, 2), torch.randn(2, AHEAD, 2)
    none = torch.zeros(2, 0, 0, dtype=torch.long)
    return {
        "x": {
            "encoder_cont": past, "decoder_cont": future, "encoder_cat": none.new_zeros(2, STEPS, 1),
            "decoder_cat": none.new_zeros(2, AHEAD, 1), "encoder_lengths": torch.full((2,), STEPS),
            "decoder_lengths": torch.full((2,), AHEAD), "encoder_target": past[..., 1], "decoder_target": future[..., 1],
            "target_scale": torch.tensor([[0.0, 1.0]] * 2),
        }
    }  # fmt: skip


def pytorch_forecasting() -> dict[str, Example]:
    """The temporal fusion transformer, small."""
    from pytorch_forecasting import TemporalFusionTransformer

    def fusion() -> torch.nn.Module:
        reals = {"time_varying_reals_encoder": REALS, "time_varying_reals_decoder": REALS[:1]}
        kinds = {"time_varying_categoricals_encoder": ["day"], "time_varying_categoricals_decoder": ["day"], "x_categoricals": ["day"]}
        return TemporalFusionTransformer(**reals, **kinds, x_reals=REALS, embedding_sizes={"day": (7, 4)}, hidden_size=8)

    return {"TemporalFusionTransformer": Example(fusion, batch)}
