"""``patched_functions`` diverts PyTorch's functions in its block and thread, compiled too, and nowhere else."""

import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from support.patching import agree
from torch import nn
from torch.overrides import TorchFunctionMode

import sigtorch

FUNCTIONS = {
    "torch.sigmoid": (torch.sigmoid, "sigmoid"),
    "Tensor.sigmoid": (torch.Tensor.sigmoid, "sigmoid"),
    "F.sigmoid": (F.sigmoid, "sigmoid"),
    "expit": (torch.special.expit, "sigmoid"),
    "by keyword": (lambda x: torch.sigmoid(input=x, out=None), "sigmoid"),
    "nn.Sigmoid": (nn.Sigmoid(), "sigmoid"),
    "F.glu": (F.glu, "glu"),
    "F.glu(dim)": (lambda x: F.glu(x, dim=0), "glu"),
    "nn.GLU": (nn.GLU(0), "glu"),
}
every_function = pytest.mark.parametrize(("function", "name"), FUNCTIONS.values(), ids=FUNCTIONS)


@every_function
def test_functions_go_to_sigtorch(function, name, calls):
    x = torch.randn(4, 6, requires_grad=True)
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with sigtorch.patched_functions():
        out = function(x)
        assert calls == [name]
        agree([expected, gradient], [out, *torch.autograd.grad(out.sum(), x)])
    calls.clear()
    function(x)
    assert not calls


@every_function
def test_functions_compile(function, name):
    torch._dynamo.reset()  # it guards on no method descriptor, with modes or without: the next would get Tensor.sigmoid
    x = torch.randn(4, 6)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(x):
        return function(x)

    with sigtorch.patched_functions():
        torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(compiled(x), function(x))

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def inside(x):
        with sigtorch.patched_functions():
            return function(x)

    torch.testing.assert_close(inside(x), function(x))


def test_a_compiled_function_reaches_sigtorch(monkeypatch):
    monkeypatch.setattr("sigtorch.ops.sigmoid.sigmoid", lambda x, save: x + 7)
    compiled = torch.compile(torch.sigmoid, fullgraph=True, backend="aot_eager")
    x = torch.zeros(3)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), x + 0.5)
        with sigtorch.patched_functions():
            torch.testing.assert_close(compiled(x), x + 7)


def test_save_chooses_what_a_sigmoid_saves():
    x = torch.full((2,), 40.0, requires_grad=True)
    slope = torch.sigmoid(x.detach().double()) * torch.sigmoid(-x.detach().double())
    for form in (torch.sigmoid, nn.Sigmoid(), torch.Tensor.sigmoid, torch.special.expit):
        assert not torch.autograd.grad(form(x).sum(), x)[0].any()
        with sigtorch.patched_functions(save="input"):
            (found,) = torch.autograd.grad(form(x).sum(), x)
        torch.testing.assert_close(found.double(), slope)
    with (
        pytest.raises(ValueError, match=r"^patched_functions\(\): unknown save='both'"),
        sigtorch.patched_functions(save="both"),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize("compiled", [False, True])
def test_sigtorchs_own_layers_save_what_they_did(compiled):
    """On a CPU, an operation of sigtorch runs PyTorch's sigmoid, which is not diverted a second time."""
    x = torch.full((2,), 40.0, requires_grad=True)
    forms = [sigtorch.nn.Sigmoid(), lambda x: sigtorch.sigmoid_gate(torch.ones(2), x)]
    forms += [lambda x: sigtorch.sigmoid_lerp(torch.ones(2), torch.zeros(2), x)]
    for form in forms:
        torch._dynamo.reset()
        run = torch.compile(form, fullgraph=True, backend="aot_eager") if compiled else form
        with sigtorch.patched_functions(save="input"):
            assert not torch.autograd.grad(run(x).sum(), x)[0].any()
    with sigtorch.patched_functions(save="input"), sigtorch.patched_functions():  # the inner one decides
        assert not torch.autograd.grad(torch.sigmoid(x).sum(), x)[0].any()


def test_in_place_and_out_stay_pytorchs(calls):
    x = torch.randn(4)
    expected, out = torch.sigmoid(x), torch.empty(4)
    with sigtorch.patched_functions():
        assert torch.sigmoid(x, out=out) is out
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        assert torch.special.expit(x, out=out) is out
        torch.testing.assert_close(x.clone().sigmoid_(), expected, rtol=0, atol=0)
        torch.add(x, x)
    assert not calls


def test_this_thread_only(calls):
    with sigtorch.patched_functions():
        other = threading.Thread(target=lambda: torch.sigmoid(torch.ones(2)))
        other.start()
        other.join()
    assert not calls


def test_functions_are_restored_after_errors(calls):
    x = torch.ones(2)
    with pytest.raises(RuntimeError, match="boom"), sigtorch.patched_functions():
        raise RuntimeError("boom")

    @sigtorch.patched_functions()
    def decorated():
        with sigtorch.patched_functions():
            x.sigmoid()
        return x.sigmoid()

    for _ in range(2):
        decorated()
    assert calls[0] == "sigmoid"
    calls.clear()
    x.sigmoid()
    assert not calls


class Watching(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_other_modes_still_see():
    x = torch.ones(2)
    with Watching() as outer, sigtorch.patched_functions():
        torch.sigmoid(x)
    assert torch.sigmoid in outer.seen
    with sigtorch.patched_functions(), Watching() as inner:
        torch.sigmoid(x)
    assert torch.sigmoid in inner.seen


def test_kernels_run_inside(device):
    """The block does not count as a mode that watches: kernels run in it."""
    x = torch.ones(2, device=device)
    with sigtorch.patched_functions(), sigtorch.use_backend("triton"):
        assert sigtorch.backend_of(x) == "triton"
        with Watching():
            assert sigtorch.backend_of(x) == "aten"


def test_transforms_inside():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    with sigtorch.patched_functions():
        assert torch.autograd.gradcheck(torch.sigmoid, x)
        assert torch.autograd.gradgradcheck(torch.sigmoid, x)
        s = torch.func.vmap(torch.func.grad(torch.sigmoid))(x.detach())
    expected = torch.sigmoid(x.detach())
    torch.testing.assert_close(s, expected * (1 - expected))
