"""Products in methods: which are fused, and which are left and why."""

import operator
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.patching import MLP, agree, forward_as, run, scaled, spy, the_other_way_round
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import sigtorch


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


def seen_by_keyword(self, x):
    y = self.w1(x) * torch.sigmoid(self.w3(x))
    gate = torch.sigmoid(self.w3(x).mean(-1))
    return self.w2(y + gate.unsqueeze(dim=-1))


def both_named(self, x):
    gate = torch.sigmoid(self.w1(x))
    up = self.act(self.w3(x))
    return self.w2(gate * up)


def autograd_switched(self, x):
    torch.set_grad_enabled(False)
    gate = torch.sigmoid(self.w1(x))
    torch.set_grad_enabled(True)
    return self.w2(self.act(self.w3(x)) * self.w3(x) + gate.view(4, 10) * self.w3(x))


def by_the_method(self, x):
    return self.w2(self.w3(x) * self.w1(x).sigmoid())


def by_both_methods(self, x):
    gate = self.w1(x)
    return self.w2(gate.sigmoid().mul(self.w3(x)).multiply(gate.sigmoid()))


def nested(self, x):
    def inner(y):
        return self.act(self.w1(y)) * self.w3(y)

    return self.w2(next(inner(y) for y in (x,)))


def gated(x, g):
    return x * torch.sigmoid(g)


def in_a_function(self, x):
    return self.w2(gated(self.w3(x), self.w1(x)))


FUSED = {
    scaled: 1, clamped: 1, dropped: 1, with_options: 1, down_of_gate: 1, the_other_way_round: 1, depends_on_values: 2,
    keeps_state: 1, decorated: 1, without_autocast: 1, checkpointed: 2, by_function: 1, by_its_long_name: 1, by_torch_mul: 1,
    by_operator: 1, first_named: 1, beside_a_sum: 1, packed: 1, scaled_silu: 1, two_gates: 2, one_a_row: 1,
    one_a_row_seen_otherwise: 1, seen_by_keyword: 1, both_named: 1, autograd_switched: 1, nested: 1,
    by_the_method: 1, by_both_methods: 2, in_a_function: 1,
}  # fmt: skip


def seeded(model):
    torch.manual_seed(0)
    return run(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("body", FUSED, ids=lambda body: body.__name__)
def test_products_are_fused_in_all_forms(body, training, monkeypatch):
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


BREAKS = (depends_on_values, checkpointed, autograd_switched, keeps_state, dropped)  # graph breaks, patched or not


# Dynamo in torch 2.8 does not trace a decorated forward that a descriptor returns; releases in between are not tested.
LOOKS_THROUGH = torch.__version__ >= (2, 14)


@pytest.mark.parametrize("body", [b for b in FUSED if b not in BREAKS], ids=lambda body: body.__name__)
def test_every_form_is_compiled_exported_and_traced_whole(body):
    torch._dynamo.reset()
    model, x = forward_as(body).eval(), torch.linspace(-2, 2, 24).reshape(4, 6)
    expected, gradients = model(x), run(model, x)
    with sigtorch.patch(model) as patch:
        assert patch.swapped
        agree(gradients, run(torch.compile(model, fullgraph=True, backend="aot_eager"), x))
        whole = {
            "the method": torch.compile(model.forward, fullgraph=True, backend="eager"),
            "exported": torch.export.export(model, (x,), strict=body is not decorated or LOOKS_THROUGH).module(),
            "exported by running": torch.export.export(model, (x,), strict=False).module(),
            "make_fx": make_fx(model)(x),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch deprecates torch.jit
            whole["jit"] = torch.jit.trace(model, x)
        for how, made in whole.items():
            torch.testing.assert_close(made(x), expected, msg=lambda text, how=how: f"{how}: {text}")


def ancestors(out):
    """Returns the names of the autograd nodes that backward runs."""
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


def changed_later(self, x):
    gate = torch.sigmoid(self.w1(x))
    if self.training:
        gate = gate + 1
    return self.w2(gate * self.w3(x))


def broken(self, x):
    raise SystemError(self.act)


@pytest.mark.parametrize(
    "body",
    [by_a_number, broken, another_activation, used_twice, used_by_a_closure, changed_later, in_place],
    ids=lambda body: body.__name__,
)
def test_other_methods_are_not_changed(body):
    model = forward_as(body)
    before = dict(vars(model))
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert not patch.left
    assert vars(model) == before


def test_an_activation_in_place_is_left():
    patch = sigtorch.patch(MLP(nn.SiLU(inplace=True)))
    assert patch.left[""].endswith("act cannot be fused, it works in place")
    assert not patch.swapped


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.Sequential(), nn.Sequential(nn.SiLU(), nn.ReLU())], ids=repr)
def test_another_activation_is_left(act):
    assert not sigtorch.patch(MLP(act)).swapped


def recursive():
    def again(x, n):
        return again(x, n - 1) if n else x * torch.sigmoid(x)

    return again


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.again = recursive()

    def forward(self, x):
        return self.again(x, 2)


def test_a_nested_function_that_calls_itself(calls):
    model, x = Recursive(), torch.randn(4)
    expected = model(x)
    with sigtorch.patch(model) as patch:
        assert patch.swapped
        torch.testing.assert_close(model(x), expected)
