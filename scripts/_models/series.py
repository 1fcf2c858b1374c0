"""Forecasters of time series."""

from functools import partial
from typing import Any

import torch

from .example import Example

FORECASTERS: dict[str, dict[str, Any]] = {
    "TemporalFusionTransformer": {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4},
    "TiDEModel": {"hidden_size": 16},
    "TimeXer": {"hidden_size": 16, "n_heads": 2, "e_layers": 1, "d_ff": 16, "patch_length": 4},
    "xLSTMTime": {"hidden_size": 8, "input_size": 2, "output_size": 1, "xlstm_type": "slstm"},
    "xLSTMTime of matrices": {"hidden_size": 8, "input_size": 2, "output_size": 1, "xlstm_type": "mlstm"},
}


def pytorch_forecasting() -> dict[str, Example]:
    """Forecasters of two series of one number."""
    import pandas
    from pytorch_forecasting import GroupNormalizer, TimeSeriesDataSet, models

    steps = 20
    table = {"time": [*range(steps)] * 2, "series": ["a"] * steps + ["b"] * steps}
    values = torch.linspace(0, 6, 2 * steps).sin().tolist()
    data = TimeSeriesDataSet(
        pandas.DataFrame({**table, "value": values}), time_idx="time", target="value", group_ids=["series"],
        max_encoder_length=8, max_prediction_length=4, time_varying_known_reals=["time"], time_varying_unknown_reals=["value"],
        static_categoricals=["series"], target_normalizer=GroupNormalizer(groups=["series"]),
    )  # fmt: skip

    def build(name: str) -> torch.nn.Module:
        return getattr(models, name.split()[0]).from_dataset(data, **FORECASTERS[name])  # type: ignore[no-any-return]

    def batch() -> dict[str, Any]:
        return {"x": next(iter(data.to_dataloader(train=False, batch_size=2)))[0]}

    return {name: Example(partial(build, name), batch) for name in FORECASTERS}
