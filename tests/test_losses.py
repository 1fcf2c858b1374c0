"""The losses against float64, on every engine: the formula, the CPU pass, and the kernels."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.autograd.graph import saved_tensors_hooks

import sigtorch
from sigtorch import _loss_cpu
from sigtorch._loss_modules import BCEWithLogitsLoss, SigmoidFocalLoss
from sigtorch.losses import binary_cross_entropy_with_logits, sigmoid_focal_loss

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Half types round once, to 2^-11 and 2^-8 of the value; float32 as promised, of each element.
BCE_RTOL = {torch.float16: 5e-4, torch.bfloat16: 3.92e-3, torch.float32: 1e-6, torch.float64: 1e-13}
FOCAL_RTOL = {**BCE_RTOL, torch.float32: 1e-5}
KINDS = ("soft", "hard", "uint8", "bool", "index")
REDUCTIONS = ("none", "mean", "sum")
LOSSES = (binary_cross_entropy_with_logits, sigmoid_focal_loss)

every_backend = pytest.mark.parametrize("backend", ["auto", "aten", "triton"])
# What a compiled kernel could get wrong where an interpreted one does not: these are the tests for other engines too.
every_engine = pytest.mark.parametrize("backend", ["auto", "aten", pytest.param("triton", marks=pytest.mark.kernels)])
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)


def share(target, x):
    """A target as float64 of x's shape."""
    if target.dtype == torch.int64:
        return (target.unsqueeze(-1) == torch.arange(x.shape[-1], device=x.device)).double()
    return target.double()


def softplus(x):
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def reduced(values, reduction):
    return values if reduction == "none" else getattr(values, reduction)()


def bce_oracle(x, target, weight=None, reduction="mean", pos_weight=None, *, label_smoothing=0.0):
    x, t = x.double(), share(target, x)
    t = t * (1 - label_smoothing) + label_smoothing / 2
    values = t * softplus(-x) * (1 if pos_weight is None else pos_weight.double()) + (1 - t) * softplus(x)
    return reduced(values * (1 if weight is None else weight.double()), reduction)


def focal_oracle(
    x, target, alpha=0.25, gamma=2.0, reduction="none", *, weight=None, normalizer=1.0, background_index=-1
):
    """The formula of torchvision, but for 1 - p_t, which it gets by subtraction."""
    if target.dtype == torch.int64:
        target = torch.where(target == background_index, -1, target)
    x, t = x.double(), share(target, x)
    q = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
    values = bce_oracle(x, t, reduction="none") * q**gamma
    if alpha >= 0:
        values = values * (alpha * t + (1 - alpha) * (1 - t))
    return reduced(values * (1 if weight is None else weight.double()), reduction) / normalizer


def torchvision_oracle(inputs, targets, alpha, gamma, reduction):
    p = torch.sigmoid(inputs)
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    loss = ce * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return reduced(loss, reduction)


ORACLES = {binary_cross_entropy_with_logits: bce_oracle, sigmoid_focal_loss: focal_oracle}
RTOL = {binary_cross_entropy_with_logits: BCE_RTOL, sigmoid_focal_loss: FOCAL_RTOL}


def make(shape, dtype, kind, device, scale=4.0):
    x = (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype).requires_grad_()
    if kind == "soft":
        return x, torch.rand(shape, dtype=torch.float64).to(device, dtype)
    if kind == "index":  # -1 and the number of classes among them
        return x, torch.randint(-1, shape[-1] + 1, shape[:-1]).to(device)
    dtypes = {"hard": dtype, "uint8": torch.uint8, "bool": torch.bool}
    return x, (torch.rand(shape) > 0.6).to(device, dtypes[kind])


def check(loss, x, target, backend, **options):
    """Value and gradient against the oracle's, each element relative to itself where nothing in it cancels."""
    exact = x.detach().double().requires_grad_()
    expected = ORACLES[loss](exact, target, **options)
    incoming = torch.randn(expected.shape, dtype=torch.float64).to(x.device, torch.bfloat16)
    expected.backward(incoming.double())
    with sigtorch.use_backend(backend):
        actual = loss(x, target, **options)
        (grad,) = torch.autograd.grad(actual, x, incoming.to(actual.dtype))
    rtol = RTOL[loss][x.dtype]
    tiny = {torch.float16: 6e-8}.get(x.dtype, 0)
    assert grad.dtype == x.dtype
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=tiny)
    cancels = 0 if target.dtype != x.dtype and not options.get("label_smoothing") else exact.grad.abs().max().item()
    torch.testing.assert_close(grad.double(), exact.grad, rtol=rtol, atol=tiny + rtol * cancels)
    return actual


BCE_OPTIONS = {
    "plain": lambda n, like: {},
    "weights": lambda n, like: {"weight": like(n), "pos_weight": like(n) * 3},
    "smoothing": lambda n, like: {"label_smoothing": 0.1, "pos_weight": like(1)},
}
FOCAL_OPTIONS = {
    "plain": lambda n, like: {},
    "unweighted": lambda n, like: {"alpha": -1, "gamma": 0},
    "steep": lambda n, like: {"alpha": 0.9, "gamma": 3.5, "weight": like(n)},
    "flat": lambda n, like: {"gamma": 0.5, "background_index": 1},
}
OPTIONS = [
    *(pytest.param(LOSSES[0], f, id=f"bce-{name}") for name, f in BCE_OPTIONS.items()),
    *(pytest.param(LOSSES[1], f, id=f"focal-{name}") for name, f in FOCAL_OPTIONS.items()),
]


@every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_matches_float64(loss, options, kind, backend, device):
    for dtype, reduction in zip((*DTYPES, *DTYPES), (*REDUCTIONS, *REDUCTIONS, *REDUCTIONS), strict=False):
        x, target = make((9, 40), dtype, kind, device)
        given = options(40, lambda n, dtype=dtype: torch.rand(n).to(device, dtype))
        if "background_index" in given:
            target[target == -1] = given["background_index"]
        actual = check(loss, x, target, backend, reduction=reduction, **given)
        assert actual.dtype == dtype
        assert actual.shape == (x.shape if reduction == "none" else ())


@pytest.mark.kernels
@every_loss
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "reduction"), [(torch.bfloat16, "mean"), (torch.float32, "none")], ids=str)
def test_full_and_part_blocks(loss, kind, dtype, reduction, device):
    x, target = make((3, 4104), dtype, kind, device)
    check(loss, x, target, "triton", reduction=reduction)


@every_backend
@every_loss
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (5, 4, 6), (2, 3, 4, 8), (1, 4100)], ids=str)
def test_any_shape(loss, shape, backend, device):
    kinds = [k for k in ("soft", "uint8", "index") if shape or k != "index"]
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
@every_loss
@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
def test_any_strides(loss, strides, backend, device):
    for kind, reduction in itertools.product(("soft", "bool", "index"), ("none", "mean")):
        x, target = make((3, 4, 6), torch.float32, kind, device)
        target = target if kind == "index" else strides(target)
        weight = torch.rand(4, 1, device=device)
        check(loss, strides(x.detach()).requires_grad_(), target, backend, reduction=reduction, weight=weight)


@every_backend
@pytest.mark.parametrize("shape", [(), (1,), (6,), (4, 1), (3, 1, 1), (3, 1, 6), (3, 4, 6)], ids=str)
def test_weights_broadcast(shape, backend, device):
    weights = {"weight": torch.rand(shape, device=device), "pos_weight": torch.rand(shape, device=device)}
    for kind, reduction in itertools.product(("soft", "index"), ("none", "sum")):
        x, target = make((3, 4, 6), torch.float32, kind, device)
        check(LOSSES[0], x, target, backend, reduction=reduction, **weights)
        check(LOSSES[1], x, target, backend, reduction=reduction, weight=weights["weight"])


@every_backend
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_torchvisions_own_grid(reduction, backend, device):
    for alpha, gamma, dtype in itertools.product((-1.0, 0.0, 0.58, 1.0), (0, 2), (torch.float32, torch.float16)):
        inputs = (torch.rand(5, 1, dtype=torch.float64) * 6 - 3).to(device, dtype)
        targets = torch.randint(0, 2, (5, 1)).to(device, dtype)
        expected = torchvision_oracle(inputs.double(), targets.double(), alpha, gamma, reduction)
        with sigtorch.use_backend(backend):
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


@every_engine
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


@every_backend
@every_loss
def test_finite_at_every_finite_logit(loss, backend, device):
    options = [{}] if loss is LOSSES[0] else [{"gamma": g, "alpha": -1} for g in (0.0, 0.5, 1.0, 2.0, 3.0)]
    for dtype, given, kind in itertools.product(DTYPES, options, ("soft", "hard", "uint8")):
        info = torch.finfo(dtype)
        ends = [0.0, info.tiny, 1.0, 9.39, 17.0, 88.0, 104.0, 745.0, info.max / 2, info.max]
        x = torch.tensor([s * v for v in ends for s in (1, -1)], dtype=dtype, device=device).unsqueeze(-1).repeat(1, 3)
        t = torch.tensor([0.0, 1.0, 0.5 if kind == "soft" else 1.0], dtype=dtype, device=device).expand_as(x)
        x.requires_grad_()
        with sigtorch.use_backend(backend):
            values = loss(x, t.to(torch.uint8) if kind == "uint8" else t, reduction="none", **given)
            (grad,) = torch.autograd.grad(values, x, torch.ones_like(values))
        assert values.isfinite().all()
        assert grad.isfinite().all()
        assert (values >= 0).all()


@every_backend
def test_a_mean_holds_what_its_sum_does_not(backend, device):
    x = torch.full((100, 40), 3e38, dtype=torch.float32, device=device)
    if backend == "aten":
        pytest.skip("PyTorch's own mean overflows")
    with sigtorch.use_backend(backend):
        mean = binary_cross_entropy_with_logits(x, torch.zeros_like(x))
    torch.testing.assert_close(mean, x[0, 0])


@every_backend
@every_loss
def test_two_runs_are_bit_equal(loss, backend, device):
    x, target = make((50, 101), torch.float32, "soft", device)
    with sigtorch.use_backend(backend):
        a, b = (loss(x, target, reduction="mean") for _ in range(2))
        grads = [torch.autograd.grad(v, x)[0] for v in (a, b)]
    assert torch.equal(a, b)
    assert torch.equal(*grads)


@pytest.mark.kernels
@every_loss
def test_programs_share_what_there_is(loss, device, monkeypatch):
    """More tiles than programs, in one row, in many, and in batches."""
    from sigtorch.kernels import losses as kernels

    monkeypatch.setattr(kernels, "PROGRAMS", 2)
    for shape, cut in (((9000,), 9000), ((40, 300), 280), ((3, 700, 9), 7)):
        x, target = make(shape, torch.float32, "soft", device)
        x = x.detach()[..., :cut].requires_grad_()
        check(loss, x, target[..., :cut], "triton", reduction="mean")


@every_loss
@pytest.mark.parametrize("shape", [(1000,), (7, 30), (3, 5, 20), (2, 300), (9, 8, 3)], ids=str)
def test_chunks_of_the_cpu_pass(loss, shape, monkeypatch):
    monkeypatch.setattr(_loss_cpu, "CHUNK", 64)
    for kind, reduction in itertools.product(("soft", "uint8", "index"), REDUCTIONS):
        for dtype, weight in ((torch.float32, None), (torch.bfloat16, torch.rand(shape[-1]).bfloat16())):
            check(loss, *make(shape, dtype, kind, "cpu"), "auto", reduction=reduction, weight=weight)


@every_backend
@every_loss
def test_only_inputs_are_saved(loss, backend, device):
    if backend == "aten":
        pytest.skip("the formula saves what autograd does")
    x, target = make((8, 16), torch.bfloat16, "uint8", device)
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), sigtorch.use_backend(backend):
        loss(x, target)
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), target.data_ptr()]


@every_loss
def test_a_reduction_allocates_little(loss):
    x, target = make((1_000_000,), torch.float32, "soft", "cpu")
    x = x.detach()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(x, target, reduction="mean")
        x.clone()
    sizes = sorted(e.cpu_memory_usage for e in profile.events())
    assert sizes[-1] >= 8_000_000 // 2  # the clone, seen
    assert [e.name for e in profile.events() if e.cpu_memory_usage > 6_000_000] == []
    assert sum(e.name == "aten::empty" and e.cpu_memory_usage > 3_500_000 for e in profile.events()) <= 1


@every_backend
@pytest.mark.parametrize(
    "normalizer", [7, 2.5, torch.tensor(7), torch.tensor(2.5), torch.tensor(2.5).double()], ids=str
)
def test_normalizer_divides(normalizer, backend, device):
    divisor = normalizer.to(device) if isinstance(normalizer, torch.Tensor) else normalizer
    for dtype, reduction in itertools.product((torch.float32, torch.float64), ("none", "sum")):
        x, target = make((6, 10), dtype, "index", device)
        check(LOSSES[1], x, target, backend, reduction=reduction, normalizer=divisor)


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
    names = dict(zip(LOSSES, ("target", "targets"), strict=True))
    for kind, reduction in (("soft", "mean"), ("index", "none")):
        x, target = make((2, 3), torch.float64, kind, device, scale=2.0)
        given = options(3, lambda n: torch.rand(n, dtype=torch.float64, device=device))
        if "background_index" in given:
            target[target == -1] = given["background_index"]
        call = functools.partial(loss, **{names[loss]: target}, reduction=reduction, **given)
        with sigtorch.use_backend(backend):
            assert torch.autograd.gradcheck(call, x)
            assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


@every_backend
def test_targets_and_weights_have_gradients(backend, device):
    x, t, w, p = (torch.rand(2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(4))
    n = torch.tensor(3.0, dtype=torch.float64, device=device, requires_grad=True)
    with sigtorch.use_backend(backend):
        assert torch.autograd.gradcheck(lambda *a: binary_cross_entropy_with_logits(*a[:3], "sum", a[3]), (x, t, w, p))
        focal = lambda x, t, w, n: sigmoid_focal_loss(x, t, weight=w, normalizer=n)  # noqa: E731
        assert torch.autograd.gradcheck(focal, (x, t, w, n))


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


@every_loss
@pytest.mark.parametrize("kind", ["soft", "index"])
def test_compiles_whole(loss, kind):
    x, target = make((4, 6), torch.float32, kind, "cpu")
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    given = {"reduction": "sum", "weight": torch.rand(6)}
    actual, expected = compiled(x, target, **given), loss(x, target, **given)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (actual, expected)))


@every_backend
@every_loss
def test_autocast_takes_halves_and_gives_float32(loss, backend, device):
    x, target = make((5, 8), torch.bfloat16, "soft", device)
    expected = ORACLES[loss](x.detach(), target, reduction="mean")
    saved = []
    with torch.autocast(x.device.type, dtype=torch.bfloat16), sigtorch.use_backend(backend):
        with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            actual = loss(x, target, reduction="mean")
        assert F.binary_cross_entropy_with_logits(x, target).dtype == actual.dtype == torch.float32
        if backend != "aten":
            assert {t.dtype for t in saved} == {torch.bfloat16}
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
            loss(x, torch.zeros(shape[:-1], dtype=torch.int64, device=device), reduction="sum").backward()
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
    """Where looking would stall nothing is raised, and the row says so itself, in the kernel as in the formula."""
    monkeypatch.setattr("sigtorch._loss_checks._classes", lambda *_: None)
    x, _ = make((4, 5), torch.float32, "soft", device)
    index = torch.tensor([0, 6, -2, 5], device=device)
    for backend in ("triton", "aten"):
        with sigtorch.use_backend(backend):
            bad = loss(x, index, reduction="none").isnan()
        assert bad.all(-1).tolist() == [False, True, True, False]
        assert bad.any(-1).tolist() == [False, True, True, False]


X = torch.zeros(3, 4)
ROW = torch.zeros(3, dtype=torch.int64)
BAD = [
    (LOSSES[0], (X, X), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (LOSSES[0], (X, X, None, None), {}, ValueError, "unknown reduction=None"),
    (LOSSES[0], (X, X), {"size_average": True}, ValueError, "size_average=True"),
    (LOSSES[0], (X, X), {"reduce": False}, ValueError, "reduce=False"),
    (LOSSES[0], (X, X), {"label_smoothing": 1.5}, ValueError, "got 1.5"),
    (LOSSES[0], (X, X), {"label_smoothing": math.nan}, ValueError, "got nan"),
    (LOSSES[0], (X, X[0]), {}, ValueError, r"\(3, 4\), got \(4,\)"),
    (LOSSES[0], (X, X), {"weight": X[:2]}, ValueError, r"weight of shape \(2, 4\) does not broadcast to \(3, 4\)"),
    (LOSSES[0], (X, X), {"pos_weight": X[None]}, ValueError, r"pos_weight of shape \(1, 3, 4\)"),
    (LOSSES[0], (X.long(), X), {}, TypeError, "input must be floating point, got torch.int64"),
    (LOSSES[0], (X, X.int()), {}, TypeError, "got torch.int32"),
    (LOSSES[0], (X, X.to(torch.complex64)), {}, TypeError, "got torch.complex64"),
    (LOSSES[0], (X, 1.0), {}, TypeError, "target must be a Tensor, got float"),
    (LOSSES[0], (X, X, 2.0), {}, TypeError, "weight must be a Tensor, got float"),
    (LOSSES[0], (X, X), {"weight": X.to(torch.complex64)}, TypeError, "weight must be real, got torch.complex64"),
    (LOSSES[0], (X, ROW[:2]), {}, ValueError, r"got target of shape \(2,\)"),
    (LOSSES[0], (X, X.long()), {}, ValueError, r"got target of shape \(3, 4\)"),
    (LOSSES[0], (X, ROW + 5), {}, ValueError, "holds class 5, expected 0 to 3, or 4"),
    (LOSSES[0], (X, ROW - 2), {}, ValueError, "holds class -2"),
    (LOSSES[1], (X, ROW - 1), {"background_index": 0}, ValueError, "holds class -1"),
    (LOSSES[1], (X, X), {"reduction": "batchmean"}, ValueError, "unknown reduction='batchmean'"),
    (LOSSES[1], (X, X), {"gamma": -1}, ValueError, "gamma must be finite and at least 0, got -1"),
    (LOSSES[1], (X, X), {"alpha": 1.1}, ValueError, "got 1.1"),
    (LOSSES[1], (X, X), {"alpha": -0.5}, ValueError, "got -0.5"),
    (LOSSES[1], (X, X), {"normalizer": 0}, ValueError, "normalizer must be positive, got 0"),
    (LOSSES[1], (X, X), {"normalizer": torch.tensor(-1.0)}, ValueError, "normalizer must be positive, got -1.0"),
    (LOSSES[1], (X, X), {"normalizer": torch.ones(1)}, ValueError, r"0-d tensor, got shape \(1,\)"),
    (LOSSES[1], (X, X), {"normalizer": "3"}, TypeError, "got str"),
    (LOSSES[1], (X, X), {"normalizer": 3, "reduction": "mean"}, ValueError, "normalizer=3 cannot divide"),
    (BCEWithLogitsLoss, (), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (BCEWithLogitsLoss, (), {"size_average": True}, ValueError, "size_average=True"),
    (BCEWithLogitsLoss, (), {"label_smoothing": -1}, ValueError, "got -1"),
    (BCEWithLogitsLoss, (2.0,), {}, TypeError, "weight must be a Tensor, got float"),
    (SigmoidFocalLoss, (), {"gamma": -1}, ValueError, "got -1"),
    (SigmoidFocalLoss, (), {"weight": 1}, TypeError, "weight must be a Tensor, got int"),
]


@pytest.mark.parametrize(("call", "args", "given", "error", "said"), BAD)
def test_bad_input_is_said_in_a_line(call, args, given, error, said):
    with pytest.raises(error, match=said) as raised:
        call(*args, **given)
    assert "\n" not in str(raised.value)
    assert f"{call.__name__}(): " in str(raised.value)


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
