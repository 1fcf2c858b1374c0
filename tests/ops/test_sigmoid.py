"""Tests of the sigmoid alone: precision to the ulp, drop-in for torch.sigmoid, export, distribution."""

import copy
import os
import pickle

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import DTYPES, HALF, ULP, gradients, ulps
from support.device import DEVICE, TORCH
from support.forking import forks

import sigtorch

both_saves = pytest.mark.parametrize("save", ["output", "input"])


@pytest.mark.kernels
@both_saves
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_half_value_to_the_ulp(save, dtype, device):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device).requires_grad_()
    with sigtorch.use_backend("triton"):
        s, (g,) = gradients(lambda x: sigtorch.sigmoid(x, save=save), [x], lambda out: torch.full_like(out, 0.73))
    wide, given = x.detach().double(), torch.tensor(0.73, dtype=dtype, device=device).double()
    near = wide.abs() <= 86
    assert ulps(s[near], torch.sigmoid(wide[near])).max() <= 0.51
    seen = s.double() * (1 - s.double()) if save == "output" else torch.sigmoid(wide) * torch.sigmoid(-wide)
    assert ulps(g[near], (given * seen)[near]).max() <= 0.51
    assert s[wide.isnan()].isnan().all()
    assert g[wide.isnan()].isnan().all()
    far = ~near & ~wide.isnan()
    torch.testing.assert_close(s[far].double(), torch.sigmoid(wide[far]), rtol=0, atol=torch.finfo(dtype).tiny)
    torch.testing.assert_close(g[far].double(), (given * seen)[far], rtol=0, atol=torch.finfo(dtype).tiny)


@pytest.mark.kernels
@both_saves
def test_single_precision_to_the_ulp(save, device):
    x = torch.cat(
        [torch.linspace(-87, 87, 4001), torch.tensor([-torch.inf, torch.inf, -3e38, 3e38, -88, -100, -110, 110])]
    )
    x = x.to(device).requires_grad_()
    with sigtorch.use_backend("triton"):
        s, (g,) = gradients(lambda x: sigtorch.sigmoid(x, save=save), [x], torch.ones_like)
    wide = x.detach().double()
    assert ulps(s, torch.sigmoid(wide)).max() <= 8
    exact = s.double() * (1 - s.double()) if save == "output" else torch.sigmoid(wide) * torch.sigmoid(-wide)
    assert ulps(g, exact).max() <= 8
    assert s[4001:4005].tolist() == [0, 1, 0, 1]
    assert (g[4001:4005] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:.*TensorFloat32")
def test_from_input_keeps_its_gradient_on_every_path(dtype, compiled):
    torch._dynamo.reset()
    fn = lambda x: sigtorch.sigmoid(x, save="input")  # noqa: E731
    fn = torch.compile(fn, fullgraph=True, backend="aot_eager") if compiled else fn
    x = torch.linspace(-86 if dtype != torch.float16 else -9, 30, 1001, dtype=dtype).requires_grad_()
    s, (g,) = gradients(fn, [x], torch.ones_like)
    wide = x.detach().double()
    bound = ULP.get(dtype, 1e-12) * (1 if dtype in HALF else 16)
    torch.testing.assert_close(s.double(), torch.sigmoid(wide), rtol=bound, atol=torch.finfo(dtype).tiny)
    torch.testing.assert_close(
        g.double(), torch.sigmoid(wide) * torch.sigmoid(-wide), rtol=bound, atol=torch.finfo(dtype).tiny
    )


def test_on_cpu_it_is_torchs():
    x = torch.randn(100).requires_grad_()
    assert type(sigtorch.sigmoid(x).grad_fn).__name__ == "SigmoidBackward0"
    torch.testing.assert_close(sigtorch.sigmoid(x), torch.sigmoid(x), rtol=0, atol=0)


@both_saves
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.complex64], ids=str)
def test_promotes_as_torch(save, dtype):
    x = torch.tensor([0, 1, 1, 0]).to(dtype)
    torch.testing.assert_close(sigtorch.sigmoid(x, save=save), torch.sigmoid(x), rtol=0, atol=0)


def test_default_dtype_counts_for_integers():
    torch.set_default_dtype(torch.float64)
    try:
        assert sigtorch.sigmoid(torch.tensor([1, 2]), save="input").dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@both_saves
def test_what_is_not_plain_goes_to_torch(save):
    fn = lambda x: sigtorch.sigmoid(x, save=save)  # noqa: E731
    x = torch.randn(4, 6)
    with sigtorch.use_backend("triton"):
        conjugate = torch.randn(4, dtype=torch.complex64).conj()
        torch.testing.assert_close(fn(conjugate), torch.sigmoid(conjugate))
        negative = torch._neg_view(x)
        torch.testing.assert_close(fn(negative), torch.sigmoid(-x))
        assert fn(torch._efficientzerotensor((3,))).tolist() == [0.5] * 3
        nested = torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged)
        torch.testing.assert_close(fn(nested).values(), torch.sigmoid(nested).values())
        assert sigtorch.backend_of(nested) == "aten"


@pytest.mark.filterwarnings("ignore:.*quant.*")
def test_quantised_goes_to_torch():
    x = torch.quantize_per_tensor(torch.randn(8), 0.1, 0, torch.quint8)
    assert torch.equal(sigtorch.sigmoid(x).int_repr(), torch.sigmoid(x).int_repr())


def test_overriding_objects_see_torch_sigmoid():
    class Seen:
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func, args

    seen = Seen()
    for save in ("output", "input"):
        assert sigtorch.sigmoid(seen, save=save) == (torch.sigmoid, (seen,))


@both_saves
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32), max_size=40), columns=st.integers(1, 4))
def test_any_values(save, values, columns):
    x = torch.tensor(values[: len(values) // columns * columns]).view(-1, columns).to(DEVICE)
    expected = torch.sigmoid(x.double())
    for backend in ("auto", "triton"):
        with sigtorch.use_backend(backend):
            s = sigtorch.sigmoid(x, save=save)
        torch.testing.assert_close(s.double(), expected, rtol=8 * 2.0**-23, atol=2.0**-126, equal_nan=True)


@both_saves
def test_module_is_a_sigmoid(save):
    module = sigtorch.nn.Sigmoid(save=save)
    x = torch.randn(5)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.save == save
        torch.testing.assert_close(copied(x), torch.sigmoid(x))
    assert isinstance(module, torch.nn.Sigmoid)
    assert repr(module) == f"Sigmoid(save={save!r})"
    torch.nn.Sequential(torch.nn.Linear(2, 2), module).load_state_dict(
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sigmoid()).state_dict()
    )


@both_saves
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_export(save, tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator

    x = torch.randn(2, 3)
    torch.onnx.export(
        torch.nn.Sequential(sigtorch.nn.Sigmoid(save=save)), (x,), tmp_path / "model.onnx", dynamo=True, verbose=False
    )
    model = onnx.load(tmp_path / "model.onnx")
    (found,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), torch.sigmoid(x))


def _distributed(rank, path):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    mesh = init_device_mesh("cpu", (2,))
    calls = [
        sigtorch.sigmoid,
        lambda t: sigtorch.sigmoid_gate(t, t, t),
        lambda t: sigtorch.sigmoid_lerp(t, 2 * t, t),
        lambda t: sigtorch.swiglu(t, t),
        sigtorch.swiglu,
    ]
    # Older releases' DTensor has no rule for these.
    calls += [lambda t: sigtorch.sigmoid(t, save="input")] * (TORCH > (2, 8)) + [sigtorch.glu] * (TORCH > (2, 11))
    for call in calls:
        d, plain = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_(), x.clone().requires_grad_()
        out, expected = call(d), call(plain)
        out.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(out.full_tensor(), expected)
        torch.testing.assert_close(d.grad.full_tensor(), plain.grad)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group, and once in a while they abort an interpreter that tears down


def test_dtensor_over_two_processes(tmp_path):
    forks()  # starts the server
    place = str(tmp_path / "rendezvous")
    mp.start_processes(_distributed, (place,), nprocs=2, start_method="forkserver")  # raises what a process asserts


@pytest.mark.parametrize("backend", ["auto", "aten", "triton"])
def test_from_input_at_zero(backend):
    """The formula has two branches, which meet there: value and derivatives are those of one curve."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with sigtorch.use_backend(backend):
        value = sigtorch.sigmoid(x, save="input")
        derivatives = []
        for _ in range(3):
            (value,) = torch.autograd.grad(value, x, create_graph=True)
            derivatives.append(value.item())
    assert derivatives == pytest.approx([0.25, 0.0, -0.125], abs=1e-15)
