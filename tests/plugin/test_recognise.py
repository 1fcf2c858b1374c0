"""What a module computes: MLPs told from those that compute more, and gates found in the source."""

import io
import operator

import pytest
import torch
import torch.nn.functional as F
from patching import MLP, Silu, agree, run, spy
from torch import nn

import sigtorch


def forward_as(body):
    """An MLP with this forward."""
    return type("Other", (MLP,), {"forward": body})()


@pytest.fixture
def calls(monkeypatch):
    return spy(monkeypatch)


def scaled(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) * 2


def clamped(self, x):
    return self.w2(self.act(self.w1(x).clamp(max=7)) * self.w3(x))


def dropped_in_training(self, x):
    h = self.act(self.w1(x)) * self.w3(x)
    return self.w2(F.dropout(h, 0.5) if self.training else h)


def dropped_in_evaluation(self, x):
    h = self.act(self.w1(x)) * self.w3(x)
    return self.w2(h if self.training else h + 1)


def with_an_option(self, x, scale=None):
    return self.w2(self.act(self.w1(x)) * self.w3(x))


def down_of_gate(self, x):
    return self.w2(self.act(self.w1(x)) * self.w1(x))


def two_inputs(self, x, y):
    return self.w2(self.act(self.w1(x)) * self.w3(y))


def hands_out_more(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)), x


def depends_on_values(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) if x.sum() > 0 else x


def keeps_state(self, x):
    self.seen = x
    return self.w2(self.act(self.w1(x)) * self.w3(x))


def asks_for_gradients(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) if torch.is_grad_enabled() else x


def asks_for_both(self, x):
    evaluated = torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
    return x if evaluated else self.w2(self.act(self.w1(x)) * self.w3(x))


def asks_for_autocast(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) if torch.is_autocast_enabled("cpu") else x


@torch.no_grad()
def without_gradients(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x))


def without_autocast(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.w2(self.act(self.w1(x)) * self.w3(x))


def checkpointed(self, x):
    return torch.utils.checkpoint.checkpoint(
        lambda x: self.w2(self.act(self.w1(x)) * self.w3(x)), x, use_reentrant=False
    )


def broken(self, x):
    raise SystemError("not today")


@pytest.mark.parametrize(
    "body",
    [
        scaled, clamped, dropped_in_training, dropped_in_evaluation, with_an_option, two_inputs, hands_out_more,
        depends_on_values, keeps_state, without_gradients, without_autocast, checkpointed, broken,
        asks_for_gradients, asks_for_autocast, asks_for_both,
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_what_computes_more_is_left(body, training):
    model = forward_as(body).train(training)
    before = dict(vars(model))
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert vars(model) == before


class Counting(MLP):
    """Keeps count, in a tensor and in a list."""

    def __init__(self, counter):
        super().__init__()
        self.seen = []
        self.register_buffer("calls", torch.zeros(1))
        self.counter = counter

    def forward(self, x):
        self.calls.add_(1) if self.counter == "calls" else self.seen.append(x)
        return self.w2(self.act(self.w1(x)) * self.w3(x))


@pytest.mark.parametrize("counter", ["calls", "seen"])
def test_what_keeps_count_is_left_and_not_counted_up(counter):
    model = Counting(counter)
    assert not sigtorch.patch(model).swapped
    assert model.calls == 0
    assert not model.seen


def test_the_same_projection_twice_is_one_mlp():
    model = forward_as(down_of_gate)
    before = run(model)
    assert sigtorch.patch(model).swapped
    agree(before, run(model))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.SiLU(inplace=True)], ids=repr)
def test_another_activation_is_left(act):
    assert "" not in sigtorch.patch(MLP(act)).swapped


def test_silu_and_product_however_written(calls):
    products = [
        lambda self, x: self.w2(F.silu(self.w1(x)) * self.w3(x)),
        lambda self, x: self.w2(self.w3(x).mul(torch.nn.functional.silu(self.w1(x)))),
        lambda self, x: self.w2(torch.mul(self.act(self.w1(x)), self.w3(x))),
        lambda self, x: self.w2(operator.mul(self.w3(x), self.act(self.w1(x)))),
    ]
    for body in products:
        model = forward_as(body)
        before = run(model)
        assert sigtorch.patch(model).swapped, body
        agree(before, run(model))
    model = MLP(Silu())
    assert sigtorch.patch(model).swapped
    model(torch.randn(2, 6))
    assert calls == ["swiglu"] * 5


def test_gates_are_told_from_their_order_not_their_names():
    """silu(a)·b and a·silu(b) have the same children."""
    model = forward_as(lambda self, x: self.w2(self.w1(x) * self.act(self.w3(x))))
    before = run(model)
    patch = sigtorch.patch(model)
    assert patch.swapped[""].startswith("sigtorch.swiglu(w3, w1)")
    agree(before, run(model))


class Own(nn.Sigmoid):
    def forward(self, input):
        return super().forward(input) * 2


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Sigmoid()
        self.silu = Silu()
        self.scale = nn.Parameter(torch.ones(2, 2))

    def forward(self, x, g):
        x = torch.sigmoid(g + 1) * x
        x *= g.sigmoid()
        x = x + self.act(g) * x
        x = 2 * torch.sigmoid(x) + x * x.sigmoid()
        return self.silu(g) * x


def test_the_table_shows_the_line_that_fuses_by_hand():
    model = nn.ModuleDict({"a": nn.ModuleList([Inline(), Inline()]), "b": MLP(), "c": Own()})
    first = Inline.forward.__code__.co_firstlineno
    lines = str(sigtorch.patch(model)).splitlines()
    assert lines[0] == "sigtorch.patch: 3 swapped, 3 left"
    assert [line.split() for line in lines[1:3]] == [
        ["swapped", "2", "x", "a.*.act", "Sigmoid", "sigtorch.nn.Sigmoid"],
        ["swapped", "1", "x", "b", "MLP", "sigtorch.swiglu(w1,", "w3)", "->", "w2"],
    ]
    assert lines[3].split()[:6] == ["left", "2", "x", "a.*", "Inline", "inline"]
    hints = [line.split("inline at ")[1] for line in lines[3:-1]]
    assert hints == [
        f"test_recognise.py:{first + 1}, by hand: x = sigtorch.sigmoid_gate(x, g + 1)",
        f"test_recognise.py:{first + 2}, by hand: x = sigtorch.sigmoid_gate(x, g)",
        f"test_recognise.py:{first + 3}, by hand: x = x + sigtorch.sigmoid_gate(x, g)",
        f"test_recognise.py:{first + 5}, by hand: return sigtorch.swiglu(g, x)",
    ]
    assert lines[-1].split() == ["left", "1", "x", "c", "Own", "has", "a", "forward", "of", "its", "own"]
    assert str(sigtorch.patch(nn.Linear(2, 2))) == "sigtorch.patch: 0 swapped, 0 left"
    assert repr(sigtorch.patch(nn.Sigmoid())) == "<sigtorch.patch: 1 swapped, 0 left>"


class Greek(nn.Module):
    """A gate written inline, in letters that few encodings have."""

    def forward(self, x, γ):
        return torch.sigmoid(γ) * x


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_table_prints_wherever_stdout_goes(encoding, monkeypatch):
    model = nn.ModuleDict({"σ": nn.Sigmoid(), "b": MLP(), "c": Greek()})
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    print(sigtorch.patch(model))
    out.flush()
    printed = out.buffer.getvalue().decode(encoding)
    assert [line.split()[:3] for line in printed.splitlines()[1:3]] == [["swapped", "1", "x"]] * 2
    escaped = (lambda text: text.encode("unicode_escape").decode()) if encoding != "utf-8" else str
    assert escaped("σ") in printed
    assert f"sigtorch.sigmoid_gate(x, {escaped('γ')})" in printed
