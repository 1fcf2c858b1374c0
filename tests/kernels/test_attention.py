"""The kernels of sigmoid attention against its definition in float64, in tiles so small that there are several."""

import math

import pytest
import torch
import triton
from support.attention_cases import CASES, TOLERANCES, AttentionCase, check, check_case, oracle
from support.counting import engine_that_counts
from support.device import DEVICE
from without_gpu.ptx.approximation import Approximation

from sigtorch import sigmoid_attention, sigmoid_attention_varlen, use_backend
from sigtorch.kernels import attention
from sigtorch.kernels.attention import Tile, Tiles

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("on_device")]
FUSED = [c for c in CASES if c.fused]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1))
HALF_CASES = ("plain", "causal", "shared keys", "high bias", "alibi, causal", "odd sizes", "no keys")


@pytest.fixture(autouse=True)
def engine(request):
    """Skips a PTX run of an architecture whose tensor memory is not modelled."""
    if request.config.getoption("ptx_arch", None) in (100, 103):
        pytest.skip("tensor memory is not modelled: see scripts/without_gpu/ptx")


@pytest.fixture
def small(monkeypatch):
    """Tiles of few scores, by which little tensors have several, and partly filled ones."""
    for tiles in ("LARGE_TILES", "SMALL_TILES", "TF32_TILES", "FLOAT_TILES"):
        monkeypatch.setattr(attention, tiles, {256: SMALL})


def runs():
    for dtype in DTYPES:
        for case in FUSED:
            half = case.name in HALF_CASES or (case.name == "low bias" and dtype == torch.bfloat16)
            if dtype == torch.float32 or half:
                everywhere = case.name in HALF_CASES and (dtype != torch.float32 or case.name == "plain")
                marks = [] if everywhere else [pytest.mark.any_arch]
                yield pytest.param(case, dtype, id=f"{case.name} {dtype}", marks=marks)


@pytest.mark.parametrize(("case", "dtype"), [*runs()])
def test_values_and_gradients(case, dtype, small):
    with use_backend("triton"):
        check_case(case, dtype, DEVICE)


@pytest.mark.any_arch
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows_are_precise(dtype):
    n = 16384
    if DEVICE == "cpu":  # of one dtype for the engine; small tiles of float32 take either of them long
        interpreted, executed = n, {torch.float32: 512, torch.float16: 1024}.get(dtype, n)
        n = interpreted if triton.knobs.runtime.interpret else executed
    q, k, v = (torch.randn(1, 1, rows, 16).to(dtype) for rows in (16, n, n))
    tensors = [t.requires_grad_() for t in (q, k, v + 0.5)]
    with use_backend("triton"):
        check(sigmoid_attention, oracle, tensors, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_approximate_instructions_may_err_by_twice_their_bound(dtype, small, monkeypatch):
    gpu = engine_that_counts()
    monkeypatch.setattr(gpu, "approximation", Approximation(ulps=2, seed=1))
    with use_backend("triton"):
        for name in ("causal", "high bias"):
            check_case(next(c for c in FUSED if c.name == name), dtype, DEVICE)


@pytest.mark.any_arch
def test_the_tiles_of_users():
    with use_backend("triton"):
        check_case(AttentionCase("", 130, 140, 1, 1, d=32, causal=True, batch=(1,)), torch.float16, DEVICE)
        check_case(AttentionCase("", 5, 5, 1, 1, d=80, dv=136, batch=(1,)), torch.bfloat16, DEVICE)
        check_case(AttentionCase("", 5, 5, 1, 1, d=40, batch=(1,)), torch.float32, DEVICE)


LENGTHS_Q, LENGTHS_K = [5, 0, 33, 1, 17], [7, 3, 40, 0, 16]


def packed(dtype, heads=4, key_heads=2, d=16, dv=16):
    """Packed tensors, and the arguments that tell their sequences."""
    cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (LENGTHS_Q, LENGTHS_K))
    shapes = (sum(LENGTHS_Q), heads, d), (sum(LENGTHS_K), key_heads, d), (sum(LENGTHS_K), key_heads, dv)
    tensors = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return tensors, (cu_q, cu_k, max(LENGTHS_Q), max(LENGTHS_K))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.bfloat16, {}),
        (torch.bfloat16, {"causal": True, "alibi": True}),
        (torch.float16, {"causal": True, "bias": -2.0}),
    ],
    ids=str,
)
def test_packed_sequences_are_as_each_alone(dtype, options, small):
    slopes = {"alibi_slopes": torch.rand(4)} if options.get("alibi") else {}
    options = {name: value for name, value in options.items() if name != "alibi"} | slopes

    def alone(q, k, v):
        outs = []
        for parts in zip(q.split(LENGTHS_Q), k.split(LENGTHS_K), v.split(LENGTHS_K)):
            dense = (t.transpose(0, 1) for t in parts)
            outs.append(oracle(*dense, from_the_end=True, **options).transpose(0, 1))
        return torch.cat(outs)

    tensors, lengths = packed(dtype)
    with use_backend("triton"):
        check(lambda *t: sigmoid_attention_varlen(*t, *lengths, **options), alone, tensors, TOLERANCES[dtype])


def test_packed_sequences_have_the_bits_of_padded_ones(small):
    tensors, lengths = packed(torch.float16)
    with use_backend("triton"):
        out = sigmoid_attention_varlen(*tensors, *lengths, bias=-3.0)
        q, k, v = (t.split(n) for t, n in zip(tensors, (LENGTHS_Q, LENGTHS_K, LENGTHS_K), strict=True))
        alone = sigmoid_attention(*(t[2].transpose(0, 1) for t in (q, k, v)), bias=-3.0, enable_gqa=True)
    assert torch.equal(out.split(LENGTHS_Q)[2], alone.transpose(0, 1))


def test_an_element_of_a_batch_alone_has_its_bits(small):
    q, k, v = (torch.randn(3, 2, 40, 16) for _ in range(3))
    with use_backend("triton"):
        together, again = (sigmoid_attention(q, k, v, is_causal=True) for _ in range(2))
        alone = sigmoid_attention(*(t[1:2] for t in (q, k, v)), is_causal=True)
    assert torch.equal(together, again)
    assert torch.equal(together[1:2], alone)


def test_views_are_read_in_place(small):
    """Views of one packed projection, (batch, n, 3, heads, d), and an incoming gradient that is expanded."""
    whole = torch.randn(2, 20, 3, 4, 16)
    q, k, v = whole.permute(2, 0, 3, 1, 4).unbind(0)
    kept = []
    with use_backend("triton"):
        leaf = whole.requires_grad_()
        q, k, v = leaf.permute(2, 0, 3, 1, 4).unbind(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = sigmoid_attention(q, k, v, is_causal=True)
        (slope,) = torch.autograd.grad(out.sum(), leaf)
    assert {t.untyped_storage().data_ptr() for t in kept[1:]} == {whole.untyped_storage().data_ptr()}
    assert out.stride() == (20 * 64, 16, 64, 1), "as the query's heads lie"
    exact = whole.detach().double().requires_grad_()
    expected = oracle(*exact.permute(2, 0, 3, 1, 4).unbind(0), causal=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), *torch.autograd.grad(expected.sum(), exact), rtol=1e-5, atol=1e-5)


def test_transposed_and_expanded_tensors(small):
    q = torch.randn(2, 2, 16, 20).mT.requires_grad_()
    k, v = (torch.randn(2, 1, 20, 16).expand(2, 2, 20, 16).requires_grad_() for _ in range(2))
    with use_backend("triton"):
        check(sigmoid_attention, oracle, [q, k, v], TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_nan_stays_in_its_row(dtype, small):
    q, k, v = (torch.randn(1, 1, 40, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    with torch.no_grad():
        q[0, 0, 5, 3] = math.nan
        k[0, 0, 30] = math.nan  # which queries before it do not see
    with use_backend("triton"):
        out = sigmoid_attention(q, k, v, is_causal=True)
        (slope,) = torch.autograd.grad(out, q, torch.ones_like(out))
    rows = [5, *range(30, 40)]
    assert out.isnan().any(-1).nonzero()[:, 2].tolist() == rows
    assert set(rows) <= set(slope.isnan().any(-1).nonzero()[:, 2].tolist())


def test_causal_programs_pass_by_what_they_do_not_see(small):
    """Keys behind the last that a block of queries sees are not read: NaN there changes nothing."""
    q, k, v = (torch.randn(1, 1, n, 16) for n in (16, 96, 96))
    with use_backend("triton"):
        expected = sigmoid_attention(q, k, v, is_causal=True)
        k[:, :, 32:] = v[:, :, 32:] = math.nan
        assert torch.equal(sigmoid_attention(q, k, v, is_causal=True), expected)


def test_more_programs_than_a_second_axis_has():
    q, k, v = (torch.randn(1, 65_537, 1, 16).to(torch.float16).expand(1, -1, 1, -1) for _ in range(3))
    launched = []
    with pytest.MonkeyPatch.context() as patch, use_backend("triton"):
        patch.setattr(attention, "plan", lambda make, *given: launched.append(make(*given[:3], *given[3])) or refuse())
        with pytest.raises(StopIteration):
            sigmoid_attention(q, k, v)
    assert launched[0].grid == (65_537, 1, 1)


def refuse():
    raise StopIteration
