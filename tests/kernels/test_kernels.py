"""Kernels of every operation, on any engine: Triton's interpreter, a GPU, or compiled PTX on the CPU."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import triton
from support.cases import CASES, DTYPES, HALF, STRIDES, check, gradients, tolerance, transposed
from support.device import vast
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import sigtorch
from sigtorch.kernels import _layout, _map, _reduce
from sigtorch.kernels._plan import Plan, plan
from sigtorch.kernels.losses import BCE_PASSES

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


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shapes((4, 6))) > 1], ids=lambda c: c.name)
@pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES, 2)], ids=str)
def test_dtypes_promote(case, dtypes, device):
    """Kernels compute in float32, or all in float64: operands of both dtypes go to PyTorch."""
    inputs = case.inputs((4, 24), DTYPES[0], device)
    for order in (dtypes * 2, (dtypes[0], *dtypes))[: len(inputs) - 1]:  # of three, the second differs, or the third
        given = [t.detach().to(d).requires_grad_() for t, d in zip(inputs, order)]
        if torch.float64 not in dtypes:
            check(case, given, backend="triton")
            continue
        with sigtorch.use_backend("triton"):
            ours, theirs = (gradients(f, given, torch.ones_like) for f in (case.ours, case.oracle))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_float32_gradient_beside_a_half_one_keeps_its_precision(device):
    """Far out, where a half type's exponential would be some 60 ulp off."""
    gate = torch.linspace(-80, 80, 641, device=device, requires_grad=True)
    x = torch.ones(641, dtype=torch.bfloat16, device=device, requires_grad=True)
    with sigtorch.use_backend("triton"):
        _, grad = torch.autograd.grad(sigtorch.sigmoid_gate(x, gate), (x, gate), torch.ones_like(gate))
    wide = gate.detach().double()
    expected = torch.sigmoid(wide) * torch.sigmoid(-wide)
    torch.testing.assert_close(grad.double(), expected, rtol=tolerance(torch.float32)["rtol"], atol=0)


def test_a_swiglus_gradient_does_not_cancel_in_float32(device):
    """1 - s has few digits there, which a half type would not show."""
    gate = torch.linspace(4, 20, 4096, device=device, requires_grad=True)
    with sigtorch.use_backend("triton"):
        (grad,) = torch.autograd.grad(sigtorch.swiglu(gate, torch.ones_like(gate)).sum(), gate)
    wide = gate.detach().double()
    expected = torch.sigmoid(wide) * (1 + wide * torch.sigmoid(-wide))
    torch.testing.assert_close(grad.double(), expected, rtol=3 * 2.0**-23, atol=0)


@every_case
@pytest.mark.parametrize("strides", [*STRIDES, lambda t: t.flatten()[:1].expand(t.shape)], ids=lambda f: f.__name__)
def test_takes_any_gradient_strides(case, strides, device):
    torch.manual_seed(2)
    weights = torch.randn(case.oracle(*case.inputs((4, 6, 16), torch.float32, grad=False)).shape)
    check(case, case.inputs((4, 6, 16), torch.float32, device), lambda out: strides(weights.to(out)), "triton")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_half_value(case, dtype, device):
    """All values from -86 to 24 in the first input: beyond, the oracle's own 1 - s cancels."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    near = values[(values >= -86) & (values <= 24)]
    near = near[: len(near) // 8 * 8].view(4, -1).to(device)
    inputs = case.inputs(tuple(near.shape), dtype, device, scale=1.0)
    check(case, [near.requires_grad_(), *inputs[1:]], backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operands_alike_of_several_operations(dtype, device, plans):
    """Each operation has plans of its own, whatever ran before: also for halves of one gradient and for two gradients."""
    packed = torch.randn(4, 24, device=device, dtype=dtype)
    halves = [t.detach().requires_grad_() for t in packed.clone().chunk(2, -1)]
    together = {c.name: [packed.requires_grad_()] for c in CASES if c.name in ("sigmoid", "glu", "swiglu-packed")}
    apart = {c.name: halves for c in CASES if c.name in ("gate", "swiglu")}
    for names in (together | apart, apart | together):
        plans.clear()
        for name, inputs in names.items():
            (case,) = (c for c in CASES if c.name == name)
            check(case, inputs, backend="triton")


@every_case
def test_nothing_is_launched_for_nothing(case, device, plans, monkeypatch):
    monkeypatch.setattr(_map, "_map_kernel", None)
    check(case, case.inputs((0, 4), torch.float32, device), backend="triton")


@pytest.mark.parametrize("name", ["swiglu-packed", "gate-token"])
@pytest.mark.parametrize(("shape", "grid"), [((5, 9000), 4), ((3, 20000), 4), ((600, 22), 2)], ids=str)
def test_the_long_axis_leads_the_grid(name, shape, grid, device, plans, monkeypatch):
    monkeypatch.setattr(_layout, "MAX_GRID", grid)
    (case,) = (c for c in CASES if c.name == name)
    check(case, case.inputs(shape, torch.float32, device), backend="triton")


@pytest.mark.parametrize(("batches", "rows"), [(1, 48), (3, 64), (3, 80), (4, 48), (5, 48)])  # of rows, a tile has 16
def test_no_further_axis_of_a_grid_reaches_its_end(batches, rows, device, plans, monkeypatch):
    monkeypatch.setattr(_layout, "MAX_GRID", 4)
    x = torch.randn(batches, rows + 1, 22, device=device)[:, :rows, :16]
    grids, launch = [], Plan.launch

    def recorded(plan, *given):
        grids.append(plan.call.grid)
        launch(plan, *given)
        del plan.launch  # the next launch comes here, too

    monkeypatch.setattr(Plan, "launch", recorded)
    with sigtorch.use_backend("triton"):
        torch.testing.assert_close(sigtorch.sigmoid(x), torch.sigmoid(x))
    ((_, y, z),) = grids
    assert max(y, z) < 4


@pytest.mark.parametrize("programs", [1, 5, 60])  # of the last, some add fewer tiles
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("gate-token", "gate-feature")], ids=lambda c: c.name)
def test_few_programs_add_many_tiles(case, programs, device, plans, monkeypatch):
    monkeypatch.setattr(_reduce, "GATE_PROGRAMS", programs)
    check(case, case.inputs((19, 4104), torch.float32, device), backend="triton")


def test_a_gates_sums_have_its_strides(device):
    """Several programs add up each of them."""
    (case,) = (c for c in CASES if c.name == "gate-token")
    x, gate = case.inputs((4, 6, 5000), torch.float32, device)
    check(case, [x, transposed(gate.detach()).requires_grad_()], backend="triton")


@every_case
def test_a_hook_may_hand_back_another_kind_of_tensor(case, device):
    """A kernel would misread its memory: here a tensor with the negative bit."""
    unpack = lambda t: torch._neg_view(-t) if t.is_floating_point() else t  # noqa: E731
    with saved_tensors_hooks(lambda t: t, unpack):  # the formula runs backward, and rounds after every operator
        check(replace(case, rounds_once=False), case.inputs((4, 6), torch.float32, device), backend="triton")


@every_case
def test_saved_tensors_are_moved_and_found(case, device):
    inputs = case.inputs((4, 6), torch.float32, device)
    with save_on_cpu():
        check(case, inputs, backend="triton")


FAR = {  # shapes and strides
    "rows of vectors": ((17, 16), (2**27, 1)),  # the last row begins at 2^31
    "rows of which two are 2^30 apart": ((3, 17), (2**30 + 1, 1)),
    "rows of which two are 2^31 apart": ((2, 17), (2**31 + 1, 1)),
    "batches": ((3, 2, 17), (2**30 + 1, 20, 1)),
}


@pytest.mark.parametrize(("shape", "strides"), FAR.values(), ids=FAR)
def test_elements_far_apart(shape, strides, device):
    """Offsets exceed 32 bits."""
    x = vast(1 + sum((n - 1) * s for n, s in zip(shape, strides))).as_strided(shape, strides)
    x.copy_(torch.randn(shape))
    target = torch.rand(shape, device=device)
    with sigtorch.use_backend("triton"):
        out, loss = sigtorch.sigmoid(x), sigtorch.binary_cross_entropy_with_logits(x, target)
    torch.testing.assert_close(out.double(), torch.sigmoid(x.double()), **tolerance(x.dtype))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x.double(), target.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.gpu
@every_case
def test_past_two_to_the_31_elements(case):
    """The first and the last columns of each row."""
    shapes = case.shapes((2, 2**30 + 4096))
    needed = 2 * (sum(math.prod(s) for s in shapes) + 2**31) * 1.1
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    inputs = [torch.randn(s, dtype=torch.bfloat16, device="cuda") for s in shapes]
    with sigtorch.use_backend("triton"), torch.no_grad():
        out = case.ours(*inputs)
    columns = out.shape[-1]
    seen = torch.tensor([*range(64), *range(columns - 64, columns)], device="cuda")

    def part(t):
        if t.shape[-1] == 2 * columns:  # packed halves
            return torch.cat([t[..., seen], t[..., seen + columns]], -1).double()
        return (t[..., seen] if t.shape[-1] == columns else t).double()

    torch.testing.assert_close(out[..., seen].double(), case.oracle(*map(part, inputs)), **tolerance(torch.bfloat16, 4))


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
    expected = gradients(case.ours, inputs, torch.ones_like)  # compiles before the capture
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(case.ours, inputs, torch.ones_like)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        captured = gradients(case.ours, inputs, torch.ones_like)  # of leaves that live no longer than the capture
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, expected)


def test_a_sum_of_almost_two_to_the_31_elements(device):
    """Runs the first and last programs, on an engine that can: the numbers of tiles must not wrap around."""
    gpu = getattr(triton.runtime.driver, "active", None) if not triton.knobs.runtime.interpret else None
    if not hasattr(gpu, "programs"):
        pytest.skip("needs an engine that runs some programs of many: see scripts/without_gpu/ptx")
    x = vast(2**31 - 1000)
    target = vast(2**30).view(torch.uint8)[: len(x)]
    operands = (1, 1, x, target, *[1] * 6)
    ready, inputs = plan(_reduce._sum_call, BCE_PASSES[torch.bool].value, operands, (x,), (torch.float32, None))
    partials = torch.empty(ready.call.partials, dtype=torch.float64)
    gpu.programs = [(0, 0, 0), (-1, 0, 0)]
    try:
        ready.launch(inputs, (partials,))
    finally:
        gpu.programs = None
    tile = 2048
    each = math.ceil(x.numel() / tile) // len(partials) * tile  # the last tile lacks 1000 elements
    expected = math.log(2) * torch.tensor([each, each - 1000], dtype=torch.float64)
    # Equal addends round alike: 256 of them a lane, in float32.
    torch.testing.assert_close(partials[[0, -1]], expected, rtol=1e-5, atol=0)
