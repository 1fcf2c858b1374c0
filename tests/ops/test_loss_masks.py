"""Options for training masks: ignored targets, classes along any dimension, and weights of positives."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from support.counting import engine_that_counts
from support.loss_cases import (
    DTYPES,
    IGNORED,
    IMAGES,
    ORACLES,
    REDUCTIONS,
    WITH_OPTIONS,
    check,
    every_kind,
    every_loss_with_options,
    every_path,
    images,
    make,
    masked,
    running,
)
from torch.autograd.graph import saved_tensors_hooks

import sigtorch
from sigtorch import binary_cross_entropy_with_logits
from sigtorch.kernels import _plan
from sigtorch.nn import BCEWithLogitsLoss, SigmoidFocalLoss


@every_path
@every_loss_with_options
@every_kind
@pytest.mark.any_arch
def test_ignored_logits_may_be_anything(loss, kind, backend, device):
    """Infinity and NaN add no loss and no gradient."""
    for dtype, reduction in zip(DTYPES, (*REDUCTIONS, "mean")):
        x, target = masked((9, 10), dtype, kind, device)
        given = {"reduction": reduction, "ignore_index": IGNORED[kind]}
        out = (target == IGNORED[kind]).view(-1, *[1] * (x.dim() - 1) if kind == "index" else x.shape[1:])
        anything = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max], dtype=dtype, device=device)
        wild = torch.where(out, anything.repeat(23)[:90].view(9, 10), x.detach()).requires_grad_()
        with running(backend):
            tame, values = loss(x, target, **given), loss(wild, target, **given)
            expected, grad = (torch.autograd.grad(v.sum(), t)[0] for v, t in ((tame, x), (values, wild)))
        torch.testing.assert_close(values, tame, rtol=0, atol=0)
        torch.testing.assert_close(grad, expected, rtol=0, atol=0)
        assert not grad[out.expand_as(grad)].any()
        if reduction == "none":
            assert not values[out.expand_as(values)].any()


@every_path
@every_loss_with_options
@every_kind
def test_nothing_but_ignored_ones(loss, kind, backend, device):
    for dtype, reduction in zip(DTYPES, (*REDUCTIONS, "mean")):
        x, target = make((9, 40), dtype, kind, device)
        target.fill_(IGNORED[kind])
        with running(backend):
            value = loss(x, target, reduction=reduction, ignore_index=IGNORED[kind])
            (grad,) = torch.autograd.grad(value.sum(), x)
        assert not value.any()
        assert not grad.any()
        assert grad.shape == x.shape


@every_path
@every_loss_with_options
@every_kind
def test_a_number_that_no_target_can_be(loss, kind, backend, device):
    """Nothing is ignored, however the number would look as one of the target's dtype."""
    for number in {"soft": [257, 2**60 + 1], "hard": [257], "uint8": [-255, 256], "bool": [2, -1], "index": [256]}[
        kind
    ]:
        x, target = make((4, 8), torch.bfloat16, kind, device)
        if kind == "hard":
            target.fill_(256)
        for reduction in REDUCTIONS:
            with running(backend):
                ours, all_of_them = (loss(x, target, reduction=reduction, ignore_index=i) for i in (number, None))
            torch.testing.assert_close(ours, all_of_them, rtol=0, atol=0)


@every_path
@every_loss_with_options
def test_numbers_to_ignore_may_be_any(loss, backend, device):
    """More than float32 holds, too, in which kernels compare."""
    for number, dtype in itertools.product((-(2**63), 2**24, 2**24 + 1, 2**63 - 1), (torch.float32, torch.float64)):
        x, target = make((6, 10), dtype, "index", device)
        target[::2] = number
        check(loss, x, target, backend, reduction="mean", ignore_index=number)
    x, target = make((6, 10), torch.float64, "soft", device)
    target[::2] = 2**24 + 1
    check(loss, x, target, backend, reduction="mean", ignore_index=2**24 + 1)


@every_path
@every_loss_with_options
def test_a_class_next_to_a_large_number_to_ignore(loss, backend, device):
    """Float32 holds no two of them."""
    x, target = torch.randn(2, 3, device=device), torch.tensor([1, 2**24], device=device)
    with running(backend), pytest.raises(ValueError, match="holds class 16777216"):
        loss(x, target, ignore_index=2**24 + 1)


@every_path
@every_loss_with_options
def test_what_is_ignored_is_that_before_it_is_anything_else(loss, backend, device):
    """A class, or the number of classes, which else is none."""
    for number in (0, 3, 10):
        x, target = make((12, 10), torch.float32, "index", device)
        target[:8] = torch.tensor([0, 3, 9, 10]).repeat(2)
        check(loss, x, target, backend, reduction="mean", ignore_index=number)
    target[0] = -1
    check(loss, x, target, backend, reduction="mean", ignore_index=-1, background_index=10)


@every_loss_with_options
@pytest.mark.kernels
@pytest.mark.any_arch
def test_many_programs_count(loss, device, plans, monkeypatch):
    """Counts are right in full and partial blocks, rows and batches, and with more tiles than programs."""
    for programs, (shape, cut) in itertools.product((2, 4096), (((9000,), 9000), ((40, 300), 280), ((3, 90, 9), 7))):
        monkeypatch.setattr("sigtorch.kernels._reduce.LOSS_PROGRAMS", programs)
        plans.clear()
        for kind in ("uint8", "index")[: 1 + (len(shape) > 1)]:
            x, target = masked((*shape[:-1], cut) if kind == "index" else shape, torch.float32, kind, device)
            x = x.detach()[..., :cut].requires_grad_()
            target = target if kind == "index" else target[..., :cut]
            check(loss, x, target, "triton", reduction="mean", ignore_index=255)


@every_path
@every_loss_with_options
@pytest.mark.parametrize("layout", IMAGES)
def test_classes_may_be_anywhere(loss, layout, backend, device):
    for number, (dtype, reduction) in enumerate(zip(DTYPES, ("none", "mean", "sum", "mean"), strict=True)):
        x, target = images(dtype, layout, device)
        weights = {
            "weight": torch.rand(5, 1, 1),
            "pos_weight": torch.rand(3, 1, 4, 6)[: len(x), :, : x.shape[2], : x.shape[3]],
        }
        weights = {name: w.to(device, dtype) for name, w in weights.items() if number % 2}
        dim = (1, -3)[number % 2]
        out = check(loss, x, target, backend, reduction=reduction, dim=dim, ignore_index=255, **weights)
        assert out.shape == (x.shape if reduction == "none" else ())


@every_path
@every_loss_with_options
@pytest.mark.any_arch
def test_classes_along_every_dimension(loss, backend, device):
    for dim in range(-4, 4):
        x, _ = images(torch.float32, "contiguous", device)
        shape = [n for i, n in enumerate(x.shape) if i != dim % 4]
        target = torch.randint(0, x.shape[dim] + 1, shape, device=device)
        for reduction in REDUCTIONS:
            check(loss, x, target, backend, reduction=reduction, dim=dim)
    with running(backend):
        for shape in ((), (3,), (3, 4)):  # of no account to dense targets
            x, target = make(shape, torch.float32, "soft", device)
            for dim in (0, max(len(shape), 1) - 1, -1):
                torch.testing.assert_close(loss(x, target, dim=dim), loss(x, target), rtol=0, atol=0)


@pytest.mark.kernels
@every_loss_with_options
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "classes first", "transposed"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_classes_are_read_where_they_are(loss, layout, reduction, device, monkeypatch):
    """Logits are not copied. The arguments, a mean's gradient and its count are saved. The gradient has the logits' strides."""
    x, target = images(torch.bfloat16, layout, device)
    copies, saved = [], []
    for name in ("contiguous", "copy_"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, *a, m=method, **k: copies.append(t.dtype) or m(t, *a, **k))
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), sigtorch.use_backend("triton"):
        value = loss(x, target, reduction=reduction, dim=1, ignore_index=255)
        (grad,) = torch.autograd.grad(value, x, torch.ones_like(value))
    assert torch.bfloat16 not in copies
    assert grad.stride() == x.stride()
    assert value.stride() == (x.stride() if reduction == "none" else ())
    inputs, kept = saved[1:3], [t for t in saved[3:] if t.numel() > 1]  # after the marker
    assert [t.data_ptr() for t in inputs] == [x.data_ptr(), target.data_ptr()]
    assert len(kept) == (reduction == "mean")
    assert sum(t.numel() == 1 for t in saved) == (reduction == "mean")


@pytest.mark.kernels
@every_loss_with_options
@every_kind
def test_a_mean_that_ignores_launches_no_more(loss, kind, device, plans, monkeypatch):
    """The same kernel counts the other elements, and backward gets the count."""
    launched, launch = [], _plan.Plan.launch

    def counted(plan, *given):
        launched.append(given)
        launch(plan, *given)
        del plan.launch  # the next launch comes here, too

    monkeypatch.setattr(_plan.Plan, "launch", counted)
    moved = []
    for number in (None, IGNORED[kind]):
        x, target = masked((40, 300), torch.bfloat16, kind, device)
        target = target if number is not None else make((40, 300), torch.bfloat16, kind, device)[1]
        launched.clear()
        with sigtorch.use_backend("triton"):
            value = loss(x, target, reduction="mean", ignore_index=number)
            torch.autograd.grad(value, x)
        assert len(launched) == 3
        tensors = [t for given in launched for operands in given for t in operands if isinstance(t, torch.Tensor)]
        moved.append(sum(t.nbytes for t in tensors if t.dtype != torch.float64 and t.dim()))  # partial sums are float64
    assert moved[0] == moved[1]


def test_modules():
    x, target = images(torch.float32, "contiguous")
    p, given = torch.rand(5, 1, 1), {"ignore_index": 255, "dim": 1}
    for module, oracle in (
        (BCEWithLogitsLoss(pos_weight=p, **given), ORACLES[WITH_OPTIONS[0]]),
        (SigmoidFocalLoss(reduction="mean", pos_weight=p, **given), ORACLES[WITH_OPTIONS[1]]),
    ):
        expected = oracle(x.detach(), target, reduction="mean", pos_weight=p, **given)
        torch.testing.assert_close(module(x.detach(), target), expected.float())
        assert "ignore_index=255, dim=1" in repr(module)
        assert list(module.state_dict()) == ["pos_weight"]
    assert isinstance(BCEWithLogitsLoss(**given), torch.nn.BCEWithLogitsLoss)


def test_cross_entropys_own_rule():
    """Its ignored rows add nothing to the value either, but their NaN gets into its gradient."""
    x, index = torch.full((2, 3), torch.nan), torch.tensor([255, 0])
    x[1] = 0
    x.requires_grad_()
    theirs = F.cross_entropy(x, index, ignore_index=255)
    assert theirs.item() == pytest.approx(math.log(3))
    assert torch.autograd.grad(theirs, x)[0][0].isnan().all()
    ours = binary_cross_entropy_with_logits(x, index, ignore_index=255)
    assert not torch.autograd.grad(ours, x)[0][0].any()


@pytest.mark.kernels
@every_loss_with_options
@pytest.mark.parametrize("layout", ["contiguous", "classes first"])
def test_an_index_is_read_once_for_several_classes(loss, layout, device):
    """Hardly more bytes move than with a target of the logits' dtype at each of them."""
    gpu = engine_that_counts()
    x, index = images(torch.bfloat16, layout, device, classes=24, size=(32, 32))
    moved = []
    for target in (index, torch.rand_like(x)):
        before = gpu.loads + gpu.stores
        with sigtorch.use_backend("triton"):
            value = loss(x, target, reduction="sum", dim=1, ignore_index=255)
            torch.autograd.grad(value, x)
        moved.append(gpu.loads + gpu.stores - before)
    assert moved[0] <= 1.01 * moved[1]  # its sum has a few parts more
