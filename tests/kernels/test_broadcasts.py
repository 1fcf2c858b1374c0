"""Gates of every broadcast and order of axes: values, gradients, strides, NaN, bytes, and two runs alike."""

import itertools

import pytest
import torch
from support.cases import Case, check, contiguous, gate, gradients, lerp, swiglu
from support.counting import engine_that_counts

import sigtorch
from sigtorch.kernels import _reduce

pytestmark = [pytest.mark.kernels, pytest.mark.any_arch]  # where elements are, no architecture changes
IMAGES = (3, 5, 4, 6)
VECTORS = (2, 8, 3, 16)  # rows of whole vectors


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def columns_first(t):
    return t.transpose(-2, -1).contiguous().transpose(-2, -1)


def one(t):
    """A single number, as the gradient of a sum is."""
    return t.flatten()[:1].expand(t.shape)


def subsets(shape):
    """The shapes that broadcast to a shape, from one element to all."""
    return [*itertools.product(*((1, n) for n in shape))]


def case_of(x, g):
    return Case("gate", sigtorch.sigmoid_gate, gate, lambda s: (x, g), cancels=True)


ORDERS = [*itertools.product((contiguous, channels_last), repeat=2)]
every_order = pytest.mark.parametrize(
    "orders", ORDERS, ids=lambda pair: " ".join(f.__name__ for f in pair)
)  # of x and of the gate


@every_order
@pytest.mark.parametrize(("shape", "dtype"), [(IMAGES, torch.float32), (VECTORS, torch.bfloat16)], ids=str)
def test_every_broadcast_matches_the_oracle(dtype, shape, orders, device):
    """Broadcasts the gate, and then x."""
    for small in subsets(shape):
        for x, g in ((shape, small), (small, shape)):
            case = case_of(x, g)
            inputs = [f(t.detach()).requires_grad_() for f, t in zip(orders, case.inputs(None, dtype, device))]
            out, grads = check(case, inputs, backend="triton")
            lead = orders[0 if x == shape else 1](torch.empty(shape))
            assert out.stride() == lead.stride()
            assert [grad.shape for grad in grads] == [x, g]


def test_broadcasts_of_both_match_the_oracle(device):
    for x, g in itertools.product(subsets((3, 4, 6)), repeat=2):
        case = case_of(x, g)
        check(case, case.inputs(None, torch.float32, device), backend="triton")


@pytest.mark.parametrize("x", [(), (6,), (4, 6), (2, 1, 4, 6), (5, 1, 1, 1, 6)], ids=str)
@pytest.mark.parametrize("g", [(), (1,), (1, 6), (4, 1), (2, 3, 4, 6), (1, 2, 1, 4, 1)], ids=str)
def test_other_numbers_of_axes(x, g, device):
    case = case_of(x, g)
    check(case, case.inputs(None, torch.float64, device), backend="triton")


@pytest.mark.parametrize("g", [(1, 3, 1, 5, 1), (2, 1, 2, 1, 4), (1, 3, 1, 5, 4), (2, 1, 2, 5, 1)], ids=str)
def test_five_axes(g, device):
    for x, other in (((2, 3, 2, 5, 4), g), (g, (2, 3, 2, 5, 4))):
        case = case_of(x, other)
        check(case, case.inputs(None, torch.float32, device), backend="triton")


OPERATIONS = {
    "residual": (sigtorch.sigmoid_gate, lambda x, g, r: gate(x, g) + r),
    "lerp": (sigtorch.sigmoid_lerp, lerp),
    "swiglu": (sigtorch.swiglu, swiglu),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operand_of_an_operation_may_be_broadcast(name, device):
    ours, oracle = OPERATIONS[name]
    count = 2 if name == "swiglu" else 3
    for shapes in itertools.product([(3, 4, 6), (3, 1, 6), (4, 1)], repeat=count):
        case = Case(name, ours, oracle, lambda s, shapes=shapes: shapes, cancels=True)
        check(case, case.inputs(None, torch.bfloat16, device), backend="triton")


@pytest.mark.parametrize("shape", [(2, 24, 32), (2, 17, 13)], ids=str)  # of vectors, and of none
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["gate", "lerp", "swiglu"])
def test_operands_in_other_orders(name, dtype, shape, device):
    ours, oracle = OPERATIONS.get(name, (sigtorch.sigmoid_gate, gate))
    case = Case(name, ours, oracle, lambda s: (s,) * (3 if name == "lerp" else 2), cancels=True)
    inputs = case.inputs(shape, dtype, device)
    for i in range(len(inputs)):
        given = [(columns_first if i == j else contiguous)(t.detach()).requires_grad_() for j, t in enumerate(inputs)]
        out, _ = check(case, given, backend="triton")
        assert out.stride() == given[0].stride()
    first_last = inputs[-1].detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    check(case, [*inputs[:-1], first_last], backend="triton")
    check(case, [columns_first(inputs[0].detach()).requires_grad_(), *inputs[1:-1], first_last], backend="triton")


@pytest.mark.parametrize("grad", [contiguous, channels_last, one], ids=lambda f: f.__name__)
@pytest.mark.parametrize("g", [(3, 1, 4, 6), (1, 5, 1, 6), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("x", [IMAGES, (1, 5, 4, 1)], ids=str)
def test_any_gradient_strides(x, g, grad, device):
    case, weights = case_of(x, g), torch.randn(IMAGES)
    if [*map(max, zip(x, g, strict=True))] != [*IMAGES]:
        weights = torch.randn([*map(max, zip(x, g, strict=True))])
    check(case, case.inputs(None, torch.float32, device), lambda out: grad(weights.to(out)), "triton")


@pytest.mark.parametrize("g", [(5, 1, 9), (1, 14, 9), (1, 14, 1), (5, 1, 1)], ids=str)
@pytest.mark.parametrize("shape", [(5, 14, 9), (5, 14, 300), (14, 4, 300)], ids=str)  # of the last, rows may be samples
@pytest.mark.parametrize("programs", [1, 3, 20])
def test_few_programs_add_many_tiles(programs, shape, g, device, plans, monkeypatch):
    monkeypatch.setattr(_reduce, "GATE_PROGRAMS", programs)
    small = tuple(n if m > 1 else 1 for n, m in zip(shape, g, strict=True))
    for x, other in ((shape, small), (small, shape)):
        case = case_of(x, other)
        check(case, case.inputs(None, torch.float32, device), backend="triton")


@pytest.mark.parametrize("g", [(2, 30, 1, 6), (60, 1, 6)], ids=str)
def test_more_batches_than_a_grid_s_other_axes_have(g, device, plans, monkeypatch):
    monkeypatch.setattr("sigtorch.kernels._layout.MAX_GRID", 16)
    case = case_of((*g[:-2], 4, 6), g)
    check(case, case.inputs(None, torch.float32, device), backend="triton")


def test_nothing_to_sum(device):
    for x, g in itertools.product([(0, 4, 6), (2, 0, 6), (2, 4, 0), (0, 1, 6)], [(1, 4, 1), (6,), (1, 1, 1)]):
        try:
            torch.broadcast_shapes(x, g)
        except RuntimeError:
            continue
        case = case_of(x, g)
        check(case, case.inputs(None, torch.float32, device), backend="triton")


@pytest.mark.parametrize("g", [(3, 1, 4, 6), (1, 5, 4, 6), (3, 1, 1, 6), (1, 5, 1, 6), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_where_it_belongs(value, g, device):
    """Compares with PyTorch's operators which results are not finite."""
    for i in range(2):
        inputs = [torch.randn(shape, device=device) for shape in (IMAGES, g)]
        inputs[i].view(-1)[inputs[i].numel() // 2] = value
        with sigtorch.use_backend("triton"):
            ours = gradients(sigtorch.sigmoid_gate, [t.requires_grad_() for t in inputs], torch.ones_like)
        theirs = gradients(gate, inputs, torch.ones_like)
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("g", subsets((4, 24, 40))[:-1], ids=str)
def test_two_runs_agree_to_the_last_bit(g, device):
    x, g = torch.randn(4, 24, 40, device=device), torch.randn(g, device=device)
    with sigtorch.use_backend("triton"):
        first, second = (
            gradients(sigtorch.sigmoid_gate, [t.requires_grad_() for t in (x, g)], torch.sin) for _ in "ab"
        )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


BYTES = {  # x, the gate and their orders
    "a gate a pixel": ((8, 64, 16, 16), (8, 1, 16, 16), contiguous, contiguous),
    "a gate a pixel, channels_last": ((8, 64, 16, 16), (8, 1, 16, 16), channels_last, contiguous),
    "a gate a sequence": ((8, 128, 128), (8, 1, 128), contiguous, contiguous),
    "a gate of all samples": ((64, 4, 64), (1, 4, 64), contiguous, contiguous),
    "one gate": ((16, 8, 256), (1,), contiguous, contiguous),
    "four axes": ((8, 16, 16, 64), (8, 1, 16, 1), contiguous, contiguous),
    "a larger gate": ((8, 1, 16, 16), (8, 64, 16, 16), contiguous, contiguous),
    "another order": ((2, 128, 128), (2, 128, 128), contiguous, columns_first),
    "channels_last and contiguous": ((2, 64, 16, 16), (2, 64, 16, 16), channels_last, contiguous),
}
REREAD = 0.13  # of a result's bytes: a broadcast operand is read again in each tile, and sums have partials


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", BYTES)
def test_each_element_is_read_and_written_once(name, dtype, device):
    gpu = engine_that_counts()
    x, g, *orders = BYTES[name]
    inputs = [f(torch.randn(s, dtype=dtype, device=device)).requires_grad_() for s, f in zip((x, g), orders)]
    large = max(inputs, key=torch.Tensor.numel)
    whole = sum(t.numel() == large.numel() for t in inputs)
    with sigtorch.use_backend("triton"):
        counts = [(gpu.loads, gpu.stores)]
        out = sigtorch.sigmoid_gate(*inputs)
        counts.append((gpu.loads, gpu.stores))
        torch.autograd.grad(out, inputs, torch.randn_like(out))
        counts.append((gpu.loads, gpu.stores))
    size = out.numel() * out.element_size()
    (loads, stores), (grad_loads, grad_stores) = (
        [(b - a) / size for a, b in zip(before, after)] for before, after in itertools.pairwise(counts)
    )
    assert stores == 1
    assert whole <= loads <= whole + 2 * REREAD
    assert whole + 1 <= grad_loads <= whole + 1 + 2 * REREAD
    assert whole <= grad_stores <= whole + 2 * REREAD
