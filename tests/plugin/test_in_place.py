"""Methods that change tensors in place around a product: values, gradients and errors are those of the unpatched method."""

import pytest
import torch
import torch.nn.functional as F
from support.patching import agree, forward_as, run
from torch import nn

import sigtorch
from sigtorch.plugin.found import CHANGED_REASON


def an_item(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g)
    g[:, 0] = 0
    return self.w2(s * self.w3(x)) + g.sum()


def by_an_option(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g)
    F.relu(g, inplace=True)
    return self.w2(self.w3(x) * s) + g.sum()


def by_a_module(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g)
    self.act(g)
    return self.w2(self.w3(x) * s) + g.sum()


def an_alias(self, x):
    g = self.w1(x)
    h = g
    s = torch.sigmoid(g)
    h.add_(1)
    return self.w2(self.w3(x) * s) + g.sum()


def the_other_half_of_a_chunk(self, x):
    h = torch.cat([self.w1(x), self.w3(x)], -1)
    g, u = h[:, :10], h[:, 10:]
    s = torch.sigmoid(g)
    u.mul_(2)
    return self.w2(self.w3(x) * s + u)


def an_alias_of_a_part(self, x):
    h = torch.cat([self.w1(x), self.w3(x)], -1)
    g, _ = h[:, :10], h[:, 10:]
    first = g[:1]
    y = self.w3(x) * torch.sigmoid(g.clone())
    gated = self.w3(x) * torch.sigmoid(g)
    first *= 3
    return self.w2(gated + y) + first.sum()


def a_part_by_a_function(self, x):
    g = self.w1(x)
    first = torch.narrow(g, 0, 0, 1)
    y = self.w3(x) * torch.sigmoid(g)
    first *= 3
    return self.w2(y) + first.sum()


def afterwards(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    g.zero_()
    return self.w2(y) + g.sum()


def afterwards_by_a_function(self, x):
    g = self.w1(x)
    y = self.w3(x) * g.sigmoid()
    torch.nn.init.zeros_(g)
    return self.w2(y) + g.sum()


def by_a_subscript_of_it(self, x):
    g = self.w1(x)
    y = self.w3(x) * g.sigmoid()
    g[0] += 1
    return self.w2(y) + g.sum()


def in_a_loop(self, x):
    g, y = self.w1(x), 0
    for _ in range(2):
        y = y + self.w3(x) * g.sigmoid()
        g.mul_(2)
    return self.w2(y)


def by_a_closure(self, x):
    g = self.w1(x)

    def double():
        g.mul_(2)

    y = self.w3(x) * g.sigmoid()
    double()
    return self.w2(y)


def what_a_function_ends_in(self, x):
    g = self.w1(x)
    y = gate_without_a_change(g) * self.w3(x)
    g.mul_(2)
    return self.w2(y) + g.sum()


def gate_without_a_change(x):
    g = x
    return torch.sigmoid(g)


SEEN = (
    an_item, by_an_option, by_a_module, an_alias, the_other_half_of_a_chunk, an_alias_of_a_part, a_part_by_a_function,
    afterwards, afterwards_by_a_function, by_a_subscript_of_it, in_a_loop, by_a_closure, what_a_function_ends_in,
)  # fmt: skip


@pytest.mark.parametrize("body", SEEN, ids=lambda body: body.__name__)
def test_a_gate_that_the_method_changes_is_left(body, calls):
    model = forward_as(body, nn.ReLU(inplace=True))
    before = run(model)
    patch = sigtorch.patch(model)
    assert CHANGED_REASON in patch.left[""]
    agree(before, run(model))
    assert len(calls) == (1 if body is an_alias_of_a_part else 0)


def test_out():
    class Out(nn.Module):
        def forward(self, x, g):
            s = torch.sigmoid(g)
            torch.add(g, 1, out=g)
            return x * s

    model, x = Out(), torch.randn(4)
    expected = model(x, x.clone())
    assert CHANGED_REASON in sigtorch.patch(model).left[""]
    torch.testing.assert_close(model(x, x.clone()), expected)


def the_other_half(self, x):
    h = torch.cat([self.w1(x), self.w3(x)], -1)
    g, u = h[:, :10], h[:, 10:]
    s = torch.sigmoid(g)
    self.double(u)
    return self.w2(self.w3(x) * s + u)


def the_gate_itself(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g)
    self.double(g)
    return self.w2(self.w3(x) * s + g)


def within_the_product(self, x):
    g = self.w1(x)
    return self.w2(torch.sigmoid(g) * self.double(g))


def seen_otherwise(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g).unsqueeze(0)
    self.double(g)
    return self.w2(self.w3(x)[None] * s)[0]


def what_another_method_returns(self, x):
    g = self.w1(x)
    s = self.gate(g)
    self.double(g)
    return self.w2(self.w3(x) * s)


def gives_its_input(self, x):
    g = self.w1(x)
    return self.w2(torch.sigmoid(self.same(g)) * self.double(g))


def by_data(self, x):
    g = self.w1(x).detach()
    return self.w2(torch.sigmoid(g.data) * self.double(g))


def by_a_detached_alias(self, x):
    g = self.w1(x)
    s = torch.sigmoid(g.detach())
    self.double(g)
    return self.w2(s * self.w3(x))


def by_chunks_that_are_no_views(self, x):
    g = torch.cat([self.w1(x)] * 2).detach()
    s = torch.sigmoid(torch.unsafe_chunk(g, 2)[0])
    self.double(g)
    return self.w2(s * self.w3(x).detach())


HIDDEN = (
    the_other_half,
    the_gate_itself,
    within_the_product,
    seen_otherwise,
    what_another_method_returns,
    gives_its_input,
)


def with_methods(body):
    model = forward_as(body)
    type(model).double = lambda self, t: t.mul_(2)
    type(model).same = lambda self, t: t
    type(model).gate = gate
    return model


def gate(self, g):
    return torch.sigmoid(g)


@pytest.mark.parametrize("body", HIDDEN, ids=lambda body: body.__name__)
def test_a_gate_that_other_code_changes_before_the_product(body, calls):
    """The method's source does not show the change: the sigmoid is computed early, and the product takes its value."""
    model = with_methods(body)
    before = run(model)
    patch = sigtorch.patch(model)
    assert patch.swapped
    agree(before, run(model))
    assert not calls
    type(model).double = lambda self, t: t * 2
    run(model)
    assert calls == ["sigmoid_gate"]


class Keeping(nn.Module):
    def forward(self, x):
        y = x * 2
        self.kept = y.detach()
        return y


def of_a_kept_memory(self, x):
    return self.w2(torch.sigmoid(self.act(self.w1(x))) * self.double(x))


ALIASES = (by_data, by_a_detached_alias, by_chunks_that_are_no_views, of_a_kept_memory)


@pytest.mark.parametrize("body", ALIASES, ids=lambda body: body.__name__)
def test_a_change_through_a_tensor_that_is_no_view(body, calls):
    """Version counters do not show it, and Python counts no second owner of the memory."""
    model = forward_as(body, Keeping())
    kept = body is of_a_kept_memory
    type(model).double = lambda self, t: (self.act.kept.mul_(2), self.w3(t))[1] if kept else t.mul_(2)
    before = run(model)
    assert sigtorch.patch(model).swapped
    agree(before, run(model))
    assert not calls


def grow(t):
    t.mul_(3)


GLOBAL = torch.ones(10)


def of_a_global(x):
    return torch.sigmoid(GLOBAL)


class Finally(nn.Module):
    def forward(self, x):
        out = x.sin().detach()
        try:
            return torch.sigmoid(out)
        finally:
            grow(out)


class Closing(nn.Module):
    def forward(self, x):
        out = x.sin().detach()
        self.later = lambda: grow(out)
        return torch.sigmoid(out)


class Viewing(nn.Module):
    def forward(self, x):
        out = x.sin().detach()
        return torch.sigmoid(out).view(self.grow(out).shape)

    def grow(self, out):
        return out.mul_(3)


def after_its_end(self, x):
    return self.w2(self.act(self.w1(x)) * self.w3(x).detach())


def after_its_end_by_a_closure(self, x):
    up = self.w3(x).detach()
    y = self.act(self.w1(x))
    self.act.later()
    return self.w2(y * up)


def a_global(self, x):
    return self.w2(of_a_global(x) * self.change(self.w3(x).detach()))


def in_a_lerp(self, x):
    g, up = self.w1(x).detach(), self.w3(x)
    return self.w2(torch.lerp(up.cos(), up, torch.sigmoid(g).view(self.change(g).shape)))


def in_a_method_lerp(self, x):
    g, up = self.w1(x).detach(), self.w3(x)
    return self.w2(up.cos().lerp(up, torch.sigmoid(g).view(self.change(g).shape)))


RETURNED = [
    (after_its_end, Finally), (after_its_end_by_a_closure, Closing), (after_its_end, Viewing), (a_global, None),
    (in_a_lerp, None), (in_a_method_lerp, None),
]  # fmt: skip


@pytest.mark.parametrize(("body", "act"), RETURNED)
def test_a_returned_sigmoid_whose_argument_still_changes(body, act, calls):
    """A function's own variables end with it, but not before a finally, a closure's or the module's."""
    model = forward_as(body, act and act())

    def change(self, t):
        grow(GLOBAL if body is a_global else t)
        return t

    type(model).change = change
    before = run(model)
    GLOBAL.fill_(1)
    assert sigtorch.patch(model).swapped
    agree(before, run(model))
    GLOBAL.fill_(1)


def before_it(self, x):
    g = self.w1(x)
    g += 1
    g.mul_(2)
    return self.w2(self.w3(x) * torch.sigmoid(g))


def another_of_the_name(self, x):
    h = self.w1(x)
    h = h * torch.sigmoid(h)
    h += 1
    return self.w2(h)


def another_result(self, x):
    other = F.relu(x)
    g = F.relu(self.w1(x))
    y = self.w3(x) * torch.sigmoid(g)
    other += 1
    return self.w2(y) + other


def another_tensor(self, x):
    total = torch.zeros(4, 10)
    for _ in range(2):
        total.add_(self.w3(x) * torch.sigmoid(self.w1(x)))
    return self.w2(total)


def of_a_shape(self, x):
    g = self.w1(x)
    rows, columns = g.shape
    total = torch.zeros(rows, columns, dtype=g.dtype)
    total += self.w3(x) * torch.sigmoid(g)
    return self.w2(total)


def a_residual(self, x):
    y = self.w2(self.w3(x) * torch.sigmoid(self.w1(x)))
    y += x
    return y


def another_argument(self, x):
    g, u = self.w1(x), self.w3(x)
    both = torch.atleast_2d((g, u))
    y = self.w3(x) * torch.sigmoid(g)
    u.mul_(2)
    return self.w2(y) + sum(b.sum() for b in both)


@pytest.mark.parametrize(
    "body",
    [before_it, another_of_the_name, another_result, another_tensor, of_a_shape, a_residual, another_argument],
    ids=lambda body: body.__name__,
)
def test_changes_of_other_tensors_do_not_prevent_fusing(body, calls):
    model = forward_as(body)
    before = run(model)
    patch = sigtorch.patch(model)
    assert not patch.left
    agree(before, run(model))
    assert set(calls) == {"sigmoid_gate"}


def read_in_a_finally(self, x):
    g, up = self.w1(x).detach(), self.w3(x).detach()
    try:
        gate = torch.sigmoid(g)
        return self.w2(gate * up)
    finally:
        self.double(g)
        self.last = gate.mean()


def read_by_the_next_turn(self, x):
    up = out = gate = self.w3(x).detach()
    for i in range(2):
        if i:
            out = out + gate.cos()
        g = self.w1(x).detach()
        gate = torch.sigmoid(g)
        out = out + gate * up
        self.double(g)
    return self.w2(out)


def added_to_by_the_next_turn(self, x):
    up = out = gate = self.w3(x).detach()
    for i in range(2):
        if i:
            gate += 1
            out = out + gate
        g = self.w1(x).detach()
        gate = torch.sigmoid(g)
        out = out + gate * up
        self.double(g)
    return self.w2(out)


@pytest.mark.parametrize(
    "body", [read_in_a_finally, read_by_the_next_turn, added_to_by_the_next_turn], ids=lambda body: body.__name__
)
def test_a_sigmoid_that_is_read_after_its_gate_has_changed(body, calls):
    model = with_methods(body)
    before = run(model)
    assert sigtorch.patch(model).swapped
    agree(before, run(model))
    assert calls


class Frozen(nn.Module):
    def forward(self, x, g):
        return x * torch.sigmoid(g)


def test_an_operand_that_pytorch_does_not_save_may_change(calls):
    """If the gate needs no gradient, PyTorch saves the sigmoid and not the other operand."""
    model, x, g = Frozen(), torch.randn(4, requires_grad=True), torch.randn(4)
    sigtorch.patch(model)
    y = x * 1
    out = model(y, g)
    with torch.no_grad():
        y.zero_()
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.sigmoid(g))
    assert not calls
    model(x, g.requires_grad_())
    assert calls == ["sigmoid_gate"]


def mixed(x, y, g):
    s = torch.sigmoid(g)
    return s * x + (1 - s) * y


class Mixed(nn.Module):
    def forward(self, x, y, g):
        return mixed(x, y, g)


def test_operands_of_an_interpolation_may_change(calls):
    model, x, g = Mixed(), torch.randn(4, requires_grad=True), torch.randn(4)
    sigtorch.patch(model)
    model(x * 1, torch.zeros(4), g)
    assert not calls
    model(x * 1, torch.zeros(4), g.requires_grad_())
    assert calls == ["sigmoid_lerp"]
