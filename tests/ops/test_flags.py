"""Flags take True or False: a word such as "no" would count as true."""

import pytest
import torch
from support.refusing import refused

import sigtorch
from sigtorch import nn

Q, X, CU = torch.zeros(1, 2, 3, 4), torch.zeros(3, 2, 4), torch.tensor([0, 3], dtype=torch.int32)
CALLS = {
    "is_causal": lambda flag: sigtorch.sigmoid_attention(Q, Q, Q, is_causal=flag),
    "enable_gqa": lambda flag: sigtorch.sigmoid_attention(Q, Q, Q, enable_gqa=flag),
    "causal": lambda flag: sigtorch.sigmoid_attention_varlen(X, X, X, CU, CU, 3, 3, causal=flag),
    "interleaved": lambda flag: sigtorch.swiglu(Q, interleaved=flag),
    "normalize": lambda flag: sigtorch.sigmoid_topk(Q, 2, normalize=flag),
}
MODULES = {
    "is_causal": lambda flag: nn.SigmoidAttention(8, 2, is_causal=flag),
    "gate": lambda flag: nn.SigmoidAttention(8, 2, gate=flag),
    "interleaved": lambda flag: nn.SwiGLU(interleaved=flag),
    "recompute": lambda flag: nn.GatedMLP(4, 8, recompute=flag),
    "normalize": lambda flag: nn.SigmoidRouter(4, 8, 2, normalize=flag),
}


@pytest.mark.parametrize("calls", [CALLS, MODULES], ids=["functions", "modules"])
def test_flags(calls):
    for name, call in calls.items():
        call(True), call(False)
        refused(TypeError, lambda call=call: call("no"), f"(): {name} must be True or False, got 'no'")
