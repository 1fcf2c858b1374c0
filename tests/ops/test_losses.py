"""The losses' values and gradients against float64: the formula, the CPU pass, and the kernels."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.loss_cases import (
    DTYPES,
    FOCAL_RTOL,
    IMAGES,
    KINDS,
    LOSSES,
    OPTIONS,
    ORACLES,
    REDUCTIONS,
    check,
    every_backend,
    every_engine,
    every_loss,
    every_loss_with_options,
    exact_engine,
    images,
    make,
    running,
    suit,
    torchvision_oracle,
)
from torch.autograd.graph import saved_tensors_hooks

import sigtorch
from sigtorch import (
    asymmetric_loss,
    binary_cross_entropy_with_logits,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)

ALL_WRONG = {binary_cross_entropy_with_logits: 1, sigmoid_focal_loss: 0.75}  # the loss at a huge logit over that logit


@every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_matches_float64(loss, options, kind, backend, device):
    first = KINDS.index(kind) + LOSSES.index(loss)  # so that each dtype has every reduction, and each kind of target
    for i, dtype in enumerate(DTYPES):
        reduction = REDUCTIONS[(first + i) % len(REDUCTIONS)]
        x, target = make((9, 40), dtype, kind, device)
        given = options(40, lambda n, dtype=dtype: torch.rand(n).to(device, dtype))
        actual = check(loss, x, suit(target, given), backend, reduction=reduction, **given)
        assert actual.dtype == dtype
        assert actual.shape == (x.shape if reduction == "none" else ())


@pytest.mark.kernels
@every_loss_with_options
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "reduction"), [(torch.bfloat16, "mean"), (torch.float32, "none")], ids=str)
def test_full_and_part_blocks(loss, kind, dtype, reduction, device):
    x, target = make((3, 4104), dtype, kind, device)
    check(loss, x, target, "triton", reduction=reduction)


@every_engine
@every_loss_with_options
@pytest.mark.parametrize("ignore_index", [None, 0, 1])
def test_a_bool_is_true_whatever_its_byte(loss, ignore_index, backend, device):
    """Such bytes come from a mask of 0 and 255 viewed as bool."""
    x, mask = make((3, 24), torch.float32, "bool", device)
    odd = (mask.byte() * 255).view(torch.bool)
    for reduction in REDUCTIONS:
        with running(backend):
            given = {"reduction": reduction, "ignore_index": ignore_index}
            values, expected = loss(x, odd, **given), ORACLES[loss](x, mask, **given)
            (grad,), (slope,) = (torch.autograd.grad(v.sum(), x) for v in (values, expected))
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad, slope, rtol=1e-5, atol=1e-6)


@every_backend
@every_loss_with_options
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (5, 4, 6), (2, 3, 4, 8), (1, 4100)], ids=str)
def test_any_shape(loss, shape, backend, device):
    kinds = [k for k in ("soft", "uint8", "index") if k != "index" or shape[-1:] > (1,)]
    for kind, reduction in zip(kinds, REDUCTIONS, strict=False):
        check(loss, *make(shape, torch.float32, kind, device), backend, reduction=reduction)


def transposed(t):
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def sliced(t):
    return torch.cat([t, t], -1)[..., : t.shape[-1]]


def stepped(t):
    return torch.stack([t, t], -1)[..., 0]


def expanded(t):
    return t[:1].expand_as(t)


def channels_last(t):
    return t.unsqueeze(0).contiguous(memory_format=torch.channels_last).squeeze(0)


STRIDES = (transposed, sliced, stepped, expanded, channels_last)


@every_engine
@pytest.mark.any_arch
@every_loss_with_options
@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
def test_any_strides(loss, strides, backend, device):
    for kind, reduction in itertools.product(("soft", "bool", "index"), ("none", "mean")):
        x, target = make((3, 4, 6), torch.float32, kind, device)
        target = strides(target.unsqueeze(-1)).squeeze(-1) if kind == "index" else strides(target)
        weight = torch.rand(4, 1, device=device)
        check(loss, strides(x.detach()).requires_grad_(), target, backend, reduction=reduction, weight=weight)


@every_backend
@every_loss_with_options
@pytest.mark.parametrize("layout", [*IMAGES][:6])  # whose strides all say something
def test_a_result_lies_as_the_logits_do(loss, layout, backend, device):
    """PyTorch's pointwise operators keep strides, so that a contiguous result can be viewed."""
    x, target = images(torch.float32, layout, device)
    targets = {1: target, -1: torch.zeros(x.shape[:-1], dtype=torch.int64, device=device), 0: x.detach() > 0}
    for (dim, target), number in itertools.product(targets.items(), (255, None)):
        target = target.masked_fill(target == 255, -1) if number is None and dim == 1 else target
        with running(backend):
            out = loss(x, target, reduction="none", dim=dim, ignore_index=number)
        assert (out.shape, out.stride()) == (x.shape, F.softplus(x).stride())


@pytest.mark.kernels
@every_loss_with_options
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_more_images_than_a_grid_is_long(loss, reduction, device, plans, monkeypatch):
    monkeypatch.setattr("sigtorch.kernels._layout.MAX_GRID", 4)
    x, target = images(torch.float32, "contiguous", device)
    x, target = (torch.cat([t] * 3).detach() for t in (x, target.clamp(0, 2)))
    check(loss, x.requires_grad_(), target, "triton", reduction=reduction, dim=1)


@every_backend
@pytest.mark.parametrize("shape", [(), (1,), (6,), (4, 1), (3, 1, 1), (3, 1, 6), (3, 4, 6)], ids=str)
def test_weights_broadcast(shape, backend, device):
    weights = {"weight": torch.rand(shape, device=device), "pos_weight": torch.rand(shape, device=device)}
    for kind, reduction in itertools.product(("soft", "index"), ("none", "sum")):
        x, target = make((3, 4, 6), torch.float32, kind, device)
        check(LOSSES[0], x, target, backend, reduction=reduction, **weights)
        check(LOSSES[1], x, target, backend, reduction=reduction, weight=weights["weight"])


@every_engine
@pytest.mark.any_arch
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.int64, ()), (torch.int64, (4, 6)), (torch.int32, (6,)), (torch.uint8, (4, 6)), (torch.bool, (6,))],
    ids=str,
)
def test_whole_weights_of_float64_logits(dtype, shape, backend, device):
    """Weights have more digits than float32 holds."""
    large = min(2**24 + 1, torch.iinfo(dtype).max) if dtype != torch.bool else 1
    weight = torch.full(shape, large, dtype=dtype, device=device)
    for kind, reduction in (("soft", "none"), ("uint8", "sum"), ("index", "none")):
        x, target = make((4, 6), torch.float64, kind, device)
        for given in ({"weight": weight}, {"pos_weight": weight}):
            check(LOSSES[0], x, target, backend, reduction=reduction, **given)
        check(LOSSES[1], x, target, backend, reduction=reduction, weight=weight)


@every_engine
@every_loss_with_options
@pytest.mark.parametrize("weight", [(5, 1, 1), (3, 1, 4, 1), (1, 5, 1, 6), (4, 6)], ids=str)
def test_classes_keep_their_axis(loss, weight, backend, device):
    """Also where nothing but copies leads a kernel through all of the tensors."""
    for reduction in ("sum", "none"):
        x, target = make((3, 5, 4, 6), torch.float32, "index", device)
        check(loss, x, target, backend, reduction=reduction, weight=torch.rand(weight, device=device))
    expected, x = x.detach().double().requires_grad_(), x.detach().requires_grad_()
    permuted = torch.randn(6, 5, 4, 3, device=device)
    ORACLES[loss](expected, target, reduction="none").transpose(0, 3).backward(permuted.double())
    with sigtorch.use_backend(backend):
        loss(x, target, reduction="none").transpose(0, 3).backward(permuted)
    torch.testing.assert_close(x.grad.double(), expected.grad, rtol=1e-4, atol=1e-6)


@exact_engine
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_torchvisions_own_grid(reduction, backend, device):
    for alpha, gamma, dtype in itertools.product((-1.0, 0.0, 0.58, 1.0), (0, 2), (torch.float32, torch.float16)):
        inputs = (torch.rand(5, 1, dtype=torch.float64) * 6 - 3).to(device, dtype)
        targets = torch.randint(0, 2, (5, 1)).to(device, dtype)
        expected = torchvision_oracle(inputs.double(), targets.double(), alpha, gamma, reduction)
        with running(backend):
            actual = sigmoid_focal_loss(inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction)
        torch.testing.assert_close(actual.double(), expected, rtol=FOCAL_RTOL[dtype], atol=0)


@every_backend
def test_pytorchs_own_samples(backend, device):
    from torch.testing._internal.common_methods_invocations import op_db  # seconds to import

    (info,) = (op for op in op_db if op.name == "nn.functional.binary_cross_entropy_with_logits")
    for sample in info.sample_inputs(device, torch.float64, requires_grad=True):
        with sigtorch.use_backend(backend):
            actual = binary_cross_entropy_with_logits(sample.input, *sample.args, **sample.kwargs)
        expected = F.binary_cross_entropy_with_logits(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(actual, expected)
        for of in (sample.input, *sample.args):
            grads = (torch.autograd.grad(y.sum(), of, retain_graph=True)[0] for y in (actual, expected))
            torch.testing.assert_close(*grads)


@exact_engine
@pytest.mark.parametrize("t", [0, 1])
def test_small_losses_are_exact(t, backend, device):
    """Down to 1e-30, and their gradients."""
    signed = torch.linspace(-69, 30, 2000, device=device)
    x = (signed if t == 0 else -signed).requires_grad_()
    target = torch.full_like(x, t, requires_grad=False)
    check(LOSSES[0], x, target.to(torch.uint8), backend, reduction="none")
    for gamma in (0.0, 0.7, 1.0, 2.0, 5.0):
        near = torch.linspace(-69 / (1 + gamma), 30, 2000, device=device)
        near = (near if t == 0 else -near).requires_grad_()
        check(LOSSES[1], near, target.to(torch.uint8), backend, alpha=0.3, gamma=gamma)
        check(quality_focal_loss, near, target.to(torch.uint8), backend, beta=gamma, reduction="none")
        check(varifocal_loss, near, target.to(torch.uint8), backend, gamma=gamma, reduction="none")
        given = {"gamma_neg": gamma, "gamma_pos": gamma, "clip": 0, "reduction": "none"}
        check(asymmetric_loss, near, target.to(torch.uint8), backend, **given)


@exact_engine
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 1021])
def test_a_sum_of_small_losses_is_exact(n, backend, device):
    """No sum hides them: each is below 1e-2, most far below."""
    x = (torch.linspace(-69, -5, n, device=device)).requires_grad_()
    for t in (x.new_zeros(n), torch.rand(n, device=device) * 1e-20):
        check(LOSSES[0], x, t.detach(), backend, reduction="sum")
        check(LOSSES[0], (-x).detach().requires_grad_(), 1 - t.detach(), backend, reduction="mean")


@exact_engine
@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_nan(loss, dtype, backend, device):
    """A logit's, and in a sum."""
    for kind in ("soft", "uint8"):
        x, target = make((4, 6), dtype, kind, device)
        x.detach()[1, 2] = torch.nan
        with running(backend):
            values, total = loss(x, target, reduction="none"), loss(x, target, reduction="sum")
            (grad,) = torch.autograd.grad(values, x, torch.ones_like(values))
        assert torch.equal(values.isnan(), x.isnan())
        assert torch.equal(grad.isnan(), x.isnan())
        assert total.isnan()


FINITE = {
    sigmoid_focal_loss: [{"gamma": g, "alpha": -1} for g in (0.0, 0.5, 1.0, 2.0, 3.0)],
    quality_focal_loss: [{"beta": b} for b in (0.0, 0.5, 2.0)],
    asymmetric_loss: [{"gamma_neg": g, "gamma_pos": g, "clip": c} for g in (0.0, 0.5, 2.0) for c in (0, 0.05, 1.2e-38)],
}


@exact_engine
@every_loss
@pytest.mark.any_arch
def test_finite_at_every_finite_logit(loss, backend, device):
    for dtype, given, kind in itertools.product(DTYPES, FINITE.get(loss, [{}]), ("soft", "uint8")):
        info = torch.finfo(dtype)
        ends = [0.0, info.tiny, 1.0, 9.39, 17.0, 88.0, 104.0, 745.0, info.max / 2, info.max]
        x = torch.tensor([s * v for v in ends for s in (1, -1)], dtype=dtype, device=device).unsqueeze(-1).repeat(1, 3)
        t = torch.tensor([0.0, 1.0, 0.5 if kind == "soft" else 1.0], dtype=dtype, device=device).expand_as(x)
        x.requires_grad_()
        with running(backend):
            values = loss(x, t.to(torch.uint8) if kind == "uint8" else t, reduction="none", **given)
            (grad,) = torch.autograd.grad(values, x, torch.ones_like(values))
        assert values.isfinite().all()
        assert grad.isfinite().all()
        assert (values >= 0).all()


def torch_bce(x, t, reduction, label_smoothing=0.0, **weights):
    """PyTorch's, in float64."""
    t = t.double() * (1 - label_smoothing) + label_smoothing / 2
    weights = {k: w.double() for k, w in weights.items()}
    return F.binary_cross_entropy_with_logits(x.double(), t, reduction=reduction, **weights)


@exact_engine
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"pos_weight": 2.0}, {"weight": 0.5}], ids=str)
def test_infinite_logits_are_pytorchs(options, backend, device):
    """If PyTorch's loss is inf, so is ours. If it is NaN, inf - inf, ours is inf unless the target agrees with the logit."""
    for dtype, sign in itertools.product(DTYPES, (1, -1)):
        x = torch.full((5,), sign * torch.inf, dtype=dtype, device=device).requires_grad_()
        t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], device=device).to(dtype)
        given = {k: torch.tensor(v, device=device).to(dtype) if "weight" in k else v for k, v in options.items()}
        theirs = torch_bce(x, t, "none", **given)
        own = (t == (sign > 0)) & ("label_smoothing" not in options)
        expected = torch.where(own, torch.nan, torch.inf).double()
        torch.testing.assert_close(expected[~theirs.isnan()], theirs[~theirs.isnan()])
        slopes = torch.autograd.grad(theirs, x, torch.ones_like(theirs))[0]
        with running(backend):
            values = binary_cross_entropy_with_logits(x, t, reduction="none", **given)
            sums = [binary_cross_entropy_with_logits(x, u.expand(5), reduction="sum", **given) for u in t]
        torch.testing.assert_close(values.double(), expected, equal_nan=True)
        torch.testing.assert_close(torch.stack(sums).double(), expected, equal_nan=True)
        torch.testing.assert_close(torch.autograd.grad(values, x, torch.ones_like(values))[0], slopes)
        for value, slope in zip(sums, slopes, strict=True):
            torch.testing.assert_close(torch.autograd.grad(value, x)[0], slope.expand(5))


@exact_engine
def test_infinite_logits_of_a_focal_loss(backend, device):
    """Values as torchvision's, where those are no NaN."""
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], device=device)
    for sign, gamma in itertools.product((1, -1), (0.0, 1.0, 2.0, 2.5)):
        x = torch.full((5,), sign * torch.inf, device=device)
        theirs = torchvision_oracle(x, t, 0.25, gamma, "none")
        expected = torch.where(t == (sign > 0), torch.nan, torch.inf)
        torch.testing.assert_close(expected[~theirs.isnan()], theirs[~theirs.isnan()])
        with running(backend):
            torch.testing.assert_close(sigmoid_focal_loss(x, t, gamma=gamma), expected, equal_nan=True)


def test_a_focal_loss_that_float32_does_not_hold_has_a_slope():
    x = torch.tensor([-3e38, 3e38], requires_grad=True)
    with running("formula"):
        loss = sigmoid_focal_loss(x, torch.tensor([1.0, 0.0]), alpha=-1, weight=torch.tensor(4.0))
        pairs = sigmoid_focal_loss(x, torch.tensor([1.0, 0.0]), alpha=-1, pos_weight=torch.tensor(4.0))
    assert loss.isinf().all()
    assert pairs.isinf().tolist() == [True, False]
    for values, slopes in ((loss, [-4.0, 4.0]), (pairs, [-4.0, 1.0])):
        assert torch.autograd.grad(values.sum(), x)[0].tolist() == slopes


@every_backend
def test_a_mean_holds_what_its_sum_does_not(backend, device):
    x = torch.full((100, 40), 3e38, dtype=torch.float32, device=device)
    if backend == "aten" or (device == "cpu" and backend == "auto"):
        pytest.skip("PyTorch's own mean overflows")
    with sigtorch.use_backend(backend):
        mean = binary_cross_entropy_with_logits(x, torch.zeros_like(x))
    torch.testing.assert_close(mean, x[0, 0])


@pytest.mark.kernels
def test_a_mean_of_equal_losses_is_that_loss(device):
    """It is equal to the last bit: the division is as exact as the sum."""
    for n in range(4, 400, 4):
        x = torch.full((n,), 1.73, device=device)
        with sigtorch.use_backend("triton"):
            mean, each = (
                binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction=r) for r in ("mean", "none")
            )
        assert mean == each[0], n


@every_backend
@every_loss_with_options
def test_two_runs_are_bit_equal(loss, backend, device):
    x, target = make((50, 101), torch.float32, "soft", device)
    with sigtorch.use_backend(backend):
        a, b = (loss(x, target, reduction="mean") for _ in range(2))
        grads = [torch.autograd.grad(v, x)[0] for v in (a, b)]
    assert torch.equal(a, b)
    assert torch.equal(*grads)


@pytest.mark.kernels
@every_loss_with_options
def test_programs_share_what_there_is(loss, device, plans, monkeypatch):
    """More tiles than programs, in one row, in many, and in batches."""
    monkeypatch.setattr("sigtorch.kernels._reduce.LOSS_PROGRAMS", 2)
    for shape, cut in (((9000,), 9000), ((40, 300), 280), ((3, 90, 9), 7)):
        x, target = make(shape, torch.float32, "soft", device)
        x = x.detach()[..., :cut].requires_grad_()
        check(loss, x, target[..., :cut], "triton", reduction="mean")
    big = torch.full((20_000,), 3e38, device=device)  # more than float32 holds of two tiles, and of all threads' shares
    with sigtorch.use_backend("triton"):
        torch.testing.assert_close(loss(big, torch.zeros_like(big), reduction="mean").item(), 3e38 * ALL_WRONG[loss])


@every_backend
@every_loss
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_inputs_and_the_gradient_of_a_sum_are_saved(loss, backend, reduction, device):
    if backend == "aten" or (device == "cpu" and backend == "auto"):
        pytest.skip("PyTorch's operators save what autograd does")
    x, target = make((8, 16), torch.bfloat16, "uint8", device)
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), sigtorch.use_backend(backend):
        loss(x, target, reduction=reduction)
    inputs, kept = saved[1:3], saved[3:]  # after the marker
    assert [t.data_ptr() for t in inputs] == [x.data_ptr(), target.data_ptr()]
    assert [(t.shape, t.dtype) for t in kept] == ([] if reduction == "none" else [(x.shape, x.dtype)])
