"""The linear layer of a SwiGLU that keeps no product: values, gradients, what is saved, and memory."""

import functools

import pytest
import torch
import torch.nn.functional as F
from _measure import peak_extra_bytes
from support.cases import GPT_OSS, gradients, variant
from support.device import DEVICE
from support.recording import Recorded
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, vmap
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import sigtorch
from sigtorch import nn

every_backend = pytest.mark.parametrize("backend", ["auto", "triton"])
every_engine = pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.kernels)])
OPTIONS = {"plain": {}, "clamped": GPT_OSS}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tensors(dtype=torch.float64, rows=(4,), features=6, out=3, bias=True, device="cpu"):
    shapes = (*rows, features), (*rows, features), (out, features), *(((out,),) if bias else ())
    return [torch.randn(s, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes]


def oracle(gate, up, weight, bias=None, **options):
    return F.linear(variant(gate, up, **options), weight, bias)


@every_engine
@every_option
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [(5,), (2, 3), (0,), ()], ids=str)
def test_matches_the_oracle(rows, dtype, bias, options, backend, device):
    given = tensors(dtype, rows, 8, bias=bias, device=device)
    with sigtorch.use_backend(backend):
        out, grads = gradients(functools.partial(sigtorch.swiglu_linear, **options), given, torch.ones_like)
    wide = [t.detach().double().requires_grad_() for t in given]
    exact, slopes = gradients(functools.partial(oracle, **options), wide, torch.ones_like)
    close = {"rtol": 0.06, "atol": 0.06} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for mine, theirs in zip((out, *grads), (exact, *slopes), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, **close)


@every_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_cpu_the_numbers_are_those_of_two_calls(dtype, options):
    given = tensors(dtype, rows=(16,))

    def apart(gate, up, weight, bias):
        return F.linear(sigtorch.swiglu(gate, up, **options), weight, bias)

    found = gradients(functools.partial(sigtorch.swiglu_linear, **options), given, torch.ones_like)
    torch.testing.assert_close(found, gradients(apart, given, torch.ones_like), rtol=0, atol=0)


@every_backend
@every_option
def test_gradcheck_and_transforms(options, backend, device):
    call, given = functools.partial(sigtorch.swiglu_linear, **options), tensors(rows=(2,), device=device)
    expected = functools.partial(oracle, **options)
    with sigtorch.use_backend(backend):
        assert gradcheck(call, given, check_batched_grad=True, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(call, given, check_batched_grad=True, fast_mode=True)
        several = [torch.stack([t.detach(), 2 * t.detach()]) for t in given]
        torch.testing.assert_close(vmap(call)(*several), vmap(expected)(*several))
        for place in range(len(given)):
            ours, theirs = (
                hessian(lambda *a, f=f: f(*a).square().sum(), argnums=place)(*given) for f in (call, expected)
            )
            torch.testing.assert_close(ours, theirs)


@every_backend
def test_part_of_the_gradients(backend, device):
    given = tensors(device=device)
    for wanted in ((0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3)):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(given)]
        with sigtorch.use_backend(backend):
            found = gradients(sigtorch.swiglu_linear, leaves, torch.ones_like)
        torch.testing.assert_close(found, gradients(oracle, leaves, torch.ones_like))


@every_backend
@pytest.mark.parametrize("gates", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_as_for_two_calls(gates, backend, device):
    given = tensors(torch.float32, rows=(8,), device=device)
    given[:2] = [t.detach().to(gates).requires_grad_() for t in given[:2]]
    with sigtorch.use_backend(backend), torch.autocast(device, torch.bfloat16):
        out, grads = gradients(sigtorch.swiglu_linear, given, torch.ones_like)
        expected, slopes = gradients(oracle, given, torch.ones_like)
    for mine, theirs in zip((out, *grads), (expected, *slopes), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)


def saved_bytes(call, given):
    """The bytes that autograd keeps, but for parameters, which are there anyway."""
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(*given)
    return sum(size for ptr, size in kept.items() if ptr != given[2].data_ptr())


@every_backend
@every_option
def test_keeps_gate_and_up_alone(options, backend, device):
    given, marker = tensors(torch.float32, rows=(64,), features=32, device=device), 8
    with sigtorch.use_backend(backend):
        ours = saved_bytes(functools.partial(sigtorch.swiglu_linear, **options), given)
    assert ours == 2 * 64 * 32 * 4 + marker
    assert saved_bytes(functools.partial(oracle, **options), given) >= 3 * 64 * 32 * 4


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_of_several_layers_takes_less_memory(options):
    """Measured: the most that a step of six layers holds, beside parameters and gradients."""
    peaks, x = {}, torch.randn(256, 32)
    for recompute in (False, True):
        layers = torch.nn.Sequential(*[nn.GatedMLP(32, 1024, recompute=recompute, **options) for _ in range(6)])

        def step(layers=layers):
            layers.zero_grad(set_to_none=False)
            layers(x).sum().backward()

        step()
        peaks[recompute] = peak_extra_bytes(step, torch.device("cpu")) / (256 * 1024 * 4)
    assert peaks[True] < 0.7 * peaks[False], peaks


@every_backend
def test_a_layer_that_recomputes_is_the_same_layer(backend, device):
    torch.manual_seed(3)
    plain = nn.GatedMLP(6, 8, True, **GPT_OSS, device=device)
    mlp = nn.GatedMLP(6, 8, True, **GPT_OSS, recompute=True, device=device)
    mlp.load_state_dict(plain.state_dict())
    x = torch.randn(4, 6, device=device, requires_grad=True)
    with sigtorch.use_backend(backend):
        found, expected = (gradients(f, [x], torch.ones_like) for f in (mlp, plain))
    torch.testing.assert_close(found, expected)
    assert "recompute=True" in repr(mlp)


def test_a_projection_that_is_watched_or_other_is_called():
    mlp, x, calls = nn.GatedMLP(6, 8, recompute=True), torch.randn(4, 6), []
    expected = mlp(x)
    mlp.down_proj.register_forward_hook(lambda module, args, out: calls.append(out))
    torch.testing.assert_close(mlp(x), expected)
    assert len(calls) == 1
    mlp.down_proj = torch.nn.Sequential(torch.nn.Linear(8, 6, bias=False))
    assert mlp(x).shape == (4, 6)


@every_backend
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant, backend, device):
    given = tensors(device=device)
    with sigtorch.use_backend(backend):
        out = checkpoint(sigtorch.swiglu_linear, *given, use_reentrant=reentrant)
        found = torch.autograd.grad(out.sum(), given) if not reentrant else None
        if reentrant:
            out.sum().backward()
            found = tuple(t.grad for t in given)
    torch.testing.assert_close(found, torch.autograd.grad(oracle(*given).sum(), given))


def test_compiles_whole():
    torch._dynamo.reset()
    given = tensors(torch.float32)
    compiled = torch.compile(sigtorch.swiglu_linear, fullgraph=True, backend="aot_eager")
    found, expected = (gradients(f, given, torch.ones_like) for f in (compiled, oracle))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("on_device")
@every_backend
def test_a_mode_sees_operators(backend):
    given = tensors(torch.float32, device=DEVICE)
    with sigtorch.use_backend("triton"), Recorded() as seen:
        out = sigtorch.swiglu_linear(*given)
        torch.autograd.grad(out, given, torch.ones_like(out))
    assert seen.names == ["swiglu_variant", "swiglu_variant_recompute"]
    with sigtorch.use_backend(backend):
        opcheck(*seen.calls[1], test_utils=("test_schema", "test_faketensor"))


X, WEIGHT = torch.randn(4, 6), torch.randn(3, 6)
MISTAKES = {
    "limit": ((X, X, WEIGHT), {"limit": -1.0}, "limit must be at least 0, got -1.0"),
    "no tensor": ((X, X, 2.0), {}, "weight must be a Tensor, got float"),
    "gates": ((X, X[:, :5], WEIGHT), {}, r"shapes do not broadcast: gate \(4, 6\), up \(4, 5\)"),
    "weight": ((X, X, WEIGHT.t()), {}, r"weight must be \(out_features, features\), got \(6, 3\) for gate \(4, 6\)"),
    "vector": ((X, X, X[0]), {}, r"weight must be \(out_features, features\), got \(6,\) for gate \(4, 6\)"),
    "scalar": ((X[0, 0], X[0, 0], WEIGHT), {}, "weight must be"),
    "bias": ((X, X, WEIGHT, X[0]), {}, r"bias must have shape \(3,\), got \(6,\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    given, options, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message) as seen:
        sigtorch.swiglu_linear(*given, **options)
    assert "\n" not in str(seen.value)
