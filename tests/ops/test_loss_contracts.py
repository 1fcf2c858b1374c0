"""Promises of the losses beside their values: transforms, compilers, dtypes and memory."""

import functools
import itertools

import numpy
import pytest
import torch
import torch.nn.functional as F
from support.device import TORCH
from support.loss_cases import (
    DTYPES,
    LOSSES,
    MARKER_DIMS,
    OPTIONS,
    ORACLES,
    bce_oracle,
    check,
    every_backend,
    every_engine,
    every_loss,
    every_loss_with_options,
    exact_engine,
    focal_oracle,
    make,
    running,
    suit,
    target_name,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import sigtorch
from sigtorch import (
    asymmetric_loss,
    binary_cross_entropy_with_logits,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from sigtorch.nn import AsymmetricLoss, BCEWithLogitsLoss, QualityFocalLoss, SigmoidFocalLoss, VarifocalLoss


@every_backend
@pytest.mark.parametrize(
    "normalizer", [7, 2.5, numpy.int64(7), torch.tensor(7), torch.tensor(2.5), torch.tensor(2.5).double()], ids=str
)
def test_normalizer_divides(normalizer, backend, device):
    divisor = normalizer.to(device) if isinstance(normalizer, torch.Tensor) else normalizer
    for dtype, reduction in itertools.product((torch.float32, torch.float64), ("none", "sum")):
        x, target = make((6, 10), dtype, "index", device)
        check(LOSSES[1], x, target, backend, reduction=reduction, normalizer=divisor)


@every_engine
@pytest.mark.parametrize("normalizer", [1e-200, 1e-39, 1e39, 1e200])
@pytest.mark.any_arch
def test_normalizers_beyond_float32(normalizer, backend, device):
    """With float64 logits they are like any number; with float32 logits, a small one leaves float32's range."""
    for reduction in ("none", "sum"):
        x, target = make((6, 10), torch.float64, "index", device)
        check(LOSSES[1], x, target, backend, reduction=reduction, normalizer=normalizer)
        if normalizer == 1e-39:
            mask = torch.rand(4, 3, device=device) > 0.5
            x = torch.where(mask, 20.0, -20.0)
            with sigtorch.use_backend(backend):
                actual = sigmoid_focal_loss(x, mask, reduction=reduction, normalizer=normalizer)
            expected = focal_oracle(x, mask, reduction=reduction, normalizer=normalizer)
            torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=0)


@every_backend
@every_loss
def test_backward_again_and_differentiably(loss, backend, device):
    x, target = make((4, 6), torch.float64, "soft", device)
    exact = x.detach().clone().requires_grad_()
    with sigtorch.use_backend(backend):
        value = loss(x, target, reduction="sum")
        first = torch.autograd.grad(value, x, retain_graph=True)[0]
        kept = first.clone()
        first.zero_()
        assert torch.equal(torch.autograd.grad(value, x, retain_graph=True)[0], kept)
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        grad.square().sum().backward()
    (expected,) = torch.autograd.grad(ORACLES[loss](exact, target, reduction="sum"), exact, create_graph=True)
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, exact.grad)


@every_backend
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_gradcheck(loss, options, backend, device):
    for kind, reduction in (("soft", "mean"), ("index", "none")):
        x, target = make((2, 3), torch.float64, kind, device, scale=2.0)
        given = options(3, lambda n: torch.rand(n, dtype=torch.float64, device=device))
        call = functools.partial(loss, **{target_name(loss): suit(target, given)}, reduction=reduction, **given)
        with sigtorch.use_backend(backend):
            if loss is varifocal_loss and kind == "index":  # finite differences see its weight change
                continue
            assert torch.autograd.gradcheck(call, x, fast_mode=True)
            assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


@every_backend
def test_targets_and_weights_have_gradients(backend, device):
    x, t, w, p = (torch.rand(2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(4))
    n = torch.tensor(3.0, dtype=torch.float64, device=device, requires_grad=True)
    with sigtorch.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *a: binary_cross_entropy_with_logits(*a[:3], None, None, "sum", a[3]), (x, t, w, p)
        )
        focal = lambda x, t, w, n: sigmoid_focal_loss(x, t, weight=w, normalizer=n)  # noqa: E731
        assert torch.autograd.gradcheck(focal, (x, t, w, n))


LEARNT = {
    "alpha": (LOSSES[1], {"alpha": 0.3}),
    "gamma": (LOSSES[1], {"gamma": 1.5}),
    "both": (LOSSES[1], {"alpha": 0.7, "gamma": 2.5}),
    "label_smoothing": (LOSSES[0], {"label_smoothing": 0.2}),
}


@every_backend
@pytest.mark.parametrize(("loss", "options"), LEARNT.values(), ids=LEARNT)
@pytest.mark.parametrize("kind", ["soft", "index"])
def test_numbers_that_are_learnt_have_gradients(loss, options, kind, backend, device):
    x, target = make((4, 6), torch.float64, kind, device)
    x = x.detach()
    given = [torch.tensor(v, dtype=torch.float64, device=device, requires_grad=True) for v in options.values()]

    def call(loss, *given):
        return loss(x, target, reduction="sum", **dict(zip(options, given, strict=True)))

    with sigtorch.use_backend(backend):
        torch.testing.assert_close(call(loss, *given), call(ORACLES[loss], *options.values()))
        grads = torch.autograd.grad(call(loss, *given), given)
        torch.testing.assert_close(grads, torch.autograd.grad(call(ORACLES[loss], *given), given))
        several = [t.detach() * torch.tensor([0.5, 1.0], dtype=torch.float64, device=device) for t in given]
        batched = torch.vmap(lambda *given: call(loss, *given))(*several)
        with torch.no_grad():
            torch.testing.assert_close(call(loss, *given), call(ORACLES[loss], *options.values()))
        with torch.no_grad(), dual_level():
            tangent = unpack_dual(call(loss, *(make_dual(t.detach(), torch.ones_like(t)) for t in given))).tangent
            torch.testing.assert_close(tangent, sum(grads))
    each = [call(ORACLES[loss], *[t[i].item() for t in several]) for i in range(2)]
    torch.testing.assert_close(batched, torch.stack(each))


def test_a_module_learns_its_alpha():
    x, target = make((4, 6), torch.float64, "soft", "cpu")
    focal = SigmoidFocalLoss(torch.nn.Parameter(torch.tensor(0.3)), reduction="sum")
    focal(x.detach(), target).backward()
    assert focal.alpha.grad is not None
    assert [*dict(focal.named_parameters())] == ["alpha"]


@every_backend
@every_loss
@pytest.mark.parametrize("kind", ["soft", "bool", "index"])
def test_transforms(loss, kind, backend, device):
    x, target = make((4, 6), torch.float64, kind, device)
    x, tangent = x.detach(), torch.randn(4, 6, dtype=torch.float64, device=device)
    oracle, given = ORACLES[loss], {"reduction": "mean"}
    with sigtorch.use_backend(backend):
        batched = torch.vmap(lambda x, t: loss(x, t, **given))(x, target)
        per_sample = torch.vmap(torch.func.grad(lambda x, t: loss(x, t, **given)))(x, target)
        hessian = torch.func.hessian(lambda x: loss(x, target[:1], **given))(x[:1])
        with dual_level():
            jvp = unpack_dual(loss(make_dual(x, tangent), target, **given)).tangent
    torch.testing.assert_close(batched, torch.stack([oracle(a, b, **given) for a, b in zip(x, target, strict=True)]))
    grads = [torch.func.grad(lambda a, b=b: oracle(a, b, **given))(a) for a, b in zip(x, target, strict=True)]
    torch.testing.assert_close(per_sample, torch.stack(grads))
    torch.testing.assert_close(jvp, torch.func.jvp(lambda x: oracle(x, target, **given), (x,), (tangent,))[1])
    torch.testing.assert_close(hessian, torch.func.hessian(lambda x: oracle(x, target[:1], **given))(x[:1]))


def test_a_class_weight_elsewhere_is_not_for_a_kernel(monkeypatch):
    """A 0-d CPU tensor goes with any device, but not into its kernels."""
    monkeypatch.setattr("sigtorch._eligible.plain", lambda *_: True)
    x = torch.randn(4, 6, device="meta")
    for weight in (torch.tensor(2), torch.tensor(2.0), torch.tensor(True)):
        out = binary_cross_entropy_with_logits(x, x, weight, reduction="none")  # a pass would read what is not there
        assert out.device.type == "meta"


@pytest.mark.skipif(TORCH == (2, 8), reason="its compiler loses such a number itself")
def test_a_normalizer_found_while_compiling():
    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager", dynamic=True)
    def per_positive(x, index):
        found = (index < 9).sum().item()
        torch._check(found > 0)
        return sigmoid_focal_loss(x, index, reduction="sum", normalizer=found)

    x, index = torch.randn(6, 20), torch.arange(6)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        torch.testing.assert_close(per_positive(x, index), sigmoid_focal_loss(x, index, reduction="sum", normalizer=6))


TRACED = {
    "focal": lambda x, t: sigmoid_focal_loss(x, t, x.shape[0] // 3, x.shape[0], "sum", normalizer=x.shape[0]),
    "focal, divided": lambda x, t: sigmoid_focal_loss(x, t, 1 / x.shape[0], x.shape[0] / 2, normalizer=x.shape[0] / 2),
    "bce": lambda x, t: binary_cross_entropy_with_logits(x, t, x[0], label_smoothing=1 / x.shape[0]),
}


@pytest.mark.parametrize("call", TRACED.values(), ids=TRACED)
@pytest.mark.parametrize("kind", ["soft", "uint8", "index"])
def test_traces_symbolic_sizes(call, kind):
    """Sizes of the tensors are symbols, and so are numbers."""
    x, target = make((4, 6), torch.float32, kind, "cpu")
    graph = make_fx(call, tracing_mode="symbolic")(x.detach(), target)
    torch.testing.assert_close(graph(x, target), call(x, target))
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        assert call(mode.from_tensor(x), mode.from_tensor(target)).dtype == x.dtype


@every_loss_with_options
def test_meta_tensors_of_every_dtype(loss):
    """Autocast does not know their device."""
    for a, b in itertools.product(DTYPES, DTYPES):
        x, target = torch.empty(3, 4, dtype=a, device="meta"), torch.empty(3, 4, dtype=b, device="meta")
        out = loss(x, target, reduction="mean")
        assert (out.shape, out.dtype, out.device.type) == ((), b, "meta")
        with torch.autocast("cpu", torch.bfloat16):
            assert loss(x, target, reduction="mean").dtype == b
            if a == b:  # of two dtypes, torch 2.8 makes another one on meta tensors
                assert F.binary_cross_entropy_with_logits(x, target).dtype == b


@every_loss_with_options
@pytest.mark.parametrize("kind", ["soft", "index"])
def test_compiles_whole(loss, kind):
    x, target = make((4, 6), torch.float32, kind, "cpu")
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    given = {"reduction": "sum", "weight": torch.rand(6)}
    actual, expected = compiled(x, target, **given), loss(x, target, **given)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (actual, expected)))


@exact_engine
@every_loss_with_options
@pytest.mark.parametrize("kind", ["uint8", "bool", "index"])
def test_targets_of_inference_mode(loss, kind, backend, device):
    with torch.inference_mode():
        x, target = make((4, 6), torch.float32, kind, device)
    check(loss, torch.randn(4, 6, device=device, requires_grad=True), target, backend, reduction="sum")
    with torch.inference_mode(), running(backend):
        torch.testing.assert_close(loss(x, target).double(), ORACLES[loss](x, target), rtol=1e-5, atol=0)


@exact_engine
@every_loss
def test_autocast_takes_halves_and_gives_float32(loss, backend, device):
    x, target = make((5, 8), torch.bfloat16, "soft", device)
    expected = ORACLES[loss](x.detach(), target, reduction="mean")
    saved = []
    with torch.autocast(x.device.type, dtype=torch.bfloat16), running(backend):
        with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            actual = loss(x, target, reduction="mean")
        assert F.binary_cross_entropy_with_logits(x, target).dtype == actual.dtype == torch.float32
        if backend != "formula":
            assert {t.dtype for t in saved if t.dim() < MARKER_DIMS} == {torch.bfloat16}
        assert loss(x.double(), target.double()).dtype == torch.float64
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    assert torch.autograd.grad(actual, x)[0].dtype == torch.bfloat16


@every_backend
def test_a_result_has_pytorchs_dtype(backend, device):
    x = torch.randn(4, 6, device=device)
    for a, b in itertools.product(DTYPES, DTYPES):
        expected = F.binary_cross_entropy_with_logits(x.to(a), x.sigmoid().to(b))
        with sigtorch.use_backend(backend):
            actual = binary_cross_entropy_with_logits(x.to(a), x.sigmoid().to(b))
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=0)


@every_backend
@every_loss
def test_empty(loss, backend, device):
    for shape in ((0,), (0, 4), (3, 0)):
        x, target = make(shape, torch.float32, "soft", device)
        with sigtorch.use_backend(backend):
            assert loss(x, target, reduction="sum") == 0
            assert loss(x, target, reduction="mean").isnan()
            assert loss(x, target, reduction="none").shape == shape
            index = torch.zeros(shape[:-1], dtype=torch.int64, device=device)
            loss(x, index if shape == (0, 4) else target, reduction="sum").backward()
        assert x.grad.shape == shape


@every_backend
def test_targets_outside_of_0_and_1(backend, device):
    x, _ = make((4, 8), torch.float32, "soft", device, scale=1.0)
    target = torch.tensor([-0.5, 1.5, -2.0, 3.0], device=device).repeat(4, 2)
    check(LOSSES[0], x, target, backend, reduction="mean")
    for gamma in (1.0, 2.0, 3.0):
        expected = focal_oracle(x, target, gamma=gamma)
        with sigtorch.use_backend(backend):
            actual = sigmoid_focal_loss(x, target, gamma=gamma)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    with sigtorch.use_backend(backend):
        actual = sigmoid_focal_loss(x, target, gamma=1.5)
    assert torch.equal(actual.isnan(), focal_oracle(x, target, gamma=1.5).isnan())


@pytest.mark.kernels
@every_loss
def test_unchecked_class_indices_are_nan(loss, device, monkeypatch):
    """If reading would wait for a device, nothing is raised, and the row's loss is NaN, by kernel and formula."""
    monkeypatch.setattr("sigtorch.ops.losses.checks.can_look_at", lambda _: False)
    x, _ = make((4, 5), torch.float32, "soft", device)
    index = torch.tensor([0, 6, -2, 5], device=device)
    for backend in ("triton", "aten"):
        with sigtorch.use_backend(backend):
            bad = loss(x, index, reduction="none").isnan()
        assert bad.all(-1).tolist() == [False, True, True, False]
        assert bad.any(-1).tolist() == [False, True, True, False]


@every_backend
@every_loss_with_options
def test_a_background_index_may_be_any(loss, backend, device, monkeypatch):
    """More than float32 holds, too, in which kernels count classes."""
    for background in (-(2**63), -100, 255, 2**24 + 1, 2**63 - 1):
        x, target = make((6, 10), torch.float32, "index", device)
        target[target == -1] = background
        check(loss, x, target, backend, background_index=background)
    monkeypatch.setattr("sigtorch.ops.losses.checks.can_look_at", lambda _: False)
    with sigtorch.use_backend(backend):
        out = loss(x, torch.full_like(target, 2**24), background_index=2**24 + 1, reduction="none")
    assert out.isnan().all()


@pytest.mark.kernels
@every_loss
def test_unchecked_masks_are_nan(loss, device, monkeypatch):
    """An unchecked uint8 above 1 gives NaN for its element's loss and gradient."""
    monkeypatch.setattr("sigtorch.ops.losses.checks.can_look_at", lambda _: False)
    x, _ = make((2, 5), torch.float32, "soft", device)
    mask = torch.tensor([0, 1, 2, 128, 255], dtype=torch.uint8, device=device).expand(2, 5)
    for backend, reduction in itertools.product(("triton", "formula"), ("none", "sum")):
        with running(backend):
            values = loss(x, mask, reduction=reduction)
            (grad,) = torch.autograd.grad(values, x, torch.ones_like(values))
        for seen in (values, grad) if reduction == "none" else (grad,):
            assert seen.isnan().tolist() == [[False, False, True, True, True]] * 2
        assert values.isnan().any()
    ones = torch.func.vmap(lambda x, t: loss(x, t, reduction="none"))(x.detach(), mask)
    assert ones.isnan().tolist() == [[False, False, True, True, True]] * 2


PLAIN_MODULES = [
    (QualityFocalLoss, ORACLES[quality_focal_loss], {"beta": 1.5, "reduction": "sum"}),
    (AsymmetricLoss, ORACLES[asymmetric_loss], {"gamma_neg": 3.0, "gamma_pos": 0.5, "clip": 0.1, "reduction": "sum"}),
    (VarifocalLoss, ORACLES[varifocal_loss], {"alpha": 0.5, "gamma": 1.5, "reduction": "sum"}),
]


def test_modules():
    x, target = make((4, 6), torch.float32, "soft", "cpu")
    weights = {"weight": torch.rand(6), "pos_weight": torch.rand(6)}
    theirs, ours = (kind(reduction="sum", **weights) for kind in (torch.nn.BCEWithLogitsLoss, BCEWithLogitsLoss))
    assert isinstance(ours, torch.nn.BCEWithLogitsLoss)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours(x, target), theirs(x, target))
    smooth = BCEWithLogitsLoss(label_smoothing=0.2)
    torch.testing.assert_close(smooth(x, target), bce_oracle(x, target, label_smoothing=0.2).float())
    assert "label_smoothing=0.2" in repr(smooth)
    focal = SigmoidFocalLoss(0.5, 1.0, "sum", weight=weights["weight"])
    expected = focal_oracle(x, target, 0.5, 1.0, "sum", weight=weights["weight"], normalizer=3.0)
    torch.testing.assert_close(focal(x, target, normalizer=3), expected.float())
    assert list(focal.state_dict()) == ["weight"]
    assert "gamma=1.0" in repr(focal)
    for module, oracle, given in PLAIN_MODULES:
        torch.testing.assert_close(module(**given)(x, target), oracle(x, target, **given).float())


@pytest.mark.parametrize(
    "module", [BCEWithLogitsLoss(label_smoothing=0.1), SigmoidFocalLoss(dim=0), QualityFocalLoss()], ids=repr
)
def test_torch_fx_traces_a_module(module):
    """The loss is one call, which checks its tensors when it runs."""
    traced = torch.fx.symbolic_trace(module)
    x, target = make((4, 6), torch.float32, "index", "cpu")
    for given in ((x, torch.rand(4, 6)), (x.t(), target) if isinstance(module, SigmoidFocalLoss) else (x, target)):
        torch.testing.assert_close(traced(*given), module(*given), rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        traced(x, x.int())
