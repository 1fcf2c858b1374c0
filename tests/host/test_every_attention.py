"""Compiles and launches sigmoid attention in every dtype, with every option: one launch forward, two backward."""

import pytest
import torch
from support.attention_cases import CASES, AttentionCase
from support.launching import for_a_stand_in, launches

from sigtorch import sigmoid_attention_varlen

pytestmark = for_a_stand_in
NAMES = ("plain", "causal", "shared keys", "odd sizes", "high bias", "bias of each head", "alibi, causal")
SOME = [c for c in CASES if c.name in NAMES] + [
    AttentionCase("d 64", 256, 256, d=64, dv=64, causal=True),
    AttentionCase("d 128", 256, 256, d=128, dv=128),
    AttentionCase("d 256", 256, 256, d=256, dv=200),
]


PAIRS = [(torch.bfloat16, case) for case in SOME] + [(torch.float16, SOME[0]), (torch.float32, SOME[0])]


@pytest.mark.parametrize(("dtype", "case"), PAIRS, ids=lambda v: getattr(v, "name", str(v)))
def test_dtypes(dtype, case):
    given, options = case.inputs(dtype)
    assert launches(lambda *t: case.ours(*t, **options), *given) == (1, 2)


@pytest.mark.parametrize("bias", [None, 0.5, "tensor"])
def test_packed_sequences(bias):
    cu = torch.tensor([0, 3, 70], dtype=torch.int32)
    q, k, v = (torch.randn(70, heads, 32, dtype=torch.float16, requires_grad=True) for heads in (4, 2, 2))
    bias = torch.zeros(4) if bias == "tensor" else bias
    seen = launches(lambda *t: sigmoid_attention_varlen(*t, cu, cu, 67, 67, causal=True, bias=bias), q, k, v)
    assert seen == (1, 2)


def test_one_gradient_takes_one_launch():
    q, k, v = (torch.randn(1, 2, 40, 16, dtype=torch.float16) for _ in range(3))
    for t in (q, k):
        leaf = t.requires_grad_()
        assert launches(lambda *_: CASES[0].ours(q, k, v), leaf) == (1, 1)
        t.requires_grad_(False)


def test_nothing():
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (0, 5, 5))
    assert launches(CASES[0].ours, q, k, v) == (0, 1)  # zeros for keys and values
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (5, 0, 0))
    assert launches(CASES[0].ours, q, k, v) == (1, 1)
