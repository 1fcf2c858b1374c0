"""Products in others' methods: which are fused, that all else about the method stays, and what is left and why."""

import copy
import functools
import inspect
import operator
import traceback
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from patching import MLP, Silu, agree, run, spy
from torch import nn
from torch.nn.utils import parametrize

import sigtorch


@pytest.fixture
def calls(monkeypatch):
    return spy(monkeypatch)


def forward_as(body, act=None):
    """An MLP with this forward."""
    return type("Other", (MLP,), {"forward": body})(act)


def scaled(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) * 2


def clamped(self, x):
    return self.w2(self.act(self.w1(x).clamp(max=7)) * self.w3(x))


def dropped(self, x):
    return self.w2(
        F.dropout(self.act(F.dropout(self.w1(x), 0.5, self.training)) * F.dropout(self.w3(x), 0.5, self.training))
    )


def with_options(self, x, scale=None, *more, factor=1, **rest):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) * factor


def down_of_gate(self, x):
    return self.w2(self.act(self.w1(x)) * self.w1(x))


def the_other_way_round(self, x):
    return self.w2(self.w3(x) * self.act(self.w1(x)))


def depends_on_values(self, x):
    if x.sum() > 1e9:
        return x
    for _ in range(2):
        h = self.act(self.w1(x)) * self.w3(x)
    return self.w2(h)


def keeps_state(self, x):
    self.seen = x
    return self.w2(self.act(self.w1(x)) * self.w3(x))


@torch.enable_grad()
def decorated(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x))


def without_autocast(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.w2(self.act(self.w1(x)) * self.w3(x))


def checkpointed(self, x):
    return torch.utils.checkpoint.checkpoint(
        lambda x: self.w2(self.act(self.w1(x)) * self.w3(x)), x, use_reentrant=False
    )


def by_function(self, x):
    return self.w2(F.silu(self.w1(x)) * self.w3(x))


def by_its_long_name(self, x):
    return self.w2(self.w3(x).mul(torch.nn.functional.silu(self.w1(x))))


def by_torch_mul(self, x):
    return self.w2(torch.mul(self.act(self.w1(x)), self.w3(x)))


def by_operator(self, x):
    return self.w2(operator.mul(self.w3(x), self.act(self.w1(x))))


def first_named(self, x):
    gate = self.w1(x)
    gate = self.act(gate)
    up = self.w3(x)
    return self.w2(torch.multiply(up, gate))


def beside_a_sum(self, x):
    gate = torch.sigmoid(self.w1(x))
    return self.w2(self.act(self.w1(x)) * self.w3(x) + gate)


def packed(self, x):
    gate, up = torch.cat([self.w1(x), self.w3(x)], -1).chunk(2, dim=-1)
    return self.w2(up * self.act(gate))


def scaled_silu(self, x):
    h = self.w1(x)
    return self.w2(h * torch.sigmoid(1.702 * h))


def two_gates(self, x):
    gate = self.w1(x)
    return self.w2((gate * torch.sigmoid(gate) * self.w3(x)) * gate.sigmoid())


def one_a_row(self, x):
    return self.w2(self.w1(x) * torch.sigmoid(self.w3(x).mean(-1)).unsqueeze(-1))


def one_a_row_seen_otherwise(self, x):
    gate = torch.sigmoid(self.w3(x).mean(-1)).view(-1, 1)
    h = self.w1(x)
    return self.w2(h * gate.expand_as(h))


def nested(self, x):
    def inner(y):
        return self.act(self.w1(y)) * self.w3(y)

    return self.w2(next(inner(y) for y in (x,)))


FUSED = {
    scaled: 1, clamped: 1, dropped: 1, with_options: 1, down_of_gate: 1, the_other_way_round: 1, depends_on_values: 2,
    keeps_state: 1, decorated: 1, without_autocast: 1, checkpointed: 2, by_function: 1, by_its_long_name: 1, by_torch_mul: 1,
    by_operator: 1, first_named: 1, beside_a_sum: 1, packed: 1, scaled_silu: 1, two_gates: 2, one_a_row: 1,
    one_a_row_seen_otherwise: 1,
    nested: 1,
}  # fmt: skip


def seeded(model):
    torch.manual_seed(0)
    return run(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("body", FUSED, ids=lambda body: body.__name__)
def test_products_are_fused_in_whatever_surroundings(body, training, monkeypatch):
    model = forward_as(body).train(training)
    before = seeded(model)
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == [""]
    assert not patch.left
    agree(before, seeded(model), exactly=True)
    calls = spy(monkeypatch)
    agree(before, seeded(model))
    assert len(calls) == FUSED[body]
    assert set(calls) <= {"swiglu", "sigmoid_gate"}
    patch.undo()
    agree(before, seeded(model), exactly=True)


@pytest.mark.kernels
@pytest.mark.parametrize(
    "body", [scaled, the_other_way_round, packed, scaled_silu, two_gates, one_a_row], ids=lambda b: b.__name__
)
def test_products_run_in_kernels(body, device):
    model, x = forward_as(body).to(device), torch.linspace(-2, 2, 24).reshape(4, 6).to(device)
    before = run(model, x)
    with sigtorch.patch(model), sigtorch.use_backend("triton"):
        agree(before, run(model, x))
        out = model(x)
    assert "Gate" in ancestors(out) or "SwiGLU" in ancestors(out)


def ancestors(out):
    """The names of what backward runs."""
    nodes = [out.grad_fn]
    for node in nodes:
        nodes += [n for n, _ in node.next_functions if n is not None]
    return " ".join(node.name() for node in nodes)


def in_place(self, x):
    h = self.w3(x)
    h *= self.act(self.w1(x))
    return self.w2(h.mul_(torch.sigmoid(h)))


def by_a_number(self, x):
    return self.w2(2 * self.act(self.w1(x)) + self.w3(x))


def another_activation(self, x):
    return self.w2(torch.tanh(self.w1(x)) * F.silu(self.w3(x), inplace=False))


def used_twice(self, x):
    gate = torch.sigmoid(self.w1(x))
    return self.w2(gate * self.w3(x) + gate)


def used_by_a_closure(self, x):
    gate = torch.sigmoid(self.w1(x))
    return self.w2((lambda: gate * self.w3(x))())


def seen_by_locals(self, x):
    gate = torch.sigmoid(self.w1(x))
    h = gate * self.w3(x)
    return self.w2(h + 0 * locals()["gate"].sum())


def changed_later(self, x):
    gate = torch.sigmoid(self.w1(x))
    if self.training:
        gate = gate + 1
    return self.w2(gate * self.w3(x))


def of_a_local(self, x):
    act = self.act
    return self.w2(act(self.w1(x)) * self.w3(x))


def broken(self, x):
    raise SystemError(self.act)


@pytest.mark.parametrize(
    "body",
    [by_a_number, another_activation, used_twice, used_by_a_closure, seen_by_locals, changed_later, of_a_local, broken],
    ids=lambda body: body.__name__,
)
def test_what_is_no_such_product_is_not_touched(body):
    model = forward_as(body)
    before = dict(vars(model))
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert not patch.left
    assert vars(model) == before


def test_what_works_in_place_is_left():
    model = forward_as(in_place)
    left = sigtorch.patch(model).left[""].splitlines()
    first = in_place.__code__.co_firstlineno
    assert left == [f"test_rewrite.py:{first + n}: it changes a tensor in place" for n in (2, 3)]
    patch = sigtorch.patch(MLP(nn.SiLU(inplace=True)))
    assert patch.left[""].endswith("act cannot be fused, it works in place")
    assert not patch.swapped


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.Sequential(), nn.Sequential(nn.SiLU(), nn.ReLU())], ids=repr)
def test_another_activation_is_left(act):
    assert not sigtorch.patch(MLP(act)).swapped


class Twice(nn.SiLU):
    def forward(self, input):
        return super().forward(input) * 2


class Called(nn.SiLU):
    def __call__(self, input):
        return input


class Inplace(nn.Module):
    """As timm has them: told by an attribute."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sigmoid_() if self.inplace else x.sigmoid()


def test_activations_are_told_by_what_they_compute():
    for act, name in [(Silu(), "swiglu"), (Inplace(False), "sigmoid_gate"), (nn.Sigmoid(), "sigmoid_gate")]:
        assert sigtorch.patch(MLP(act)).swapped[""].startswith(f"sigtorch.{name} at patching.py:"), act
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


def test_what_becomes_of_an_activation_later_is_seen(calls):
    """Hooks, a new forward and another module are looked at in each call."""
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
    """A gate a channel, whose sigmoid another method returns."""

    def __init__(self):
        super().__init__()
        self.fc, self.sigmoid = nn.Conv2d(6, 6, 1), nn.Sigmoid()

    def _scale(self, x):
        y = x.mean((2, 3), keepdim=True)
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
        assert calls == ["sigmoid_gate"]
        assert after[0].stride() == before[0].stride()
        agree(before, after)
        assert type(model._scale(x)) is torch.Tensor
        for scale in (lambda x: torch.ones(1), MethodType(lambda self, x: torch.ones(1), model)):
            model._scale = scale
            torch.testing.assert_close(model(x), x)


class Sequence(nn.Module):
    """Squeeze-and-excitation as most write it."""

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
    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x, g):
        return torch.sigmoid(g) * x if self.first else x * torch.sigmoid(g)


@pytest.mark.parametrize("first", [True, False])
def test_a_result_lies_as_it_did(first, calls):
    """Where operands lie differently, the first one decides: such a product is left to PyTorch."""
    model, x, g = Layout(first), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    inputs = [(x, g), (g, x), (x, x.clone()), (x, g[:, :1]), (x, g[..., :1]), (x, x[..., :1])]
    inputs += [(x[..., ::2], g[..., ::2])]
    expected = [model(*pair) for pair in inputs]
    sigtorch.patch(model)
    for pair, out in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model(*pair), out, check_stride=True)
    assert calls == ["sigmoid_gate"] * 2  # one of the same strides, and one a row of the same order


def test_operands_that_are_no_pair_of_tensors(calls):
    model, x = Layout(True), torch.randn(3, 4)
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
        g.zero_()
        return x * gate


def test_a_gate_that_changes_in_between_is_an_error(calls):
    model, x = Meddling(), torch.ones(3)
    sigtorch.patch(model)
    with pytest.raises(RuntimeError, match=r"^patch\(\): what sigmoid was called with has changed in place"):
        model(x, torch.ones(3))
    with torch.inference_mode():
        torch.testing.assert_close(model(x, torch.ones(3)), torch.sigmoid(x))
    assert not calls


def test_inference_mode(calls):
    """Its tensors keep no version: only where nothing runs in between is a sigmoid put off."""
    with torch.inference_mode():
        for model, seen in ((MLP(), []), (forward_as(the_other_way_round), ["swiglu"])):
            x = torch.randn(4, 6)
            expected = model(x)
            with sigtorch.patch(model):
                torch.testing.assert_close(model(x), expected)
            assert calls == seen


class Base(nn.Module):
    def forward(self, x):
        return x + 1


FACTOR = 3


def made_in(scope):
    class Odd(Base):
        """With all that a method can hold."""

        __hidden = 2

        def forward(self, x, /, y=FACTOR + 1, *args, z: int = 5, **kwargs) -> torch.Tensor:
            """Doc of its own."""
            x = super().forward(x) * torch.sigmoid(x) * y * z
            return x * self.__hidden * FACTOR * scope * __class__.__hidden

        forward.note = "kept"

    return Odd


def test_a_method_stays_what_it_was():
    cls, x = made_in(11), torch.linspace(-2, 2, 5)
    model = cls()
    expected = [model(x), model(x, 2, 3, z=4, more=5)]
    sigtorch.patch(model)
    torch.testing.assert_close([model(x), model(x, 2, 3, z=4, more=5)], expected, rtol=0, atol=0)
    ours = type(model).forward
    assert ours is not cls.forward
    assert inspect.signature(ours) == inspect.signature(cls.forward)
    for name in ("__doc__", "__name__", "__qualname__", "__module__", "__annotations__", "__globals__", "note"):
        assert getattr(ours, name) == getattr(cls.forward, name)
    assert inspect.getsource(ours) == inspect.getsource(cls.forward)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
        model()


def test_a_traceback_shows_the_line_it_was_written_in():
    model = forward_as(scaled)
    sigtorch.patch(model)
    with pytest.raises(RuntimeError) as error:
        model(torch.ones(5))
    frames = [f for f in traceback.extract_tb(error.tb) if f.name == "scaled"]
    assert [(f.lineno, f.line) for f in frames] == [
        (scaled.__code__.co_firstlineno + 1, "return self.w2(self.act(self.w1(x)) * self.w3(x)) * 2")
    ]


def keeping_count(function):
    @functools.wraps(function)
    def counted(self, *args, **kwargs):
        self.count = getattr(self, "count", 0) + 1
        return function(self, *args, **kwargs)

    return counted


def hiding(function):
    held = [function]

    @functools.wraps(function)
    def hidden(self, *args):
        return held[0](self, *args)

    return hidden


def test_decorators(calls):
    model = forward_as(keeping_count(keeping_count(scaled)))
    before = run(model)
    sigtorch.patch(model)
    agree(before, run(model))
    assert model.count == 4
    assert calls == ["swiglu"]
    patch = sigtorch.patch(forward_as(hiding(scaled)))
    assert patch.left[""].endswith(": a decorator hides the method")
    assert not patch.swapped


def test_a_source_that_is_not_what_runs_is_left(calls):
    """As after an edit of the file, or of the function: what runs is not changed into what is read."""
    edited = copy.copy(scaled)
    edited = type(scaled)(scaled.__code__.replace(co_consts=(None, 3)), scaled.__globals__, "scaled")
    model = forward_as(edited)
    before = run(model)
    patch = sigtorch.patch(model)
    assert patch.left[""].endswith(": its source is not what runs")
    agree(before, run(model), exactly=True)
    made = {}
    exec("def forward(self, x):\n    return self.w2(self.act(self.w1(x)) * self.w3(x))", made)
    assert not sigtorch.patch(forward_as(made["forward"])).swapped


def test_classes_made_at_run_time(calls):
    """Their own name says torch: what stands behind them is looked at."""
    model = MLP()
    model.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(model, "scale", nn.Identity())
    assert type(model).__name__ == "ParametrizedMLP"
    before = run(model)
    with sigtorch.patch(model) as patch:
        assert list(patch.swapped) == [""]
        agree(before, run(model))
    assert calls == ["swiglu"]
    assert type(model).__name__ == "ParametrizedMLP"
    sigmoid = nn.Sigmoid()
    sigmoid.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(sigmoid, "scale", nn.Identity())
    assert list(sigtorch.patch(sigmoid).swapped) == [""]
