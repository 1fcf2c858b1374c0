"""Losses under ``patch`` and ``patched_functions``: PyTorch's module and function, and a stand-in for torchvision's."""

import functools
import pickle
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from support.patching import agree, spy
from torch import nn

import sigtorch
from sigtorch.ops import losses
from sigtorch.ops.losses import bce

BCE = "binary_cross_entropy_with_logits"
W = torch.linspace(0.5, 2, 6)
FUNCTIONS = {
    "function": lambda x: F.binary_cross_entropy_with_logits(x, x.detach().abs()),
    "by position": lambda x: F.binary_cross_entropy_with_logits(x, x.detach(), W, None, None, "sum", W),
    "by keyword": lambda x: F.binary_cross_entropy_with_logits(x, target=x.detach(), reduction="none"),
    "module": lambda x: nn.BCEWithLogitsLoss(pos_weight=W)(x, x.detach()),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@pytest.fixture
def calls(monkeypatch):
    return spy(monkeypatch, [(losses, BCE), (losses, "sigmoid_focal_loss"), (bce, BCE)])


@every_function
def test_the_function_goes_to_sigtorch(function, calls):
    x = torch.randn(4, 6, requires_grad=True)
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with sigtorch.patched_functions():
        out = function(x)
        agree([expected, gradient], [out, *torch.autograd.grad(out.sum(), x)])
    assert calls == [BCE]
    function(x)
    assert calls == [BCE]


@every_function
def test_the_function_compiles(function):
    torch._dynamo.reset()
    x = torch.randn(4, 6)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(x):
        return function(x)

    with sigtorch.patched_functions():
        torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_swaps_the_loss(reduction, calls):
    loss = nn.BCEWithLogitsLoss(torch.rand(6), reduction=reduction, pos_weight=torch.rand(6))
    held, state = dict(vars(loss)), loss.state_dict()
    x, t = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6)
    expected = loss(x, t)
    with sigtorch.patch(loss) as patch:
        assert patch.swapped == {"": "sigtorch.nn.BCEWithLogitsLoss"}
        torch.testing.assert_close(loss(x, t), expected)
        torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(x, t), expected)
        assert loss.state_dict().keys() == state.keys()
    assert calls == [BCE, BCE]
    assert type(loss) is nn.BCEWithLogitsLoss
    assert dict(vars(loss)) == held


def test_legacy_reductions_stay_pytorchs(calls):
    x = torch.randn(4)
    with pytest.warns(UserWarning, match="size_average and reduce"), sigtorch.patched_functions():
        out = F.binary_cross_entropy_with_logits(x, x, size_average=False)
    torch.testing.assert_close(out, F.binary_cross_entropy_with_logits(x, x, reduction="sum"))
    assert not calls


def answer(function, *args, **kwargs):
    """Returns the result, or the error as text."""
    try:
        return function(*args, **kwargs)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


X = torch.linspace(-3, 3, 24).view(4, 6)
ROW = torch.tensor([0, 1, 1, 0])
DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)
DTYPES += (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
ALIKE = {
    **{f"target {dtype}": ((X, (X > 0).to(dtype)), {}) for dtype in DTYPES},
    **{f"input {dtype}": ((X.to(dtype), X.abs()), {}) for dtype in DTYPES[:6]},
    "class indices": ((X, ROW), {}),
    "labels of one logit a row": ((X[:, :1], ROW), {}),
    "labels of the logits' shape": ((X[:, :1], ROW[:, None]), {}),
    "the index of one sample": ((X[0], ROW[0]), {}),
    "another shape": ((X, X[0]), {}),
    "a mask of 255": ((X, torch.full((4, 6), 255, dtype=torch.uint8)), {}),
    "whole weights": ((X, X.abs(), (X > 0).long()), {"pos_weight": torch.tensor(3)}),
    "a complex weight": ((X, X.abs(), X.to(torch.complex64)), {}),
    "a wide weight": ((X, X.abs(), X[None].expand(2, 4, 6)), {}),
    "a weight that fits nothing": ((X, X.abs()), {"pos_weight": X[0, :4]}),
    "a weight elsewhere": ((X, X.abs(), X.to("meta")), {}),
    "a target elsewhere": ((X, X.to("meta")), {}),
    "a target elsewhere of no axes": ((X[0, 0], X[0, 0].to("meta")), {}),
    "a reduction unheard of": ((X, X.abs()), {"reduction": "avg"}),
    "no reduction": ((X, X.abs()), {"reduction": None}),
    "no tensor": ((X, 1.0), {}),
    "no tensor for a weight": ((X, X.abs()), {"weight": 2.0}),
}


@pytest.mark.parametrize(("args", "kwargs"), ALIKE.values(), ids=ALIKE)
def test_pytorch_refuses_its_own_way(args, kwargs):
    expected = answer(F.binary_cross_entropy_with_logits, *args, **kwargs)
    with sigtorch.patched_functions():
        found = [answer(F.binary_cross_entropy_with_logits, *args, **kwargs)]
    tensors = {"weight": kwargs.get("weight", args[2] if args[2:] else None), "pos_weight": kwargs.get("pos_weight")}
    if all(t is None or isinstance(t, torch.Tensor) for t in tensors.values()):
        loss = nn.BCEWithLogitsLoss(**tensors, reduction=kwargs.get("reduction", "mean"))
        sigtorch.patch(loss)
        found.append(answer(loss, *args[:2]))
    for actual in found:
        if isinstance(expected, str):
            assert actual == expected
        else:
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(
                actual, expected, rtol=1e-2 if expected.dtype in DTYPES[7:9] else 1e-5, atol=1e-6
            )


def test_a_module_of_ours_keeps_class_indices():
    loss = sigtorch.nn.BCEWithLogitsLoss()
    patch = sigtorch.patch(loss)
    assert patch.left == {"": "it uses sigtorch already"}
    torch.testing.assert_close(loss(X, ROW), F.binary_cross_entropy_with_logits(X, F.one_hot(ROW, 6).float()))


class Criterion(nn.Module):
    """Holds a loss, or a function with one, for torch.fx to trace."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x, t):
        return self.loss(x, t)


def test_torch_fx_traces_diverted_losses(torchvision):
    """The proxies of torch.fx override torch functions, and so get PyTorch's own."""
    modules, focal = torchvision
    swapped, x, t = Criterion(nn.BCEWithLogitsLoss()), torch.randn(4, 6), torch.rand(4, 6).round()
    sigtorch.patch(swapped)
    traced = {torch.fx.symbolic_trace(swapped): F.binary_cross_entropy_with_logits(x, t)}
    with sigtorch.patched_functions():
        called = Criterion(lambda x, t: F.binary_cross_entropy_with_logits(x, t))
        traced[torch.fx.symbolic_trace(called)] = F.binary_cross_entropy_with_logits(x, t)
        called = Criterion(lambda x, t: modules[2].sigmoid_focal_loss(x, t))
        traced[torch.fx.symbolic_trace(called)] = focal(x, t)
    for graph, expected in traced.items():
        torch.testing.assert_close(graph(x, t), expected)


@pytest.fixture
def torchvision(monkeypatch):
    """Returns the modules that hold torchvision's focal loss, a detector that imported it among them, and the loss."""

    def focal(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
        """Computes what torchvision's does."""
        p = torch.sigmoid(inputs)
        loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
        loss = loss * (1 - p * targets - (1 - p) * (1 - targets)) ** gamma
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss if alpha >= 0 else loss
        return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]

    names = ("torchvision", "torchvision.ops", "torchvision.ops.focal_loss", "torchvision.models.detection.fcos")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name in names[1:]:
        sys.modules[name].sigmoid_focal_loss = focal
    return [sys.modules[name] for name in names[1:]], focal


def test_torchvisions_focal_loss(torchvision, calls):
    modules, focal = torchvision
    held, code, x, t = focal, focal.__code__, torch.randn(4, 6), torch.rand(4, 6).round()
    expected, plain = focal(x, t, 0.3, 1.5, "sum"), focal(x, t)
    elsewhere = []
    with sigtorch.patched_functions():
        for i, function in enumerate([held, *(module.sigmoid_focal_loss for module in modules)], 1):
            torch.testing.assert_close(function(x, t, alpha=0.3, gamma=1.5, reduction="sum"), expected)
            assert calls.count("sigmoid_focal_loss") == i
        with sigtorch.patched_functions():
            modules[1].sigmoid_focal_loss(x, t)
        torch.testing.assert_close(held(x, t), plain)
        calls.clear()
        other = threading.Thread(target=lambda: elsewhere.append(held(x, t)))
        other.start()
        other.join()
    assert not calls
    torch.testing.assert_close(elsewhere, [plain])
    assert all(module.sigmoid_focal_loss is focal for module in modules)
    assert focal.__code__ is code
    torch.testing.assert_close(focal(x, t), plain)
    assert not calls


def test_torchvisions_focal_loss_of_a_constant_within_a_transform(torchvision):
    _, focal = torchvision
    x, t, a = torch.randn(4), torch.rand(4).round(), torch.randn(3)
    expected = a + focal(x, t, reduction="sum")
    with sigtorch.patched_functions():
        torch.testing.assert_close(torch.vmap(lambda a: a + focal(x, t, reduction="sum"))(a), expected)


def test_a_focal_loss_of_other_arguments_is_left(torchvision, monkeypatch, calls):
    """Another release of torchvision may change the parameters: then the function is not diverted."""
    modules, _ = torchvision
    monkeypatch.setattr(modules[1], "sigmoid_focal_loss", lambda inputs, targets, alpha, gamma: inputs)
    with sigtorch.patched_functions():
        assert modules[1].sigmoid_focal_loss(X, X, 0.3, 1.0) is X
    monkeypatch.setattr(modules[1], "sigmoid_focal_loss", torch.sigmoid)
    with sigtorch.patched_functions():
        modules[1].sigmoid_focal_loss(X)
    assert "sigmoid_focal_loss" not in calls


def test_arguments_that_only_torchvision_takes_go_to_torchvision(torchvision, calls):
    modules, focal = torchvision
    alpha, gamma = (torch.tensor(v, requires_grad=True) for v in (0.3, 1.5))
    arguments = [((X, X.sigmoid(), 2.0), {}), ((X, X.sigmoid()), {"alpha": -0.5}), ((X, X.sigmoid()), {"gamma": -1})]
    arguments += [((X, X.sigmoid(), alpha, gamma), {}), ((X, X.sigmoid()), {"alpha": torch.tensor([0.25])})]
    arguments += [((X, ROW), {}), ((X[:, :1], ROW), {}), ((X, (X > 0).long()), {}), ((X, X > 0), {})]
    for args, kwargs in arguments:
        expected = answer(focal, *args, **kwargs)
        with sigtorch.patched_functions():
            actual = answer(modules[2].sigmoid_focal_loss, *args, **kwargs)
        if isinstance(expected, str):
            assert actual == expected
            continue
        torch.testing.assert_close(actual, expected)
        assert actual.requires_grad == (args[2:] == (alpha, gamma))
    assert "sigmoid_focal_loss" not in calls


def test_torchvisions_focal_loss_after_an_exception(torchvision):
    _, focal = torchvision
    code = focal.__code__

    @sigtorch.patched_functions()
    def fails():
        assert focal.__code__ is not code
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fails()
    assert focal.__code__ is code


def test_torchvisions_focal_loss_compiles(torchvision, monkeypatch):
    modules, focal = torchvision
    monkeypatch.setattr(losses, "sigmoid_focal_loss", lambda inputs, targets, *options: inputs + targets + 7)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(x, t):
        return modules[2].sigmoid_focal_loss(x, t)

    x, t = torch.randn(4, 6), torch.rand(4, 6).round()
    for _ in range(2):
        torch.testing.assert_close(compiled(x, t), focal(x, t))
        with sigtorch.patched_functions():
            torch.testing.assert_close(compiled(x, t), x + t + 7)
