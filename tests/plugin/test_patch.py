"""``patch`` on modules: which are swapped, which are left and why, and that undo leaves no trace."""

import abc
import copy
import functools
import gc
import io
import pickle
import weakref

import pytest
import torch
from support.patching import MLP, Own, agree, run
from torch import nn

import sigtorch
from sigtorch.ops import sigmoid


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP()
        self.glu = nn.GLU(dim=-1)
        self.up = nn.Linear(6, 12)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return self.sigmoid(self.glu(self.up(x)) + self.mlp(x))


def test_swaps_in_place_and_back(calls):
    model = Everything().eval()
    before, state = run(model), {k: v.clone() for k, v in model.state_dict().items()}
    held = {name: (m, type(m), dict(vars(m))) for name, m in model.named_modules()}
    parameters = list(model.parameters())
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == ["mlp", "glu", "sigmoid"]
    assert not patch.left
    agree(before, run(model))
    assert calls == ["glu", "swiglu", "sigmoid"]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(state)
    assert not any(m.training for m in model.modules())
    assert isinstance(model.mlp, MLP)
    assert isinstance(model.sigmoid, nn.Sigmoid)
    patch.undo()
    patch.undo()
    assert {name: (m, type(m), dict(vars(m))) for name, m in model.named_modules()} == held
    calls.clear()
    agree(before, run(model), exactly=True)
    assert not calls


@pytest.mark.parametrize("module", [nn.Sigmoid, lambda: nn.GLU(1), MLP], ids=["sigmoid", "glu", "mlp"])
def test_a_model_may_be_the_module_itself(module):
    model = module()
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == [""]
    assert "(model)" in str(patch)


def test_calls_by_keyword_and_wrong_calls(calls):
    model = MLP()
    x = torch.randn(2, 6)
    expected = model(x)
    with sigtorch.patch(model):
        torch.testing.assert_close(model(hidden=x), expected)
        assert calls == ["swiglu"]
        for args, kwargs in [((), {}), ((x, x), {}), ((), {"x": x}), ((x,), {"hidden": x})]:
            with pytest.raises(TypeError):
                model(*args, **kwargs)


class Named(nn.Sigmoid):
    """A subclass that inherits forward."""

    def half(self):
        return 0.5


def test_subclasses(calls):
    model = nn.Sequential(Named(), Own(), MLP())
    model[2].forward = functools.partial(MLP.forward, model[2])
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == ["0"]
    assert patch.left["1"] == "its forward is not PyTorch's"
    assert patch.left["2"].endswith(": forward was replaced on the instance")
    assert isinstance(model[0], Named)
    assert model[0].half() == 0.5
    model[0](torch.ones(1))
    assert calls == ["sigmoid"]
    patch.undo()
    assert type(model[0]) is Named


def test_hooks_are_kept_or_the_module_is(calls):
    seen = []
    model = Everything()
    model.sigmoid.register_forward_hook(lambda *a: seen.append("sigmoid"))
    model.mlp.register_forward_pre_hook(lambda *a: seen.append("mlp"))
    model.mlp.w1.register_forward_hook(lambda *a: seen.append("gate"))
    model.mlp.register_full_backward_hook(lambda *a: seen.append("backward"))
    x = torch.randn(4, 6, requires_grad=True)
    run(model, x)
    before, seen[:] = list(seen), []
    sigtorch.patch(model)
    run(model, x)
    assert seen == before == ["mlp", "gate", "sigmoid", "backward"]
    assert "swiglu" in calls
    hooked = MLP()
    hooked.act.register_forward_hook(lambda *a: None)
    patch = sigtorch.patch(hooked)
    assert patch.left[""].endswith(": act cannot be fused, it has hooks, which fusing would bypass")


def test_twice_and_nested():
    model = Everything()
    classes = [type(m) for m in model.modules()]
    with sigtorch.patch(model) as first:
        swapped = [type(m) for m in model.modules()]
        with sigtorch.patch(model) as second:
            assert not second.swapped
            assert set(second.left) == set(first.swapped)
            assert set(second.left.values()) == {"it uses sigtorch already"}
        assert [type(m) for m in model.modules()] == swapped
    assert [type(m) for m in model.modules()] == classes


def test_a_replaced_activation_is_not_bypassed():
    model = MLP()
    model.act.forward = torch.relu
    expected = run(model)
    patch = sigtorch.patch(model)
    assert patch.left[""].endswith(": act cannot be fused, its forward was replaced on the instance")
    agree(expected, run(model), exactly=True)


class Builtin(nn.Module):
    forward = staticmethod(torch.tanh)

    @functools.wraps(torch.sigmoid)
    def sigmoid(self, x):
        return torch.sigmoid(x) * x


class Registered(nn.Sigmoid):
    """Keeps a list of its subclasses, and needs an argument for each."""

    known = []  # noqa: RUF012, that it is shared is the point

    def __init_subclass__(cls, *, key):
        cls.known.append(key)


class Key(Registered, key="key"):
    pass


class Registry(type):
    """Does the same by a metaclass."""

    def __new__(cls, name, bases, body, *, key):
        Registered.known.append(key)
        return super().__new__(cls, name, bases, body)

    def __init__(cls, name, bases, body, *, key):
        super().__init__(name, bases, body)


class Meta(nn.Sigmoid, metaclass=Registry, key="meta"):
    pass


class Abstract(nn.Sigmoid, abc.ABC):
    pass


def test_classes_of_every_kind():
    model = nn.Sequential(Builtin(), Key(), Meta(), Abstract())
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == ["1", "2", "3"]
    assert [isinstance(m, cls) for m, cls in zip(model[1:], (Key, Meta, Abstract), strict=True)] == [True] * 3
    assert not isinstance(Abstract(), type(model[3]))
    assert Registered.known == ["key", "meta"]
    patch.undo()
    assert [type(m) for m in model[1:]] == [Key, Meta, Abstract]


def test_sigtorchs_own_modules_are_left():
    model = nn.Sequential(sigtorch.nn.Sigmoid(save="input"), sigtorch.nn.GatedMLP(6, 8))
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert model[0].save == "input"


def test_an_exception_restores():
    model = Everything()
    with pytest.raises(RuntimeError, match="boom"), sigtorch.patch(model):
        raise RuntimeError("boom")
    assert type(model.sigmoid) is nn.Sigmoid
    assert type(model.mlp) is MLP


def test_undo_says_what_it_cannot_restore():
    model = nn.Sequential(MLP(), MLP(), nn.Sigmoid())
    patch = sigtorch.patch(model)
    model[0].__class__ = type("Wrapped", (type(model[0]),), {})
    model[1].forward = model[1].forward
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"changed their class or forward since: '0', '1'$"):
            patch.undo()
        assert type(model[2]) is nn.Sigmoid
    model[0].__class__ = type(model[0]).__mro__[1]
    del model[1].forward
    patch.undo()
    assert [type(m) for m in model] == [MLP, MLP, nn.Sigmoid]
    patch.undo()


def test_a_shared_module_is_swapped_once():
    act = nn.Sigmoid()
    model = nn.Sequential(act, nn.Linear(6, 6), act)
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == ["0"]
    assert model[0] is model[2]
    patch.undo()
    assert type(act) is nn.Sigmoid


class Reduced(nn.Sigmoid):
    """Is pickled as a call of its class."""

    def __reduce__(self):
        return self.__class__, (), self.__dict__


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(protocol, calls):
    model = nn.Sequential(Named(), MLP(), Reduced())
    x = torch.randn(3, 6)
    sigtorch.patch(model)
    expected = model(x)
    again = pickle.loads(pickle.dumps(model, protocol))
    calls.clear()
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    assert calls == ["sigmoid", "swiglu", "sigmoid"]
    assert [type(m) for m in again] == [type(m) for m in model]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected, rtol=0, atol=0)


def test_deep_copies(calls):
    model = Everything()
    patch = sigtorch.patch(model)
    again = copy.deepcopy(model)
    patch.undo()
    agree(run(model), run(again))
    assert calls == ["glu", "swiglu", "sigmoid"]
    assert again.mlp.w1.weight is not model.mlp.w1.weight
    assert copy.copy(again.mlp).w1 is again.mlp.w1


def test_compiles_and_recompiles():
    model = Everything()
    before = run(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    agree(before, run(compiled))
    with sigtorch.patch(model):
        agree(before, run(compiled))
        agree(before, run(torch.compile(model, fullgraph=True, backend="aot_eager")))
        exported = torch.export.export(model, (torch.randn(4, 6),)).module()
        x = torch.randn(4, 6)
        torch.testing.assert_close(exported(x), model(x))
    agree(before, run(compiled))


def test_traces_with_fx():
    model = Everything()
    x = torch.randn(4, 6)
    with sigtorch.patch(model):
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("grad", [True, False])
def test_patching_leaves_the_mode_alone(grad):
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.float16, enabled=False):
        assert sigtorch.patch(MLP()).swapped
        assert torch.is_grad_enabled() is grad
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
    with torch.inference_mode():
        assert sigtorch.patch(MLP()).swapped


def test_autocast_agrees():
    model = MLP()
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
        with sigtorch.patch(model):
            out = model(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


def test_leaves_no_reference():
    model = Everything()
    alive = weakref.ref(model)
    sigtorch.patch(model).undo()
    del model
    gc.collect()
    assert alive() is None


def test_save_chooses_what_a_sigmoid_saves(monkeypatch):
    model = nn.Sequential(nn.Sigmoid(), nn.GLU())
    for save in ("output", "input"):
        saved = []
        monkeypatch.setattr(sigmoid, "sigmoid", lambda x, save="output", saved=saved: saved.append(save) or x)
        with sigtorch.patch(model, save=save):
            model[0](torch.ones(2))
        assert saved == [save]
    with pytest.raises(ValueError, match=r"^patch\(\): unknown save='both'"):
        sigtorch.patch(model, save="both")


def test_not_a_module():
    with pytest.raises(TypeError, match=r"^patch\(\): model must be a Module, got str$"):
        sigtorch.patch("model")


def test_a_patch_that_fails_half_way_leaves_nothing_patched(monkeypatch):
    from sigtorch.plugin import patch

    model, set_class = nn.Sequential(nn.Sigmoid(), nn.GLU()), patch._set_class

    def interrupted(module, cls):
        if module is model[1]:
            raise KeyboardInterrupt
        set_class(module, cls)

    monkeypatch.setattr(patch, "_set_class", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sigtorch.patch(model)
    assert [type(module) for module in model] == [nn.Sigmoid, nn.GLU]
