"""The asymmetric, quality focal and varifocal losses: precision without a slack for what cancels, other libraries', corners."""

import functools

import pytest
import torch
from support.loss_cases import LOSSES, ORACLES, WITH_OPTIONS, every_backend, exact_engine, make, running

import sigtorch
from sigtorch import asymmetric_loss, quality_focal_loss, varifocal_loss

every_one = pytest.mark.parametrize("loss", [f for f in LOSSES if f not in WITH_OPTIONS], ids=lambda f: f.__name__)


def value_and_slope(loss, x, target, **given):
    values = loss(x, target, reduction="none", **given)
    return torch.stack([values.detach(), torch.autograd.grad(values.sum(), x)[0]]).double()


def in_float64(loss, x, target, **given):
    return value_and_slope(ORACLES[loss], x.detach().double().requires_grad_(), target, **given)


@exact_engine
@pytest.mark.parametrize("clip", [1e-4, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("t", [0, 1])
def test_an_asymmetric_loss_is_off_by_the_rounding_of_s_and_clip(t, clip, backend, device):
    """Each by its last places, before one is subtracted from the other."""
    x = torch.linspace(-15, 25, 3001, device=device).requires_grad_()
    target = torch.full_like(x, t, dtype=torch.uint8)
    step = 2.0**-22 * torch.sigmoid(x.detach().double()).clamp(min=clip)
    expected, low, high = (in_float64(asymmetric_loss, x, target, clip=clip + step * n) for n in (0, -1, 1))
    with running(backend):
        found = value_and_slope(asymmetric_loss, x, target, clip=clip)
    assert ((found - expected).abs() <= 1e-5 * expected.abs() + (high - low).abs() * (t == 0)).all()


@exact_engine
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_a_quality_focal_loss_is_off_by_the_rounding_of_s(beta, backend, device):
    """By the last places of s or 1 - s, whichever is smaller."""
    x = torch.linspace(-15, 15, 3001, device=device).requires_grad_()
    for target in (torch.full_like(x, t, requires_grad=False) for t in (1e-7, 0.01, 0.5, 0.875)):
        exact = x.detach().double()
        step = 2.0**-22 * torch.sigmoid(-exact.abs())
        expected, low, high = (
            in_float64(quality_focal_loss, x, target.double() + step * n, beta=beta) for n in (0, -1, 1)
        )
        with running(backend):
            found = value_and_slope(quality_focal_loss, x, target, beta=beta)
        assert ((found - expected).abs() <= 1e-5 * expected.abs() + 2 * (high - low).abs()).all()


@exact_engine
def test_a_target_that_is_met(backend, device):
    """No loss, and a slope of 0, where its power has none."""
    x, target = torch.zeros(4, device=device, requires_grad=True), torch.full((4,), 0.5, device=device)
    for beta in (0.1, 0.5, 1.0, 2.0):
        with running(backend):
            assert not value_and_slope(quality_focal_loss, x, target, beta=beta).any()


@exact_engine
def test_negatives_below_clip_have_no_loss(backend, device):
    x, target = torch.linspace(-100, -3, 99, device=device).requires_grad_(), torch.zeros(99, device=device)
    for gamma in (0.0, 0.5, 4.0):
        with running(backend):
            assert not value_and_slope(asymmetric_loss, x, target, gamma_neg=gamma).any()


@every_backend
@pytest.mark.parametrize("kind", ["uint8", "bool", "index"])
def test_a_varifocal_weight_is_constant_in_every_derivative(kind, backend, device):
    x, target = make((4, 6), torch.float64, kind, device)
    exact = x.detach().clone().requires_grad_()
    with sigtorch.use_backend(backend):
        (grad,) = torch.autograd.grad(varifocal_loss(x, target), x, create_graph=True)
        grad.square().sum().backward()
    (expected,) = torch.autograd.grad(ORACLES[varifocal_loss](exact, target), exact, create_graph=True)
    expected.square().sum().backward()
    torch.testing.assert_close((grad, x.grad), (expected, exact.grad))


@every_backend
@every_one
def test_targets_have_gradients(loss, backend, device):
    x, t = (torch.rand(2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    with sigtorch.use_backend(backend):
        found = torch.autograd.grad(loss(x, t), (x, t))
    torch.testing.assert_close(found, torch.autograd.grad(ORACLES[loss](x, t), (x, t)))


@every_backend
@every_one
def test_halves_of_float32_targets(loss, backend, device):
    """The result has the target's dtype."""
    x, t = torch.randn(4, 6, device=device), torch.rand(4, 6, device=device)
    for a, b in ((torch.bfloat16, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.float16)):
        with sigtorch.use_backend(backend):
            out = loss(x.to(a), t.to(b))
        assert out.dtype == b
        torch.testing.assert_close(out.double(), ORACLES[loss](x.to(a), t.to(b)), rtol=2e-2, atol=0)


def theirs_of_timm(x, target, gamma_neg, gamma_pos, clip):
    timm = pytest.importorskip("timm.loss")
    return timm.AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip, eps=1e-30, reduction="none")(x, target)


@every_backend
@pytest.mark.parametrize("given", [(4.0, 1.0, 0.05), (4.0, 0.0, 0.0), (2.0, 2.0, 0.2)])
def test_timms_asymmetric_loss(given, backend, device):
    x = (torch.randn(4, 6, device=device) * 3).requires_grad_()
    for target in ((torch.rand(4, 6, device=device) > 0.5).float(), torch.rand(4, 6, device=device)):
        theirs = theirs_of_timm(x, target, *given)
        with sigtorch.use_backend(backend):
            ours = asymmetric_loss(x, target, *given, reduction="none")
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (ours, theirs)), rtol=1e-3, atol=1e-5)


@pytest.mark.kernels
@every_one
def test_compiles_whole_with_numbers_of_sizes(loss, device):
    numbers = {quality_focal_loss: "beta", varifocal_loss: "gamma", asymmetric_loss: "gamma_neg"}
    x, target = torch.randn(4, 6, device=device, requires_grad=True), torch.rand(4, 6, device=device)

    def call(x, target):
        return loss(x, target, **{numbers[loss]: x.shape[0] / 2})

    torch._dynamo.reset()
    whole = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    found, expected = (torch.autograd.grad(f(x, target), x)[0] for f in (whole, functools.partial(call)))
    torch.testing.assert_close(found, expected)
