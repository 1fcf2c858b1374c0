"""A checkpoint that recomputes forward by another path: right gradients, or an error that names the cause."""

import contextlib
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.cases import ALIKE, CASES
from support.device import DEVICE, TORCH
from support.loss_cases import WITH_OPTIONS
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError, checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sigtorch
from sigtorch import _backend

pytestmark = [pytest.mark.kernels, pytest.mark.any_arch]


@contextlib.contextmanager
def patched(save):
    with sigtorch.use_backend("triton"), sigtorch.patched_functions(save=save):
        yield


@contextlib.contextmanager
def counting(backend="auto"):
    with sigtorch.use_backend(backend), FlopCounterMode(display=False):
        yield


class Watching(TorchFunctionMode):
    """Changes nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


SETTINGS = {
    "auto": lambda: sigtorch.use_backend("auto"),
    "aten": lambda: sigtorch.use_backend("aten"),
    "triton": lambda: sigtorch.use_backend("triton"),
    "mode": counting,
    "triton, mode": lambda: counting("triton"),
    "function mode": Watching,
    "dual": forward_ad.dual_level,
    "patched": lambda: patched("output"),
    "patched-input": lambda: patched("input"),
    "thread": None,
}


# A patch diverts torch.sigmoid, which these do not call: what it saves changes nothing.
WITHOUT_SIGMOID = {"router", "attention", *(c.name for c in CASES if not c.name.startswith("sigmoid"))}


def calls():
    for case in [c for c in CASES if c.name not in ALIKE]:
        yield pytest.param(case.ours, case.inputs((4, 6), torch.float32), id=case.name)
    yield pytest.param(lambda x: sigtorch.sigmoid_topk(x, 3)[0], [torch.randn(4, 6, requires_grad=True)], id="router")
    heads = [torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3)]
    yield pytest.param(sigtorch.sigmoid_attention, heads, id="attention")
    yield pytest.param(torch.sigmoid, [torch.randn(4, 6, requires_grad=True)], id="torch.sigmoid")
    for loss in WITH_OPTIONS:
        for name, target in (("soft", torch.rand(4, 6)), ("index", torch.arange(4))):
            x = torch.randn(4, 6, requires_grad=True)
            call = functools.partial(loss, reduction="sum")
            yield pytest.param(lambda x, t=target, f=call: f(x, t.to(x.device)), [x], id=f"{loss.__name__}-{name}")
        x, mask = torch.randn(4, 6, requires_grad=True), torch.tensor([0, 1, 255]).byte().expand(4, 3).repeat(1, 2)
        call = functools.partial(loss, reduction="mean", ignore_index=255)
        yield pytest.param(lambda x, t=mask, f=call: f(x, t.to(x.device)), [x], id=f"{loss.__name__}-mask")
    yield from calls_eager_or_not()
    x = torch.randn(4, 6, requires_grad=True)
    yield pytest.param(lambda x: sigtorch.swiglu(torch.sigmoid(sigtorch.glu(x)), x[:, :3]), [x], id="several")


def calls_eager_or_not():
    """Losses that a CPU runs by PyTorch's own arithmetic or by the formula, which save tensors of the same shapes."""
    x, soft, bce, focal = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6), *WITH_OPTIONS
    hard = soft > 0.5
    for loss, target, given in (
        (bce, soft, {}),
        (bce, soft, {"label_smoothing": torch.tensor(0.1)}),
        (bce, soft, {"ignore_index": 2**24}),
        (bce, soft.clone().requires_grad_(), {}),
        (focal, soft, {"alpha": torch.tensor(0.25), "normalizer": torch.tensor(2)}),
        (focal, hard, {"gamma": torch.tensor(3.0), "pos_weight": torch.tensor(2.0)}),
        (focal, hard, {"gamma": 0, "weight": torch.tensor(0.5), "normalizer": 3}),
    ):
        call = functools.partial(loss, **{"reduction": "none", **given})
        yield pytest.param(lambda x, t=target, f=call: f(x, t.to(x.device)), [x], id=f"{loss.__name__}-{[*given]}")
        batched = torch.vmap(call)
        if target is soft:
            yield pytest.param(lambda x, f=batched: f(x, soft.to(x.device)), [x], id=f"{loss.__name__}-{[*given]}-vmap")


def under(setting, call):
    if setting != "thread":
        with SETTINGS[setting]():
            return call()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def reference(call, inputs):
    leaves = [t.detach().double().requires_grad_() for t in inputs]
    with sigtorch.use_backend("aten"):
        return [g.float() for g in torch.autograd.grad(call(*leaves).sum(), leaves)]


def gradients_or_error(out, leaves):
    try:
        return torch.autograd.grad(out, leaves)
    except (RuntimeError, CheckpointError) as error:
        return error


def runs():
    """Each call with the settings that differ for it, and one of these for forward."""
    for call in calls():
        settings = [s for s in SETTINGS if s != "patched-input" or call.id not in WITHOUT_SIGMOID]
        for forth in settings:
            yield pytest.param(*call.values, settings, forth, id=f"{call.id}-{forth}")


@pytest.mark.parametrize(("call", "inputs", "settings", "forth"), list(runs()))
def test_recomputed_another_way(call, inputs, settings, forth, device):
    expected = reference(call, inputs)
    for back in settings:
        leaves = [t.detach().to(device).requires_grad_() for t in inputs]
        out = under(forth, lambda: checkpoint(call, *leaves, use_reentrant=False).sum())
        found = under(back, lambda: gradients_or_error(out, leaves))
        if isinstance(found, Exception):
            # PyTorch's backward, called under a function mode, runs without it; and for a GPU in a thread of its own.
            elsewhere = "thread" if DEVICE == "cuda" and TORCH < (2, 14) and forth == "aten" else back
            assert forth != elsewhere or "patched" in forth or forth == "function mode", found
            assert "recomput" in str(found).lower(), found
        else:
            torch.testing.assert_close([t.cpu() for t in found], expected, msg=lambda m: f"{forth}, then {back}: {m}")


class Deep(torch.autograd.Function):
    """Calls backward in its backward, and so on. From 60 on PyTorch does it in a thread of its own, as it does for a GPU."""

    @staticmethod
    def forward(ctx, x, depth, call):
        ctx.depth, ctx.call = depth, call
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if not ctx.depth:
            return ctx.call(), None, None
        with torch.enable_grad():
            x = torch.zeros_like(grad, requires_grad=True)
            return torch.autograd.grad(Deep.apply(x, ctx.depth - 1, ctx.call), x, grad)[0], None, None


@pytest.mark.skipif(TORCH < (2, 14), reason="its threads know nothing of who called backward")
@pytest.mark.parametrize("setting", ["auto", "aten", "triton"])
def test_what_holds_where_backward_is_called_holds_in_its_threads(setting):
    x, y = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    seen = []

    def call(x):
        seen.append((threading.get_ident(), _backend.chosen()))
        with sigtorch.use_backend("triton"):  # of the thread's own
            assert _backend.chosen() == "triton"
        return x.sin()

    with sigtorch.use_backend(setting):
        out = checkpoint(call, x, use_reentrant=False).sum()
        Deep.apply(y, 60, lambda: torch.autograd.grad(out, x)[0]).sum().backward()
    (here, forward), (there, recomputed) = seen
    assert here != there
    assert (forward, recomputed) == (setting, setting)
    torch.testing.assert_close(y.grad, x.cos())


def test_torchvisions_focal_loss_recomputed_by_its_own():
    """Backward runs without patched_functions, on any thread: the two save as many tensors, of the same shapes."""
    focal = pytest.importorskip("torchvision.ops").sigmoid_focal_loss
    x, target = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6)
    for counted in (contextlib.nullcontext, counting):
        with sigtorch.patched_functions(), counted():
            (expected,) = torch.autograd.grad(focal(x, target).sum(), x)
            out = checkpoint(focal, x, target, use_reentrant=False).sum()
        assert expected.any()
        assert "recomput" in str(gradients_or_error(out, [x])).lower()
