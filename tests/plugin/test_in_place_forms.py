"""Forms in which a method's source changes a gate in place: in each, the product is left as it was written."""

import operator

import pytest
import torch
import torch.nn.functional as F
from support.patching import agree, forward_as, run, spy
from torch import nn

import sigtorch
from sigtorch.plugin.found import CHANGED_REASON


def by_a_positional_option(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    F.relu(g, True)
    return self.w2(y) + g.sum()


def by_an_option_of_a_module(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    nn.ReLU(True)(g)
    return self.w2(y) + g.sum()


def by_an_option_in_a_dictionary(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    F.relu(g, **{"inplace": True})
    return self.w2(y) + g.sum()


def by_the_variable_of_a_loop(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    for t in [g]:
        t.mul_(2)
    return self.w2(y) + g.sum()


def by_the_values_of_a_dictionary(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    for t in {"a": g}.values():
        t.mul_(2)
    return self.w2(y) + g.sum()


def by_a_comprehension(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    [t.mul_(2) for t in (g,)]
    return self.w2(y) + g.sum()


def by_an_element_of_a_list(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    gs = [g]
    gs[0].mul_(2)
    return self.w2(y) + g.sum()


def by_an_element_appended(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    gs = []
    gs.append(g)
    gs[0].mul_(2)
    return self.w2(y) + g.sum()


def by_an_element_added(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    gs = []
    gs += [g]
    gs[0].mul_(2)
    return self.w2(y) + g.sum()


def by_another_name_of_a_list(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    gs = []
    others = gs
    others.append(g)
    gs[0].mul_(2)
    return self.w2(y) + g.sum()


def by_a_name_used_twice(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = torch.zeros(1)
    y = y + h
    h = g
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_a_method_in_a_variable(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    double = g.mul_
    double(2)
    return self.w2(y) + g.sum()


def by_a_function_in_a_variable(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    act = nn.ReLU(True)
    act(g)
    return self.w2(y) + g.sum()


def by_a_method_by_its_name(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    getattr(g, "mul_")(2)  # noqa: B009
    return self.w2(y) + g.sum()


def by_a_capture(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    match g:
        case h:
            h.mul_(2)
    return self.w2(y) + g.sum()


def by_a_function_of_lists(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    torch._foreach_mul_([g], 2)
    return self.w2(y) + g.sum()


def by_ravel(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = torch.ravel(g)
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_atleast_2d(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = torch.atleast_2d(g)
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_as_tensor(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = torch.as_tensor(g)
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_a_view_of_a_view(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = torch.view_as_real(torch.view_as_complex(g.reshape(-1, 2)))
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_a_choice(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = None or g
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_a_submodule(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    h = self.act(g)
    h.mul_(2)
    return self.w2(y) + g.sum()


def by_an_operator(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)
    operator.imul(g, 2)
    return self.w2(y) + g.sum()


def by_a_local_function(self, x):
    g = self.w1(x)
    y = self.w3(x) * torch.sigmoid(g)

    def double(t):
        t.mul_(2)

    double(g)
    return self.w2(y) + g.sum()


def of_what_dropout_gives(self, x):
    g = self.w1(x)
    h = F.dropout(g, 0.0, True, False)
    y = self.w3(x) * torch.sigmoid(h)
    g.mul_(2)
    return self.w2(y) + g.sum()


SEEN = (
    by_a_positional_option, by_an_option_of_a_module, by_an_option_in_a_dictionary, by_the_variable_of_a_loop,
    by_the_values_of_a_dictionary, by_a_comprehension, by_an_element_of_a_list, by_an_element_appended, by_an_element_added,
    by_another_name_of_a_list, by_a_name_used_twice, by_a_method_in_a_variable, by_a_function_in_a_variable,
    by_a_method_by_its_name, by_a_capture, by_a_function_of_lists, by_ravel, by_atleast_2d, by_as_tensor, by_a_view_of_a_view,
    by_a_choice, by_a_submodule, by_an_operator, by_a_local_function, of_what_dropout_gives,
)  # fmt: skip


@pytest.mark.parametrize("body", SEEN, ids=lambda body: body.__name__)
def test_a_gate_that_the_method_changes_is_left(body, monkeypatch):
    calls = spy(monkeypatch)
    model = forward_as(body, nn.Identity())
    before = run(model)
    patch = sigtorch.patch(model)
    assert CHANGED_REASON in patch.left[""]
    agree(before, run(model))
    assert not calls
