"""Every operation, whatever runs it: values, gradients, transforms, compilers, subclasses."""

import itertools
import shutil
import subprocess
import sys
import threading

import numpy
import pytest
import torch
from functorch.compile import aot_function, nop
from support.cases import ALIKE, CASES, DTYPES, STRIDES, check, gradients, tolerance
from support.loss_cases import LOSSES
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils.checkpoint import CheckpointError, checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sigtorch

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
every_backend = pytest.mark.parametrize("backend", ["auto", "triton"])
# What a compiled kernel could get wrong where an interpreted one does not: these are the tests for other engines too.
every_engine = pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.kernels)])


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 8), (2, 4, 3, 6), (0, 2), (4, 0, 2)], ids=str)
def test_matches_the_oracle(case, dtype, shape):
    check(case, case.inputs(shape, dtype))


@every_case
@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
def test_takes_any_strides(case, strides):
    check(case, [strides(t.detach()).requires_grad_() for t in case.inputs((4, 6, 8), torch.float32)])


@every_case
def test_takes_part_of_the_gradients(case):
    inputs = case.inputs((4, 6), torch.float32)
    for i in range(len(inputs)):
        check(case, [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)])


@every_case
def test_takes_part_of_the_gradients_differentiably(case, device):
    inputs = case.inputs((4, 6), torch.float64, device)
    for i in range(len(inputs)):
        given = [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)]
        with sigtorch.use_backend("triton"):
            (found,) = torch.autograd.grad(case.ours(*given).sum(), given[i], create_graph=True)
        (expected,) = torch.autograd.grad(case.oracle(*given).sum(), given[i])
        torch.testing.assert_close(found.detach(), expected)


@every_case
@every_backend
def test_leaves_inputs_and_gradients_alone(case, backend, device):
    inputs = case.inputs((4, 6), torch.float32, device)
    before = [t.detach().clone() for t in inputs]
    with sigtorch.use_backend(backend):
        out = case.ours(*inputs)
        kept = out.detach().clone()
        weights = torch.randn_like(out)
        given = weights.clone()
        first = torch.autograd.grad(out, inputs, weights, retain_graph=True)
        copies = [t.clone() for t in first]
        second = torch.autograd.grad(out, inputs, weights)
    for a, b in [*zip(inputs, before), (out, kept), (weights, given), *zip(first, copies), *zip(first, second)]:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    fresh = {t.data_ptr() for t in first} - {weights.data_ptr()}  # a residual's gradient is the given one
    assert fresh.isdisjoint(t.data_ptr() for t in second)


@every_case
@every_backend
def test_gradcheck(case, backend, device):
    inputs = case.inputs((2, 4), torch.float64, device, scale=1.0)
    with sigtorch.use_backend(backend):
        assert gradcheck(
            case.ours, inputs, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True,
            fast_mode=True,
        )  # fmt: skip
        assert gradgradcheck(case.ours, inputs, check_batched_grad=True, check_fwd_over_rev=True, fast_mode=True)


@every_case
@every_backend
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's own glu has no batching rule for its jvp
def test_transforms(case, backend, device):
    inputs = [t.detach() for t in case.inputs((2, 4), torch.float64, device, scale=1.0)]
    tangents = tuple(torch.randn_like(t) for t in inputs)

    def both(transform):
        with sigtorch.use_backend(backend):
            mine = transform(case.ours)
        torch.testing.assert_close(mine, transform(case.oracle))

    both(lambda f: jvp(f, tuple(inputs), tangents))
    both(lambda f: grad(lambda *a: f(*a).square().sum(), argnums=tuple(range(len(inputs))))(*inputs))
    both(lambda f: vmap(f)(*[torch.stack([t, 2 * t]) for t in inputs]))
    both(lambda f: hessian(lambda *a: f(*a).square().sum(), argnums=0)(*inputs))
    if not case.name.startswith("glu"):  # which PyTorch's own cannot
        both(lambda f: jacfwd(jacfwd(f))(*inputs))


@every_case
@every_backend
def test_a_constant_within_a_transform(case, backend, device):
    """Nothing of it is transformed, but what runs beside it is."""
    inputs, x = case.inputs((2, 4), torch.float64, device), torch.randn(3, dtype=torch.float64, device=device)
    with sigtorch.use_backend(backend):
        found = vmap(lambda a: a + case.ours(*inputs))(x)
    torch.testing.assert_close(found, vmap(lambda a: a + case.oracle(*inputs))(x))


@every_case
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(case, compiler):
    if compiler == "inductor" and (case.name != "sigmoid" or shutil.which("g++") is None):
        pytest.skip("inductor: one operation is enough, and it needs a C++ compiler")
    torch._dynamo.reset()
    assert_agrees(torch.compile(case.ours, fullgraph=True, backend=compiler), case, (2, 4))


def assert_agrees(compiled, case, shape):
    """Values and gradients of compiled code are those of eager code."""
    inputs = case.inputs(shape, torch.float32)
    weights = torch.randn_like(case.ours(*inputs))
    (out, mine), (expected, theirs) = (gradients(f, inputs, lambda _: weights) for f in (compiled, case.ours))
    torch.testing.assert_close(out, expected, **tolerance(torch.float32))
    torch.testing.assert_close(mine, theirs, **tolerance(torch.float32, 4))


@every_case
def test_compiles_for_every_size(case):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.ours, fullgraph=True, dynamic=True, backend=counter)
    for rows in (6, 8, 10):  # neither the other axis nor, after halving, 1: these are compiled apart
        assert_agrees(compiled, case, (rows, 4))
    assert counter.frame_count == 1


class Model(torch.nn.Module):
    """Any operation as a module of one argument."""

    def __init__(self, case, inputs):
        super().__init__()
        self.case, self.rest = case, [t.detach() for t in inputs[1:]]

    def forward(self, x):
        return self.case.ours(x, *self.rest)


@every_case
def test_exports_and_traces(case):
    inputs = [t.detach() for t in case.inputs((2, 4), torch.float32)]
    model, expected = Model(case, inputs), case.ours(*inputs)
    exported = torch.export.export(model, (inputs[0],)).module()
    traced = torch.jit.trace(model, (inputs[0],))
    graph = make_fx(model)(inputs[0])
    for f in (exported, traced, graph, torch.fx.symbolic_trace(model)):
        torch.testing.assert_close(f(inputs[0]), expected, **tolerance(torch.float32))


@every_case
@pytest.mark.parametrize("reentrant", [False, True])
@every_backend
def test_activation_checkpointing(case, reentrant, backend, device):
    inputs = case.inputs((4, 6), torch.float32, device)
    with sigtorch.use_backend(backend):
        plain = gradients(case.ours, inputs, torch.ones_like)
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = checkpoint(case.ours, *leaves, use_reentrant=reentrant)
        out.backward(torch.ones_like(out))
    torch.testing.assert_close((out.detach(), tuple(t.grad for t in leaves)), plain, rtol=0, atol=0)


def saving_alike():
    """Two operations each, and the inputs of both: what they save is of the same shapes."""
    others = [c for c in CASES if not c.saves_output and c.name not in ALIKE]
    operations = {c.name: (c.ours, [*c.shapes((4, 6))]) for c in others}
    operations |= {f.__name__: (lambda x, f=f: f(x, torch.zeros_like(x)), [(4, 6), "targets"]) for f in LOSSES}
    for (name, (call, shapes)), (other, (another, theirs)) in itertools.permutations(operations.items(), 2):
        if shapes == theirs:
            yield pytest.param(call, another, [torch.randn(s) for s in shapes if s != "targets"], id=f"{name}, {other}")


@pytest.mark.kernels
@pytest.mark.parametrize(("call", "another", "inputs"), [*saving_alike()])
def test_another_operation_that_saves_as_much_is_noticed(call, another, inputs, device):
    """A checkpoint that recomputes another operation raises."""
    inputs = [t.to(device).requires_grad_() for t in inputs]
    calls = [call, another]
    with sigtorch.use_backend("triton"):
        out = checkpoint(lambda *a: calls.pop(0)(*a), *inputs, use_reentrant=False)
        with pytest.raises((RuntimeError, CheckpointError), match=r"(?i)recomput"):
            out.sum().backward()


def test_a_first_use_in_inference_mode():
    """State that an operation keeps of its first use serves a training step."""
    code = (
        "import torch, sigtorch\n"
        "x = torch.randn(4, 6)\n"
        "with torch.inference_mode(): sigtorch.sigmoid(x, save='input')\n"
        "sigtorch.sigmoid(x.requires_grad_(), save='input').sum().backward()\n"
        "print(x.grad.isfinite().all().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@every_case
@every_backend
def test_saved_tensor_hooks(case, backend, device):
    inputs = case.inputs((4, 6), torch.float32, device)
    packed = []

    def pack(t):
        packed.append(t.numel() * t.element_size())
        return t.numpy(force=True).copy()

    with sigtorch.use_backend(backend):
        plain = gradients(case.ours, inputs, torch.ones_like)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: torch.from_numpy(a).to(device)):
            hooked = gradients(case.ours, inputs, torch.ones_like)
    torch.testing.assert_close(hooked, plain, rtol=0, atol=0)
    if backend == "triton":
        marker = 64  # bytes at most
        assert sum(packed) <= sum(t.numel() * t.element_size() for t in inputs) + marker, "more saved than the inputs"


@every_case
@every_backend
def test_backward_on_other_threads(case, backend, device):
    """A backward runs what its forward chose: threads have no choice of their own."""
    inputs = case.inputs((4, 6), torch.float32, device)
    with sigtorch.use_backend(backend):
        expected = gradients(case.ours, inputs, torch.ones_like)[1]
        outs = [case.ours(*inputs) for _ in range(4)]
    found = [None] * len(outs)

    def backward(i):
        found[i] = torch.autograd.grad(outs[i], inputs, torch.ones_like(outs[i]))

    threads = [threading.Thread(target=backward, args=(i,)) for i in range(len(outs))]
    for t in threads:
        t.start()
        if backend == "triton" and device == "cpu":  # Triton's interpreter runs one thread at a time
            t.join()
    for t in threads:
        t.join()
    for grads in found:
        torch.testing.assert_close(grads, expected, rtol=0, atol=0)


@every_case
def test_autocast_is_as_the_oracles(case, device):
    inputs = case.inputs((4, 6), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        mine, theirs = case.ours(*inputs), case.oracle(*inputs)
    assert mine.dtype == theirs.dtype
    torch.testing.assert_close(mine, theirs, **tolerance(mine.dtype, 4))  # the oracle, too, rounds after every operator
    half = [t.detach().bfloat16() for t in inputs]
    with torch.autocast(device, torch.bfloat16):
        assert case.ours(*half).dtype == case.oracle(*half).dtype


@every_case
@every_backend
def test_takes_tensors_of_inference_mode(case, backend, device):
    """Takes them where PyTorch does, which saves other tensors than a kernel would, and inside the mode."""
    for i in range(len(case.shapes((4, 6)))):
        inputs = case.inputs((4, 6), torch.float32, device)
        with torch.inference_mode():
            inputs[i] = inputs[i] * 1
            with sigtorch.use_backend(backend):
                torch.testing.assert_close(case.ours(*inputs), case.oracle(*inputs), **tolerance(torch.float32, 4))
        wanted = [t for j, t in enumerate(inputs) if j != i]
        try:
            theirs = case.oracle(*inputs)
        except RuntimeError:  # which needs that tensor in backward, too
            continue
        with sigtorch.use_backend(backend):
            ours = case.ours(*inputs)
        torch.testing.assert_close(ours, theirs, **tolerance(torch.float32, 4))
        if wanted:
            grads = [torch.autograd.grad(out, wanted, torch.ones_like(out)) for out in (ours, theirs)]
            torch.testing.assert_close(*grads, **tolerance(torch.float32, 4))


def symbolic(function, inputs, unbacked=False):
    """Calls function with fake tensors, whose sizes are symbols: one for the first axis, where that is unbacked."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        if not unbacked:
            return function(*[mode.from_tensor(t) for t in inputs])
        size = mode.shape_env.create_unbacked_symint()
        return function(*[torch.empty(size, *t.shape[1:]) for t in inputs])


@every_case
def test_traces_symbolic_sizes(case):
    inputs = [t.detach() for t in case.inputs((4, 6), torch.float32)]
    leaves = [t.clone().requires_grad_() for t in inputs]
    expected = case.oracle(*inputs)
    torch.testing.assert_close(
        aot_function(lambda *a: case.ours(*a), nop, dynamic=True)(*leaves), expected, **tolerance(torch.float32)
    )
    for unbacked in (False, True):
        try:
            theirs = symbolic(case.oracle, inputs, unbacked)
        except GuardOnDataDependentSymNode:  # torch 2.8's own F.glu wants to know an unbacked size
            continue
        out = symbolic(case.ours, inputs, unbacked)
        assert [str(n) for n in out.shape] == [str(n) for n in theirs.shape]


class Watched(torch.Tensor):
    """A subclass that keeps its type through every operator."""


@every_case
def test_subclasses_modes_and_meta(case):
    inputs = [t.detach() for t in case.inputs((4, 6), torch.float32)]
    out = case.ours(*[t.as_subclass(Watched) for t in inputs])
    assert type(out) is Watched
    torch.testing.assert_close(out.as_subclass(torch.Tensor), case.ours(*inputs), **tolerance(torch.float32))
    with FlopCounterMode(display=False):
        torch.testing.assert_close(case.ours(*inputs), case.oracle(*inputs), **tolerance(torch.float32))
    assert case.ours(*[t.to("meta") for t in inputs]).shape == case.oracle(*inputs).shape


@every_case
@every_engine
def test_extreme_values(case, backend, device):
    """Far out in one input, results and gradients are what float64 says."""
    far = torch.tensor([0.0, -0.0, 1.0, 20.0, 88.0, 90.0, 104.0, 1e4, case.farthest])
    values = torch.cat([far, -far]).to(device)
    shapes = case.shapes((9, 2)) if case.weighs_rows else [values.shape for _ in case.shapes((1,))]
    ones = [torch.ones(s, device=device, requires_grad=True) for s in shapes]
    for i, shape in enumerate(shapes):
        here = values[:: len(values) // ones[i].numel()].reshape(shape).clone().requires_grad_()
        check(case, [*ones[:i], here, *ones[i + 1 :]], torch.ones_like, backend)


@every_case
@every_engine
def test_nan_stays_nan(case, backend, device):
    """NaN is in the result where one of the inputs has it, and nowhere else."""
    plain = case.inputs((4, 6), torch.float32, device)
    for i in range(len(plain)):
        inputs = [t.detach().clone().requires_grad_() for t in plain]
        inputs[i].detach().view(-1)[1] = torch.nan
        with sigtorch.use_backend(backend):
            out, grads = gradients(case.ours, inputs, torch.ones_like)
        expected, slopes = gradients(case.oracle, inputs, torch.ones_like)
        for mine, theirs in zip((out, *grads), (expected, *slopes)):
            assert torch.equal(mine.isnan(), theirs.isnan())


@every_backend
@pytest.mark.parametrize("dim", [numpy.int64(1), torch.tensor(1)], ids=["numpy", "tensor"])
def test_whole_numbers_of_any_kind(dim, backend, device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    with sigtorch.use_backend(backend):
        found = gradients(lambda x: sigtorch.glu(x, dim), [x], torch.ones_like)
    torch.testing.assert_close(found, gradients(lambda x: torch.nn.functional.glu(x, 1), [x], torch.ones_like))


@every_case
@pytest.mark.parametrize("shape", [(4, 6, 16), (6, 5, 34)], ids=str)
def test_two_runs_are_bit_equal(case, shape, device):
    inputs = case.inputs(shape, torch.float32, device)
    first, second = (check(case, inputs, backend="triton") for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shapes((4, 6))) > 1], ids=lambda c: c.name)
def test_one_tensor_given_twice(case, device):
    """Each place has its gradient, also where the backward pass is differentiated itself."""
    shapes = case.shapes((4, 6))
    if len(set(shapes)) > 1:
        pytest.skip("its inputs differ in shape")
    x = torch.randn(4, 6, dtype=torch.float64, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(case.oracle(*[x] * len(shapes)).sum(), x)
    for create_graph in (False, True):
        with sigtorch.use_backend("triton"):
            (found,) = torch.autograd.grad(case.ours(*[x] * len(shapes)).sum(), x, create_graph=create_graph)
        torch.testing.assert_close(found.detach(), expected)
