"""Sigmoid attention by its formula against its definition in float64: values, gradients, precision, memory."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _measure import peak_extra_bytes
from support.attention_cases import CASES, TOLERANCES, check, check_case, error, oracle
from support.device import DEVICE

import sigtorch
from sigtorch import sigmoid_attention, sigmoid_attention_varlen

pytestmark = pytest.mark.usefixtures("on_device")
by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
LENGTHS_Q, LENGTHS_K = [5, 0, 33, 1, 3], [7, 3, 20, 0, 3]


def packed(dtype=torch.float64, heads=4, key_heads=2, d=16, dv=24):
    """Packed tensors, and the arguments that tell their sequences."""
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (LENGTHS_Q, LENGTHS_K))
    shapes = (sum(LENGTHS_Q), heads, d), (sum(LENGTHS_K), key_heads, d), (sum(LENGTHS_K), key_heads, dv)
    tensors = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return tensors, (cu_q, cu_k, max(LENGTHS_Q), max(LENGTHS_K))


def alone(q, k, v, **options):
    """The oracle of each sequence by itself."""
    outs = []
    for parts in zip(q.split(LENGTHS_Q), k.split(LENGTHS_K), v.split(LENGTHS_K)):
        outs.append(oracle(*(t.transpose(0, 1) for t in parts), from_the_end=True, **options).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@by_name
def test_values_and_gradients_of_the_formula(case, dtype):
    if case.name == "low bias" and dtype == torch.float16:
        return  # which has no weights so small
    with sigtorch.use_backend("aten"):
        check_case(case, dtype, DEVICE, 3e-3 if dtype == torch.bfloat16 else None)


def test_chunks_are_as_the_whole(monkeypatch):
    monkeypatch.setattr("sigtorch.ops.attention.formula.CHUNK", 1)  # then of 16 rows
    with sigtorch.use_backend("aten"):
        for case in CASES:
            check_case(case, torch.float64, DEVICE)


@pytest.mark.parametrize("options", [{}, {"bias": 0.5}, {"causal": True}, {"causal": True, "alibi": True}], ids=str)
def test_packed_sequences_are_as_each_alone(options):
    slopes = {"alibi_slopes": torch.rand(4).double()} if options.get("alibi") else {}
    options = {name: value for name, value in options.items() if name != "alibi"} | slopes
    tensors, lengths = packed()
    check(lambda *t: sigmoid_attention_varlen(*t, *lengths, **options), lambda *t: alone(*t, **options), tensors, 1e-12)


def test_a_bias_and_slopes_of_packed_sequences_have_gradients():
    tensors, lengths = packed()
    more = [torch.randn(4).double().requires_grad_(), torch.rand(4).double().requires_grad_()]
    check(
        lambda *t: sigmoid_attention_varlen(*t[:3], *lengths, bias=t[3], alibi_slopes=t[4], softmax_scale=0.4),
        lambda *t: alone(*t[:3], bias=t[3], alibi_slopes=t[4], scale=0.4),
        [*tensors, *more],
        1e-12,
    )


def test_slopes_and_masks_have_gradients():
    tensors = [torch.randn(2, 3, 5, 8).double().requires_grad_() for _ in range(3)]
    slopes, mask = torch.rand(3).double().requires_grad_(), torch.randn(3, 1, 5).double().requires_grad_()
    check(
        lambda *t: sigmoid_attention(*t[:3], t[4], alibi_slopes=t[3]),
        lambda *t: oracle(*t[:3], t[4], alibi_slopes=t[3]),
        [*tensors, slopes, mask],
        1e-12,
    )


@pytest.mark.parametrize("shape", [(3, 7, 8), (2, 2, 3, 7, 8), (1, 2, 3, 7, 8)], ids=str)
def test_any_number_of_batches(shape):
    q, k, v = (torch.randn(shape).double().requires_grad_() for _ in range(3))
    mask = torch.rand(*shape[:-3], 1, 7, 7) > 0.5
    check(lambda *t: sigmoid_attention(*t, mask), lambda *t: oracle(*t, mask), [q, k, v], 1e-12)


def test_batches_broadcast():
    q, k = torch.randn(4, 1, 2, 5, 8).double().requires_grad_(), torch.randn(3, 2, 6, 8).double().requires_grad_()
    check(sigmoid_attention, oracle, [q, k, torch.randn(1, 2, 6, 3).double().requires_grad_()], 1e-12)


def test_causal_and_masks_are_aligned_as_pytorch_aligns_them():
    """The gradient of a query's row is 0 for the keys that softmax attention hides, and for no others."""
    mask = torch.rand(5, 7) > 0.5
    mask[:, 0] = True  # softmax of nothing is NaN
    for options in ({"is_causal": True}, {"attn_mask": mask}):
        q, k, v = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 7, 8), torch.eye(7).view(1, 1, 7, 7)
        theirs = F.scaled_dot_product_attention(q, k, v, **options) > 0
        assert torch.equal(sigmoid_attention(q, k, v, **options) > 0, theirs)


def test_the_formula_is_precise_to_16384_keys():
    q, k, v = (torch.randn(1, 1, n, 16) for n in (40, 16384, 16384))
    v = v + 0.5
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensors = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        with sigtorch.use_backend("aten"):
            check(sigmoid_attention, oracle, tensors, min(TOLERANCES[dtype], 4e-3))


def test_a_gradient_is_not_lost_where_weights_are_1():
    """In transforms and in double backward; s (1 - s), PyTorch's derivative, is 0 in float32."""
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    exact = [t.double() for t in (q, k, v)]

    def of(function, tensors):
        return torch.func.grad(lambda q: function(q, *tensors[1:], bias=20.0).sum())(tensors[0])

    assert error(of(sigmoid_attention, (q, k, v)), of(oracle, exact)) < 1e-6
    second = []
    for function, tensors in ((sigmoid_attention, (q, k, v)), (oracle, exact)):
        leaf = tensors[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf, *tensors[1:], bias=15.0).sum(), leaf, create_graph=True)
        second += torch.autograd.grad((slope * 1e6).square().sum(), leaf)
    assert error(*second) < 2e-6


@pytest.mark.parametrize("masked", [False, True])
def test_no_matrix_of_weights_is_held(masked):
    """At 4,096 keys, below half of one in float32: 32 MiB."""
    n = 4096
    leaves = [torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(3)]
    mask = torch.rand(n) > 0.5 if masked else None

    def step():
        for t in leaves:
            t.grad = None
        with sigtorch.use_backend("aten"):
            sigmoid_attention(*leaves, mask).sum().backward()

    assert peak_extra_bytes(step, leaves[0].device) < n * n * 4 / 2


def test_nothing_else_is_kept():
    q, k, v = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(3))
    slopes, kept = torch.rand(2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sigmoid_attention(q, k, v, alibi_slopes=slopes, is_causal=True)
    _, *tensors = kept  # behind a marker
    assert [t.data_ptr() for t in tensors] == [t.data_ptr() for t in (q, k, v, slopes)]


def test_a_row_with_nan_is_one():
    q, k, v = (torch.randn(1, 1, 70, 8) for _ in range(3))
    q[0, 0, 5, 3] = math.nan
    assert sigmoid_attention(q, k, v).isnan().any(-1).nonzero().tolist() == [[0, 0, 5]]


def test_the_page_runs_as_it_stands():
    page = (Path(sigtorch.__file__).parent.parent / "docs" / "attention.md").read_text()
    names = {"torch": torch, "sigtorch": sigtorch}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["out"].shape == (2, 8, 100, 64)
