"""Shared by the tests of losses: oracles in float64, inputs, tolerances, and the table of options."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import sigtorch
from sigtorch import (
    asymmetric_loss,
    binary_cross_entropy_with_logits,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from sigtorch.ops.losses.loss import Loss
from support.cases import HALF, assert_rounded_once, last_place

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Half types round once, to 2^-11 and 2^-8 of the value; float32 as promised, of each element.
BCE_RTOL = {torch.float16: 5e-4, torch.bfloat16: 3.92e-3, torch.float32: 1e-6, torch.float64: 1e-13}
FOCAL_RTOL = {**BCE_RTOL, torch.float32: 1e-5}
KINDS = ("soft", "hard", "uint8", "bool", "index")
REDUCTIONS = ("none", "mean", "sum")
MARKER_DIMS = 12  # at least, of the tensor by which a backward pass knows what its forward saved
# Each kind and each reduction once, for what takes long and would see no more in their product
KINDS_AND_REDUCTIONS = [*((kind, "mean") for kind in KINDS), ("soft", "none"), ("soft", "sum")]
WITH_OPTIONS = (binary_cross_entropy_with_logits, sigmoid_focal_loss)  # weights, numbers to ignore, any dim
# All; of the others, which share their runner and kernels, tests of those see little more.
LOSSES = (*WITH_OPTIONS, quality_focal_loss, varifocal_loss, asymmetric_loss)

every_backend = pytest.mark.parametrize("backend", ["auto", "aten", "triton"])
# What a compiled kernel could get wrong where an interpreted one does not: these are the tests for other engines too.
every_engine = pytest.mark.parametrize("backend", ["auto", "aten", pytest.param("triton", marks=pytest.mark.kernels)])
# What is exact: PyTorch's own operators, which a CPU runs eagerly, are not.
exact_engine = pytest.mark.parametrize("backend", ["formula", pytest.param("triton", marks=pytest.mark.kernels)])
# Each of the ways to compute: eagerly on a CPU, by the formula that transforms take, and in a kernel.
every_path = pytest.mark.parametrize("backend", ["auto", "formula", pytest.param("triton", marks=pytest.mark.kernels)])
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
every_loss_with_options = pytest.mark.parametrize("loss", WITH_OPTIONS, ids=lambda f: f.__name__)
every_kind = pytest.mark.parametrize("kind", KINDS)
IGNORED = {"soft": -100, "hard": 255, "uint8": 255, "bool": 1, "index": 255}  # a number to ignore, by kind of target


def target_name(loss):
    return "targets" if loss is sigmoid_focal_loss else "target"


def share(target, x, dim=-1):
    """A target as float64 of x's shape."""
    if target.dtype == torch.int64:
        places = torch.arange(x.shape[dim], device=x.device)
        hits = target.unsqueeze(-1) == places
        return hits.movedim(-1, dim).double()
    return target.double()


def ignored(target, x, ignore_index, dim):
    """A mask of the elements of x that are ignored."""
    if target.dtype == torch.int64:
        target = target.unsqueeze(dim)
    return (target.double() == (torch.nan if ignore_index is None else ignore_index)).expand(x.shape)


def softplus(x):
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def reduced(values, reduction):
    return values if reduction == "none" else getattr(values, reduction)()


def of_the_others(oracle, x, target, reduction, ignore_index=None, dim=-1):
    """A loss of those alone that are not ignored, whose values the oracle gives."""
    out = ignored(target, x, ignore_index, dim)
    values = oracle(x.masked_fill(out, 0).double(), share(target, x, dim).masked_fill(out, 0))
    values = values.masked_fill(out, 0)
    if reduction != "mean" or ignore_index is None:
        return reduced(values, reduction)
    return values.sum() / max(1, values.numel() - int(out.sum()))


def without_background(target, background_index):
    """A target in which no class is -2, if it is of classes."""
    return torch.where(target == background_index, -2, target) if target.dtype == torch.int64 else target


def bce_oracle(
    x, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None, *, label_smoothing=0.0,
    background_index=-1, ignore_index=None, dim=-1,
):  # fmt: skip
    target = without_background(target, background_index)

    def values(x, t):
        t = t * (1 - label_smoothing) + label_smoothing / 2
        values = t * softplus(-x) * (1 if pos_weight is None else pos_weight.double()) + (1 - t) * softplus(x)
        return values * (1 if weight is None else weight.double())

    return of_the_others(values, x, target, reduction, ignore_index, dim)


def focal_oracle(
    x, target, alpha=0.25, gamma=2.0, reduction="none", *, weight=None, normalizer=1.0, background_index=-1,
    pos_weight=None, ignore_index=None, dim=-1,
):  # fmt: skip
    """The formula of torchvision, but for 1 - p_t, which it gets by subtraction."""
    target = without_background(target, background_index)

    def values(x, t):
        q = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
        values = bce_oracle(x, t, weight, reduction="none", pos_weight=pos_weight) * q**gamma
        return values * (alpha * t + (1 - alpha) * (1 - t)) if alpha >= 0 else values

    return of_the_others(values, x, target, reduction, ignore_index, dim) / normalizer


def quality_focal_oracle(x, target, beta=2.0, reduction="mean"):
    def values(x, t):
        d = t * torch.sigmoid(-x) - (1 - t) * torch.sigmoid(x)
        return d.abs() ** beta * bce_oracle(x, t, reduction="none")

    return of_the_others(values, x, target, reduction)


def varifocal_oracle(x, target, alpha=0.75, gamma=2.0, reduction="mean"):
    def values(x, t):
        weight = torch.where(t > 0, t, alpha * torch.sigmoid(x) ** gamma)
        return weight.detach() * bce_oracle(x, t, reduction="none")

    return of_the_others(values, x, target, reduction)


def asymmetric_oracle(x, target, gamma_neg=4.0, gamma_pos=1.0, clip=0.05, reduction="mean"):
    def values(x, t):
        m = (torch.sigmoid(x) - clip).clamp(min=0)
        q = t * torch.sigmoid(-x) + (1 - t) * m
        negative = softplus(x) if type(clip) is int else -torch.log1p(-m)
        return q ** (gamma_pos * t + gamma_neg * (1 - t)) * (t * softplus(-x) + (1 - t) * negative)

    return of_the_others(values, x, target, reduction)


def torchvision_oracle(inputs, targets, alpha, gamma, reduction):
    p = torch.sigmoid(inputs)
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    loss = ce * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return reduced(loss, reduction)


ORACLES = {
    binary_cross_entropy_with_logits: bce_oracle,
    sigmoid_focal_loss: focal_oracle,
    quality_focal_loss: quality_focal_oracle,
    varifocal_loss: varifocal_oracle,
    asymmetric_loss: asymmetric_oracle,
}
RTOL = dict.fromkeys(LOSSES, FOCAL_RTOL) | {binary_cross_entropy_with_logits: BCE_RTOL}


def make(shape, dtype, kind, device, scale=4.0):
    x = (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype).requires_grad_()
    if kind == "soft":
        return x, torch.rand(shape, dtype=torch.float64).to(device, dtype)
    if kind == "index":  # -1 and the number of classes among them
        return x, torch.randint(-1, shape[-1] + 1, shape[:-1]).to(device)
    dtypes = {"hard": dtype, "uint8": torch.uint8, "bool": torch.bool}
    return x, (torch.rand(shape) > 0.6).to(device, dtypes[kind])


def images(dtype, layout, device="cpu", classes=5, size=(4, 6)):
    """Logits of three images and their classes, some of which are to be ignored; classes are dimension 1."""
    x = (torch.randn(3, classes, *size, dtype=torch.float64) * 4).to(device, dtype)
    target = torch.randint(-1, classes + 1, (3, *size), device=device)
    target[:, ::2, 1] = 255
    x = IMAGES[layout](x).detach()
    return x.requires_grad_(), target[: len(x), : x.shape[2], : x.shape[3]]


IMAGES = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "one image": lambda x: x[:1],
    "classes first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "cut": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "expanded": lambda x: x[:, :1].expand_as(x),
    "one pixel": lambda x: x[:, :, :1, :1],
}


def suit(target, options):
    """Puts into a target what the options speak of: the class of none, and what is ignored, where its dtype holds that."""
    if target.dtype == torch.int64:
        target[target == -1] = options.get("background_index", -1)
    number = options.get("ignore_index")
    if holds(target, number):
        target.view(-1)[::3] = number
    return target


def holds(target, number):
    """Tells whether a target's dtype has this number to ignore."""
    return number is not None and bool(torch.tensor(number).to(target.dtype).double() == number)


def masked(shape, dtype, kind, device="cpu"):
    """Logits and a target, some of whose elements are to be ignored."""
    x, target = make(shape, dtype, kind, device)
    return x, suit(target, {"ignore_index": IGNORED[kind]})


@contextlib.contextmanager
def running(backend):
    """A backend, or "formula": what runs where neither a kernel nor eager PyTorch does.

    Gives a list of what eager PyTorch has computed, with its rounding, where the chosen kernels refused.
    """
    computed, eager = [], Loss.eager
    with pytest.MonkeyPatch.context() as patch, sigtorch.use_backend("aten" if backend == "formula" else backend):
        patch.setattr(Loss, "eager", lambda loss, *tensors: computed.append(loss) or eager(loss, *tensors))
        if backend == "formula":
            patch.setattr("sigtorch._eligible.on_cpu", lambda *_: False)
        yield computed


def is_eager(x, backend):
    """Tells whether PyTorch's own operators run, with their rounding."""
    return backend in ("auto", "aten") and x.device.type == "cpu"


def check(loss, x, target, backend, **options):
    """Value and gradient against the oracle's, each element relative to itself where nothing in it cancels."""
    exact = x.detach().double().requires_grad_()
    expected = ORACLES[loss](exact, target, **options)
    incoming = torch.randn(expected.shape, dtype=torch.float64).to(x.device, torch.bfloat16)
    if options.get("reduction") == "sum":
        incoming = torch.exp2(incoming.round())  # a power of two, which rounds nothing
    expected.backward(incoming.double())
    with running(backend) as computed_eagerly:
        actual = loss(x, target, **options)
        (grad,) = torch.autograd.grad(actual, x, incoming.to(actual.dtype))
    rtol = RTOL[loss][x.dtype]
    assert grad.dtype == x.dtype
    if computed_eagerly or is_eager(x, backend):
        for mine, theirs in ((actual, expected), (grad, exact.grad)):
            eps = 32 * torch.finfo(mine.dtype if mine.dtype in RTOL[loss] else x.dtype).eps
            assert_close(
                mine.double(), theirs, rtol=eps, atol=eps * max(1, theirs.abs().max().item() if theirs.numel() else 1)
            )
        return actual
    cancels = 0 if target.dtype != x.dtype and not options.get("label_smoothing") else exact.grad.abs().max().item()
    values_cancel = False
    if loss is quality_focal_loss:
        values_cancel = target.dtype == x.dtype  # where a target is near s
    elif loss is asymmetric_loss and options.get("clip", 0.05):
        values_cancel, cancels = True, exact.grad.abs().max().item()  # where s is near clip
    single = RTOL[loss][torch.float32]  # what float32 is off by before a half type rounds
    kept = rounded_before(exact, target, expected, incoming, options) if x.dtype == torch.bfloat16 else 0
    small = expected.detach().abs().max().item() if values_cancel else 0
    for mine, theirs, off in ((actual, expected, small), (grad, exact.grad, cancels + kept / single)):
        if mine.dtype in HALF:
            assert_rounded_once(mine, theirs, atol=single * off)
        else:
            assert_close(mine.double(), theirs, rtol=rtol, atol=rtol * off)
    return actual


def rounded_before(exact, target, expected, incoming, options):
    """Bounds the second rounding in bfloat16: a summed loss' gradient is rounded before it is multiplied by a factor."""
    factor = incoming.double()
    number = options.get("ignore_index")
    if expected.dim():
        return 0
    if holds(target, number) and options.get("reduction", "mean") == "mean":
        out = ignored(target, exact, number, options.get("dim", -1))
        factor = factor / max(1, out.numel() - int(out.sum()))
    if torch.frexp(factor).mantissa.abs() == 0.5:
        return 0
    return 0.51 * last_place(exact.grad / factor, torch.bfloat16) * factor.abs()


BCE_OPTIONS = {
    "plain": lambda n, like: {},
    "weights": lambda n, like: {"weight": like(n), "pos_weight": like(n) * 3},
    "smoothing": lambda n, like: {"label_smoothing": 0.1, "pos_weight": like(1), "background_index": 1},
    "ignoring": lambda n, like: {"ignore_index": 255},
    "ignoring all but smooth": lambda n, like: {"ignore_index": 1, "label_smoothing": 0.1, "weight": like(n)},
}
FOCAL_OPTIONS = {
    "plain": lambda n, like: {},
    "unweighted": lambda n, like: {"alpha": -1, "gamma": 0},
    "steep": lambda n, like: {"alpha": 0.9, "gamma": 3.5, "weight": like(n)},
    "flat": lambda n, like: {"gamma": 0.5, "background_index": 1},
    "positives": lambda n, like: {"pos_weight": like(n) * 3, "alpha": 0.4, "gamma": 1.5},
    "ignoring": lambda n, like: {"ignore_index": -100, "pos_weight": like(1), "weight": like(n)},
    "ignoring a class": lambda n, like: {"ignore_index": 1, "gamma": 3.0},
}
QUALITY_FOCAL_OPTIONS = {
    "plain": lambda n, like: {},
    "steep": lambda n, like: {"beta": 3.5},
}
VARIFOCAL_OPTIONS = {
    "plain": lambda n, like: {},
    "steep": lambda n, like: {"alpha": 2.0, "gamma": 3.5},
}
ASYMMETRIC_OPTIONS = {
    "plain": lambda n, like: {},
    "not clipped": lambda n, like: {"gamma_neg": 2.5, "gamma_pos": 0, "clip": 0},
}
OPTIONS = [
    *(pytest.param(LOSSES[0], f, id=f"bce-{name}") for name, f in BCE_OPTIONS.items()),
    *(pytest.param(LOSSES[1], f, id=f"focal-{name}") for name, f in FOCAL_OPTIONS.items()),
    *(pytest.param(quality_focal_loss, f, id=f"quality-{name}") for name, f in QUALITY_FOCAL_OPTIONS.items()),
    *(pytest.param(varifocal_loss, f, id=f"varifocal-{name}") for name, f in VARIFOCAL_OPTIONS.items()),
    *(pytest.param(asymmetric_loss, f, id=f"asymmetric-{name}") for name, f in ASYMMETRIC_OPTIONS.items()),
]
