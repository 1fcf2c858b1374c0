"""Networks of graphs."""

from functools import partial
from typing import Any

import torch

from .example import Example, noise

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
GRAPH = {"edge_index": EDGES}
WHOLE = {**GRAPH, "batch": torch.zeros(6, dtype=torch.long)}
NODES = {"x": (6, 16)}
LABELLED = {**NODES, "edge_attr": (8, 4)}
WIDTH = {"in_channels": 16, "out_channels": 16}
MODEL = {**WIDTH, "hidden_channels": 16}

# A class, its options, what is given at a call, and the shapes of what is drawn.
GRAPHS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "CGConv": ("CGConv", {"channels": 16, "dim": 4}, GRAPH, LABELLED),
    "FiLMConv": ("FiLMConv", {**WIDTH, "act": torch.nn.SiLU()}, GRAPH, NODES),
    "GatedGraphConv": ("GatedGraphConv", {"out_channels": 16, "num_layers": 2}, GRAPH, NODES),
    "ResGatedGraphConv": ("ResGatedGraphConv", WIDTH, GRAPH, NODES),
    "ResGatedGraphConv with edges": ("ResGatedGraphConv", {**WIDTH, "edge_dim": 4}, GRAPH, LABELLED),
    "TransformerConv": ("TransformerConv", {**WIDTH, "beta": True}, GRAPH, NODES),
    "AttentiveFP": (
        "AttentiveFP", {**MODEL, "edge_dim": 4, "num_layers": 2, "num_timesteps": 2}, WHOLE, LABELLED,
    ),
    "DeepGCN": ("GENConv", {**WIDTH, "edge_dim": 4, "learn_t": True}, GRAPH, LABELLED),
    "GAT": ("GAT", {**MODEL, "num_layers": 2, "act": "swish", "v2": True}, GRAPH, NODES),
    "GraphUNet": ("GraphUNet", {**MODEL, "depth": 2, "act": torch.sigmoid}, GRAPH, NODES),
    "PNA": (
        "PNA",
        {**MODEL, "num_layers": 2, "act": "silu", "aggregators": ["mean", "max"], "scalers": ["identity"],
         "deg": torch.tensor([0, 2, 4])}, GRAPH, NODES,
    ),
    "Polynormer": ("Polynormer", {**MODEL, "local_layers": 2}, WHOLE, NODES),
    "SGFormer": ("SGFormer", MODEL, WHOLE, NODES),
}  # fmt: skip
METADATA = (["paper", "author"], [("author", "writes", "paper"), ("paper", "cites", "paper")])


def torch_geometric() -> dict[str, Example]:
    """Layers and models that pass messages along edges."""
    from torch_geometric import nn

    def build(kind: str, options: dict[str, Any]) -> torch.nn.Module:
        return (getattr(nn, kind, None) or getattr(nn.models, kind))(**options)  # type: ignore[no-any-return]

    def gps(attention: str) -> torch.nn.Module:
        inner = nn.ResGatedGraphConv(16, 16)
        return nn.GPSConv(16, inner, heads=2, act="silu", attn_type=attention)  # type: ignore[no-any-return]

    def typed() -> dict[str, Any]:
        x = {kind: torch.randn(6, 16) for kind in METADATA[0]}
        return {"x_dict": x, "edge_index_dict": dict.fromkeys(METADATA[1], EDGES)}

    return {
        **{
            name: Example(partial(build, kind, options), noise(given, **shapes))
            for name, (kind, options, given, shapes) in GRAPHS.items()
        },
        "GPS": Example(partial(gps, "multihead"), noise(WHOLE, **NODES)),
        "GPS of performers": Example(partial(gps, "performer"), noise(WHOLE, **NODES)),
        "HGT": Example(partial(build, "HGTConv", {**WIDTH, "metadata": METADATA, "heads": 2}), typed),
    }
