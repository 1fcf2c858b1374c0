"""Every operation's kernels, on whatever engine runs them: Triton's interpreter, a GPU, or another."""

import itertools

import pytest
import torch
from cases import CASES, DTYPES, HALF, STRIDES, check, gradients
from torch.autograd.graph import save_on_cpu

import sigtorch
from sigtorch.kernels import _map, _reduce, gates

pytestmark = pytest.mark.kernels
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 2), (6, 1024), (4, 15, 40), (2, 8, 5, 6), (0, 4)], ids=str)
def test_matches_the_oracle(case, dtype, shape, device):
    check(case, case.inputs(shape, dtype, device), backend="triton")


@every_case
@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(4, 6, 16), (6, 3, 18)], ids=str)
def test_takes_any_strides(case, strides, shape, device):
    inputs = [strides(t.detach()).requires_grad_() for t in case.inputs(shape, torch.bfloat16, device)]
    out, _ = check(case, inputs, backend="triton")
    assert out.stride() == case.oracle(*[t.detach() for t in inputs]).stride()


@pytest.mark.parametrize("case", [c for c in CASES if c.fused and len(c.shapes((4, 6))) > 1], ids=lambda c: c.name)
@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES, 2)], ids=str)
def test_dtypes_promote(case, dtypes, device):
    """Kernels compute in float32, or all in float64: what mixes the two is PyTorch's."""
    given = [t.detach().to(d).requires_grad_() for t, d in zip(case.inputs((4, 24), DTYPES[0], device), dtypes * 2)]
    if torch.float64 not in dtypes:
        check(case, given, backend="triton")
        return
    with sigtorch.use_backend("triton"):
        ours, theirs = (gradients(f, given, torch.ones_like) for f in (case.ours, case.oracle))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@every_case
@pytest.mark.parametrize("strides", [*STRIDES, lambda t: t.flatten()[:1].expand(t.shape)], ids=lambda f: f.__name__)
def test_takes_any_gradient_strides(case, strides, device):
    torch.manual_seed(2)
    weights = torch.randn(case.oracle(*case.inputs((4, 6, 16), torch.float32, grad=False)).shape)
    check(case, case.inputs((4, 6, 16), torch.float32, device), lambda out: strides(weights.to(out)), "triton")


@pytest.mark.parametrize("case", [c for c in CASES if c.fused], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_half_value(case, dtype, device):
    """All values up to 86 in the first input."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    near = values[values.abs() <= 86]
    near = near[: len(near) // 8 * 8].view(4, -1).to(device)
    inputs = case.inputs(tuple(near.shape), dtype, device, scale=1.0)
    check(case, [near.requires_grad_(), *inputs[1:]], backend="triton")


@every_case
def test_nothing_is_launched_for_nothing(case, device, monkeypatch):
    monkeypatch.setattr(_map, "_map_kernel", None)
    check(case, case.inputs((0, 4), torch.float32, device), backend="triton")


@pytest.mark.parametrize("name", ["swiglu-packed", "gate-token"])
@pytest.mark.parametrize(("shape", "grid"), [((5, 9000), 4), ((3, 20000), 4), ((600, 22), 2)], ids=str)
def test_the_long_axis_leads_the_grid(name, shape, grid, device, monkeypatch):
    monkeypatch.setattr(_map, "MAX_GRID", grid)
    (case,) = (c for c in CASES if c.name == name)
    check(case, case.inputs(shape, torch.float32, device), backend="triton")


@pytest.mark.parametrize("programs", [1, 5])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("gate-token", "gate-feature")], ids=lambda c: c.name)
def test_few_programs_add_many_tiles(case, programs, device, monkeypatch):
    monkeypatch.setattr(_reduce, "GATE_PROGRAMS", programs)
    check(case, case.inputs((19, 4104), torch.float32, device), backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_that_no_kernel_sums_keeps_its_precision(dtype, device, monkeypatch):
    monkeypatch.setattr(gates, "launch_map_sum", lambda *args, **kwargs: None)
    (case,) = (c for c in CASES if c.name == "gate-channel")
    check(case, case.inputs((2, 3, 5, 4), dtype, device), backend="triton")


@every_case
def test_saved_tensors_are_moved_and_found(case, device):
    inputs = case.inputs((4, 6), torch.float32, device)
    with save_on_cpu():
        check(case, inputs, backend="triton")


@pytest.mark.gpu
@every_case
def test_past_two_to_the_31_elements(case):
    size = 2**31 + 4098
    inputs = [t.bfloat16().expand(s) for t, s in zip([torch.randn(1, device="cuda")] * 3, case.shapes((2, size // 2)))]
    with sigtorch.use_backend("triton"), torch.no_grad():
        out = case.ours(*[t.contiguous() for t in inputs])
        torch.testing.assert_close(out[-1, -4:], case.ours(*[t[-1:, -4:] for t in inputs])[0], rtol=0, atol=0)


@pytest.mark.gpu
@every_case
def test_on_a_device_that_is_not_the_current_one(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    check(case, case.inputs((4, 6), torch.float32, "cuda:1"))


@pytest.mark.gpu
@every_case
def test_cuda_graph_capture(case):
    inputs = case.inputs((64, 64), torch.float32, "cuda")
    weights = torch.ones_like(case.ours(*inputs))
    torch.autograd.grad(case.ours(*inputs), inputs, weights)  # compiles before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = case.ours(*inputs)
        grads = torch.autograd.grad(out, inputs, weights)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(
        (out, grads), (case.ours(*inputs), torch.autograd.grad(case.ours(*inputs), inputs, weights))
    )
