"""The calls that replace products: what they check each time, and what they return."""

import copy
import os
import sys
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from support.fresh import outcomes
from support.patching import MLP, Silu, Switched, agree, forward_as, run, the_other_way_round
from torch import nn

import sigtorch
from sigtorch.ops import gates
from sigtorch.plugin import activated, products


class Twice(nn.SiLU):
    def forward(self, input):
        return super().forward(input) * 2


class Steep(nn.Module):
    def forward(self, x):
        return torch.sigmoid(2 * x)


class Called(nn.SiLU):
    def __call__(self, input):
        return input


class Inplace(nn.Module):
    """Works in place by an attribute, as timm's activations do."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sigmoid_() if self.inplace else x.sigmoid()


def test_activations_are_recognised_by_what_they_compute():
    for act, name in [(Silu(), "swiglu"), (Inplace(False), "sigmoid_gate"), (nn.Sigmoid(), "sigmoid_gate")]:
        assert sigtorch.patch(MLP(act)).swapped[""].startswith(f"sigtorch.{name} at patching.py:"), act
    steep = MLP(Steep())
    before = run(steep)
    sigtorch.patch(steep)
    agree(before, run(steep), exactly=True)
    for act in (Twice(), Called(), Inplace(True)):
        model = MLP(act)
        before = run(model)
        assert "" not in sigtorch.patch(model).swapped, act
        agree(before, run(model), exactly=True)


def test_a_function_as_an_attribute(calls):
    model = MLP()
    del model.act
    model.act = F.silu
    before = run(model)
    sigtorch.patch(model)
    agree(before, run(model))
    assert calls == ["swiglu"]
    model.act = torch.tanh
    run(model)
    assert calls == ["swiglu"]


def test_a_function_whose_code_was_replaced(calls, monkeypatch):
    model = MLP()
    del model.act
    model.act = F.silu
    monkeypatch.setattr(F.silu, "__code__", (lambda input, inplace=False: input).__code__)
    before = run(model)
    with sigtorch.patch(model):
        agree(before, run(model), exactly=True)
    assert not calls


def test_later_changes_of_an_activation_are_noticed(calls):
    """Each call checks for hooks, a new forward and another module."""
    model, seen = MLP(), []
    sigtorch.patch(model)
    handle = model.act.register_forward_hook(lambda *a: seen.append("hook"))
    run(model)
    assert seen == ["hook"]
    handle.remove()
    model.act.forward = torch.tanh
    tanh = run(model)
    del model.act.forward
    plain = run(model)
    assert calls == ["swiglu"]
    model.act = nn.Tanh()
    agree(tanh, run(model), exactly=True)
    assert not torch.equal(tanh[0], plain[0])
    with nn.modules.module.register_module_forward_hook(lambda *a: seen.append("global")):
        model.act = nn.SiLU()
        run(model)
    assert seen.count("global") == 5
    assert calls == ["swiglu"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.SiLU, "forward", nn.Tanh.forward)
        agree(tanh, run(model), exactly=True)
    assert calls == ["swiglu"]


class Squeeze(nn.Module):
    """Has a gate for each channel, whose sigmoid another method returns."""

    def __init__(self):
        super().__init__()
        self.fc, self.sigmoid = nn.Conv2d(6, 6, 1), nn.Sigmoid()

    def _scale(self, x):
        y = x.mean((2, 3), keepdim=True)
        y = y * torch.sigmoid(y)
        return self.sigmoid(self.fc(y))

    def forward(self, x):
        scale = self._scale(x)
        return scale * x


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_sigmoid_that_another_method_returns(memory_format, calls):
    model, x = Squeeze(), torch.randn(2, 6, 3, 4).to(memory_format=memory_format)
    before = run(model, x)
    with sigtorch.patch(model):
        after = run(model, x)
        assert calls == ["sigmoid_gate"] * 2
        assert after[0].stride() == before[0].stride()
        agree(before, after)
        assert type(model._scale(x)) is torch.Tensor
        for scale in (lambda x: torch.ones(1), MethodType(lambda self, x: torch.ones(1), model)):
            model._scale = scale
            torch.testing.assert_close(model(x), x)
        del model._scale


class Sequence(nn.Module):
    """Squeeze-and-excitation in its most common form."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(3, 6), nn.Sigmoid()))

    def forward(self, x):
        b, c, _, _ = x.size()
        y = x.mean((2, 3)).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


def test_a_sequence_that_ends_in_a_sigmoid(calls):
    model, x = Sequence(), torch.randn(2, 6, 3, 4)
    before, seen = run(model, x), []
    sigtorch.patch(model)
    agree(before, run(model, x))
    assert calls == ["sigmoid_gate"]
    for hooked in (model.fc, model.fc[2], model.fc[2][1]):
        with hooked.register_forward_hook(lambda *a: seen.append(a[0])):
            agree(before, run(model, x))
            other = copy.deepcopy(model)
            other.__class__ = Sequence
            assert (
                sigtorch.patch(other).left[""].endswith(": fc cannot be fused, it has hooks, which fusing would bypass")
            )
        assert seen.pop() is hooked
    model.fc[0].register_forward_hook(lambda *a: seen.append(a[0]))
    agree(before, run(model, x))
    assert seen == [model.fc[0]]
    assert calls.count("sigmoid_gate") == 2
    model.fc[2] = nn.Linear(3, 6)
    model(x)
    del model.fc[:]
    model.fc.append(nn.Tanh())
    model(x)
    assert calls.count("sigmoid_gate") == 2


class Layout(nn.Module):
    def __init__(self, act, first):
        super().__init__()
        self.act, self.first = act, first

    def forward(self, x, g):
        return self.act(g) * x if self.first else x * self.act(g)


@pytest.mark.kernels
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("act", [torch.sigmoid, F.silu])
@pytest.mark.any_arch
def test_a_result_has_the_same_strides(act, first, device, monkeypatch):
    """If operands differ in layout, the first one decides the result's: a kernel runs if its result has the same."""
    model, x = Layout(act, first), torch.randn(2, 3, 4, 5, device=device)
    g = torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    zero = torch.randn(3, 1, 1, 4, device=device).expand(3, 4, 1, 4)
    always = [(x, x.clone()), (x, g[:, :1]), (x, x[..., :1]), (x[:, :1], x), (g, g[:, :, :1, :1]), (x[0, :, :1], x)]
    always += [(x[:, :1].contiguous(), x[:, :, :1, :1].contiguous())]
    whole, part = [(x, g), (g, x), (x[..., ::2], g[..., ::2])], [(x, g[..., :1]), (g, x[:1])]
    zeros, never = [(zero, torch.randn(3, 4, 4, device=device).transpose(1, 2).unsqueeze(2))], [(x[:, :1], g[:1])]
    whole_run = first == (act is F.silu)  # the first operand of the product is the kernel's
    pairs = [*always, *whole, *part, *zeros, *never]
    run_too = [] if not whole_run else [*whole, *(zeros if first else part)]
    expected = [model(*pair) for pair in pairs]
    fused, ran = products.fused_product, []
    monkeypatch.setattr(products, "fused_product", lambda *given: ran.append(given) or fused(*given))
    with sigtorch.patch(model), sigtorch.use_backend("triton"):
        for pair, out in zip(pairs, expected, strict=True):
            torch.testing.assert_close(model(*pair), out, check_stride=True)
    assert len(ran) == len(always) + len(run_too)


class SpatialAttention(nn.Module):
    """Has a gate for each pixel, then one for each channel, as scSE blocks and CBAM do."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(6, 1, 1), nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())

    def forward(self, x):
        x = x * torch.sigmoid(self.conv(x))
        return self.fc(x.mean((2, 3)))[:, None, None] * x.permute(0, 2, 3, 1)


@pytest.mark.kernels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gates_of_pixels_run_a_kernel(memory_format, device, monkeypatch):
    model, x = SpatialAttention().to(device), torch.randn(2, 6, 3, 4, device=device).to(memory_format=memory_format)
    before, fused, ran = run(model, x), products.fused_product, []
    monkeypatch.setattr(products, "fused_product", lambda *given: ran.append(given) or fused(*given))
    with sigtorch.patch(model), sigtorch.use_backend("triton"):
        agree(before, run(model, x))
    assert len(ran) == 2


def test_operands_that_are_not_two_tensors(calls):
    model, x = Layout(torch.sigmoid, True), torch.randn(3, 4)
    others = (
        2.5,
        torch.ones(3, 4, dtype=torch.int64),
        torch.ones(()),
        nn.Parameter(torch.ones(3, 4)),
        torch.ones(5, 3, 4),
    )
    expected = [model(other, x) for other in others]
    sigtorch.patch(model)
    for other, out in zip(others, expected, strict=True):
        torch.testing.assert_close(model(other, x), out)
    with pytest.raises(RuntimeError, match="must match the size"):
        model(torch.ones(7), x)
    with pytest.raises(TypeError, match="only integer tensors"):
        model([1], x)
    with pytest.raises(TypeError, match=r"sigmoid\(\): argument 'input'"):
        model(x, 2.5)


class Meddling(nn.Module):
    def forward(self, x, g):
        gate = torch.sigmoid(g)
        self.meddle(g)
        return x * gate

    def meddle(self, g):
        g.zero_()


def test_a_gate_that_a_variable_holds_is_computed(calls):
    """Other code may change the gate through that variable before the product."""
    gate = torch.randn(4)
    assert activated.activated_early(torch.sigmoid, gate).computed is not None
    only_here = activated.activated_early(torch.sigmoid, gate * 1).computed is None
    assert only_here == (sys.version_info < (3, 14)), "from Python 3.14 on, references do not tell"


def test_a_gate_is_known_to_be_alone_after_a_failed_compile():
    """After an error, torch.compile goes on evaluating frames, and Python then holds a caller's arguments."""
    program = """
import sys, torch
import sigtorch
from sigtorch.plugin import activated

activated.may_fuse = lambda gate: True

def breaks(x):
    torch._dynamo.graph_break()
    return x

def is_put_off(gate):
    return activated.activated_early(torch.sigmoid, gate * 1).computed is None

x = torch.ones(2)
before = is_put_off(x)
try:
    torch.compile(breaks, fullgraph=True, backend="eager")(x)
except torch._dynamo.exc.Unsupported:
    print(before, is_put_off(x))
"""
    alone = sys.version_info < (3, 14)
    assert outcomes({"": (program, os.environ)})[""].printed == f"{alone} {alone}\n"


def test_inference_mode(calls):
    """Inference tensors have no version counter: a sigmoid is put off only if no other code runs before the product."""
    model, x = Meddling(), torch.ones(3)
    sigtorch.patch(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(x, torch.ones(3)), torch.sigmoid(x))
    assert not calls
    with torch.inference_mode():
        for model, seen in ((MLP(), []), (forward_as(the_other_way_round), ["swiglu"])):
            x = torch.randn(4, 6)
            expected = model(x)
            with sigtorch.patch(model):
                torch.testing.assert_close(model(x), expected)
            assert calls == seen
    model, x = Gated(), torch.randn(4, 6)
    sigtorch.patch(model)
    calls.clear()
    with torch.inference_mode():  # with a tensor from outside of it
        torch.testing.assert_close(model(x), x * torch.sigmoid(model.fc[0](x)))
    assert calls == ["sigmoid"]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())

    def forward(self, x):
        gate = self.fc(x)
        return x * gate.view(x.shape)


class Fresh(nn.Module):
    """Does the same with a tensor that nothing else holds, so that its sigmoid is put off."""

    def forward(self, x, g):
        torch.set_grad_enabled(False)
        gate = torch.sigmoid(g.clone().requires_grad_())
        torch.set_grad_enabled(True)
        return x * gate


@pytest.mark.parametrize("kind", [Switched, Fresh])
def test_a_gate_computed_without_a_graph(kind, calls):
    model, x, g = kind(), torch.randn(6), torch.randn(6, requires_grad=True)
    with sigtorch.patch(model):
        assert not model(x, g).requires_grad
    assert not calls


class SqueezeExcitation(nn.Module):
    def forward(self, x):
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(gate)


@pytest.mark.kernels
def test_a_product_checks_each_thing_once(device, monkeypatch):
    """The backend is selected at the product alone, and shapes are checked once."""
    model, x, asked = SqueezeExcitation(), torch.randn(2, 3, 4, 4, device=device), []
    for owner, name in (
        (activated._backend, "select"),
        (gates.sigmoid, "select"),
        (gates.SigmoidGateFunction, "fuses"),
    ):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *t, f=function, n=name: asked.append(n) or f(*t))
    expected = model(x)
    with sigtorch.patch(model), sigtorch.use_backend("triton"):
        torch.testing.assert_close(model(x), expected)
    assert asked == ["fuses", "select"]


def test_a_module_that_takes_the_sigmoid_of_another_value(calls):
    """Its sigmoid is put off with that value."""
    model = MLP(Steep())
    before = run(model)
    with sigtorch.patch(model):
        agree(before, run(model))
    assert calls == ["sigmoid_gate"]
