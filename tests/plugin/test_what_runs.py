"""The code that runs now counts: files edited since their import, activations and methods replaced at any time."""

import functools
import importlib.util
import subprocess
import sys
import textwrap
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.patching import MLP, Silu, agree, forward_as, run, scaled, the_other_way_round
from torch import nn

import sigtorch

HEAD = "import torch\nfrom torch import nn\n\n\nclass Model(nn.Module):\n    def forward(self, x, flag=0):\n"


@pytest.fixture
def imported(tmp_path):
    """Returns a function that imports a module of a given source, and then edits its file."""

    def make(source, edited=None):
        path = tmp_path / f"model_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if edited is not None:
            path.write_text(edited)
        return module

    return make


EDITS = {
    "an indentation": (
        "        if flag:\n            x = x + 1\n            x = x * 100\n        return x * torch.sigmoid(x)\n",
        "        if flag:\n            x = x + 1\n        x = x * 100\n        return x * torch.sigmoid(x)\n",
    ),
    "a word": (
        "        if flag and x.sum() > 0:\n            x = x + 1\n        return x * torch.sigmoid(x)\n",
        "        if flag or x.sum() > 0:\n            x = x + 1\n        return x * torch.sigmoid(x)\n",
    ),
    "a loop's end": (
        "        while flag:\n            flag = 0\n            break\n        return x * torch.sigmoid(x)\n",
        "        while flag:\n            flag = 0\n            continue\n        return x * torch.sigmoid(x)\n",
    ),
    "a number": (
        "        return 2.0 * x * torch.sigmoid(x)\n",
        "        return 2 * x * torch.sigmoid(x)\n",
    ),
    "a line": (
        "        return x * torch.sigmoid(x)\n",
        "        # moved\n        return x * torch.sigmoid(x)\n",
    ),
    "all": ("        return x * torch.sigmoid(x)\n", None),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_edited_since_is_left(edit, imported, calls):
    was, is_now = EDITS[edit]
    model = imported(HEAD + was, HEAD + is_now if is_now else "1 +").Model()
    x = torch.linspace(-1, 2, 5)
    expected = [model(x), model(x, 1)]
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert patch.left[""].endswith(": its source differs from the code that runs")
    torch.testing.assert_close([model(x), model(x, 1)], expected, rtol=0, atol=0)


def test_an_unedited_file(imported, calls):
    for was, is_now in EDITS.values():
        for source in filter(None, (was, is_now)):
            model = imported(HEAD + source).Model()
            assert sigtorch.patch(model).swapped
            model(torch.ones(3))
    assert set(calls) == {"sigmoid_gate"}


GATED = textwrap.dedent("""
    import torch
    from torch import nn


    class Act(nn.Module):
        def forward(self, x):
            return torch.ACT(x)


    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = Act()

        def gate(self, x):
            return self.act(x)

        def forward(self, x):
            return x * self.act(x) + x * self.gate(x)
""")


def test_an_activations_file_edited_since(imported, calls):
    for was, is_now in (("tanh", "sigmoid"), ("sigmoid", "tanh")):
        module = imported(GATED.replace("ACT", was), GATED.replace("ACT", is_now))
        model = module.Model()
        x = torch.randn(4)
        expected = model(x)
        with sigtorch.patch(model):
            torch.testing.assert_close(model(x), expected)
    assert not calls


def doubled(forward):
    @functools.wraps(forward)
    def more(self, input):
        return forward(self, input) * 2

    return more


class Doubled(nn.Module):
    @doubled
    def forward(self, input):
        return torch.sigmoid(input)


def test_a_decorated_activation(calls):
    model = MLP(Doubled())
    before = run(model)
    sigtorch.patch(model)
    agree(before, run(model))
    assert not calls


class Own(nn.Module):
    def forward(self, input):
        return F.silu(input)


def tanh(self, input):
    return torch.tanh(input)


@pytest.mark.parametrize("cls", [Own, Silu, nn.SiLU, nn.Sigmoid], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("change", ["decorate", "replace", "code"])
@pytest.mark.parametrize("first", ["patch", "change", "earlier patch"])
def test_an_activation_changed(cls, change, first, calls, monkeypatch):
    model = MLP(cls())
    run(model)
    if first != "change":
        patch = sigtorch.patch(model)
        run(model)
        assert calls
        if first == "earlier patch":
            patch.undo()
    if change == "code":
        monkeypatch.setattr(cls.forward, "__code__", tanh.__code__)
        monkeypatch.setitem(cls.forward.__globals__, "torch", torch)
    else:
        monkeypatch.setattr(cls, "forward", tanh if change == "replace" else doubled(cls.forward))
    other = MLP(cls())
    other.load_state_dict(model.state_dict())
    expected = run(other)
    if first != "patch":
        sigtorch.patch(model)
    calls.clear()
    agree(expected, run(model))
    assert not calls


def test_the_function_that_an_activation_calls(calls, monkeypatch):
    model = MLP(Own())
    sigtorch.patch(model)
    seen = []
    monkeypatch.setattr(F, "silu", lambda x, inplace=False: seen.append(1) or torch.tanh(x))
    run(model)
    assert seen
    assert not calls


def test_instrumented_modules(calls, monkeypatch):
    """A forward set on PyTorch's own class runs, before a patch or after it."""
    model, x, seen = nn.Sequential(nn.Sigmoid(), nn.GLU(), nn.BCEWithLogitsLoss()), torch.randn(3, 4), []
    sigtorch.patch(model[:2])
    for cls in (nn.Sigmoid, nn.GLU, nn.BCEWithLogitsLoss):

        def forward(self, *args, plain=cls.forward):
            seen.append(type(self).__name__)
            return plain(self, *args)

        monkeypatch.setattr(cls, "forward", forward)
    patch = sigtorch.patch(model)
    assert patch.left["2"] == "its forward is not PyTorch's"
    model[2](model[1](model[0](x)), torch.ones(3, 2))
    assert seen == ["Sigmoid", "GLU", "BCEWithLogitsLoss"]
    assert not calls


def test_a_method_replaced_on_the_class(calls):
    """While a model is patched, a new method on the class runs, and the former one is fused again when it is back."""
    cls = type("Other", (MLP,), {"forward": scaled})
    model, x = cls(), torch.randn(4, 6)
    plain = model(x)
    with sigtorch.patch(model):
        cls.forward = the_other_way_round
        torch.testing.assert_close(model(x) * 2, plain)
        assert not calls
        cls.forward = scaled
        torch.testing.assert_close(model(x), plain)
        assert calls == ["swiglu"]
        del cls.forward
        torch.testing.assert_close(model(x) * 2, plain)
        assert calls == ["swiglu"]


def with_a_default(self, x, factor=1):
    return self.w2(self.act(self.w1(x)) * self.w3(x)) * factor


def test_a_method_whose_code_or_defaults_change(calls, monkeypatch):
    model, x = forward_as(with_a_default), torch.randn(4, 6)
    plain = model(x)
    patch = sigtorch.patch(model)
    monkeypatch.setattr(with_a_default, "__defaults__", (3,))
    torch.testing.assert_close(model(x), plain * 3)
    monkeypatch.setattr(with_a_default, "__code__", (lambda self, x, factor: x * factor).__code__)
    torch.testing.assert_close(model(x), x * 3)
    patch.undo()
    assert not calls
    assert not sigtorch.patch(model).swapped
    torch.testing.assert_close(model(x), x * 3)


def test_a_method_that_returned_a_sigmoid(imported, calls, monkeypatch):
    module = imported(GATED.replace("ACT", "sigmoid"))
    model, x = module.Model(), torch.randn(4)
    sigtorch.patch(model)
    model(x)
    assert calls == ["sigmoid_gate"] * 2
    monkeypatch.setattr(module.Model, "gate", lambda self, x: x * 0)
    torch.testing.assert_close(model(x), x * torch.sigmoid(x))
    monkeypatch.setattr(module.Act, "forward", tanh)
    torch.testing.assert_close(model(x), x * torch.tanh(x))


def test_what_a_file_imports_from_the_future(imported, calls):
    """The future import of annotations leaves them unevaluated, for example."""
    inner = "        def double(t: Unknown) -> Unknown:\n            return t * 2\n\n"
    module = imported(f"from __future__ import annotations\n{HEAD}{inner}        return double(x) * torch.sigmoid(x)\n")
    model, x = module.Model(), torch.randn(4)
    with sigtorch.patch(model):
        torch.testing.assert_close(model(x), x * 2 * torch.sigmoid(x))
    assert calls == ["sigmoid_gate"]


def test_warnings_of_a_models_source(tmp_path):
    """Python warned when it compiled the source: a patch does not warn again, and works where warnings are errors."""
    (tmp_path / "noisy.py").write_text(HEAD + '        "\\d" is x\n        return x * torch.sigmoid(x)\n')
    code = "import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter('ignore')\n    import noisy\n"
    code += "import sigtorch\nprint(sigtorch.patch(noisy.Model()))"
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-W", "error::DeprecationWarning:noisy", "-B", "-c", code],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "1 swapped, 0 left" in done.stdout, done.stderr
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        spec = importlib.util.spec_from_file_location("noisy", tmp_path / "noisy.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        imported = len(seen)
        assert sigtorch.patch(module.Model()).swapped
    assert len(seen) == imported


multiply = torch.mul


def by_a_function(self, x):
    return self.w2(multiply(torch.sigmoid(self.w1(x)), self.w3(x)))


def test_a_product_function_replaced_since(calls, monkeypatch):
    model = forward_as(by_a_function)
    with sigtorch.patch(model):
        run(model)
        assert calls == ["sigmoid_gate"]
        monkeypatch.setitem(globals(), "multiply", torch.add)
        patched = run(model)
    agree(run(model), patched)


class Gating(MLP):
    def gate(self, x):
        y = torch.sigmoid(self.w1(x)) * self.w3(x)
        return torch.sigmoid(y)

    def forward(self, x):
        return self.w2(self.gate(x) * self.w3(x))


def test_a_wrapper_of_a_rewritten_method(calls):
    """A wrapper by functools takes over the attributes of what it wraps."""
    model = Gating()
    with sigtorch.patch(model):

        @functools.wraps(model.gate)
        def gate(self, x):
            return self.w1(x)

        model.gate = types.MethodType(gate, model)
        patched = run(model)
        assert not calls
        del model.gate
    model.gate = types.MethodType(gate, model)
    agree(run(model), patched)


def scaled_gate(x, scale=1.0, *, power=1):
    return x**power * torch.sigmoid(x * scale)


def by_defaults(self, x):
    return self.w2(scaled_gate(self.w1(x)))


@pytest.mark.parametrize(("name", "value"), [("__defaults__", (2.0,)), ("__kwdefaults__", {"power": 2})])
def test_defaults_of_a_function_changed_since(name, value, calls, monkeypatch):
    model = forward_as(by_defaults)
    with sigtorch.patch(model):
        run(model)
        monkeypatch.setattr(scaled_gate, name, value)
        patched = run(model)
    assert calls == ["sigmoid_gate"] * 2
    agree(run(model), patched)
