"""The dice loss: values and gradients against float64, layouts, precision, what it reads and saves, operators, mistakes."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from support.cases import assert_rounded_once
from support.counting import engine_that_counts
from support.device import DEVICE
from support.graphs import compiled
from support.loss_cases import DTYPES, KINDS, REDUCTIONS, every_backend, every_path, make, reduced, running, softplus
from support.recording import BODY, WHOLE, Recorded
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import sigtorch
from sigtorch import sigmoid_dice_loss
from sigtorch.kernels import _plan
from sigtorch.nn import SigmoidDiceLoss

# PyTorch's own check of operators looks at it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
DENSE = [kind for kind in KINDS if kind != "index"]
SHAPE = (3, 2, 5, 24)
DIMS = [None, (0, 2, 3), (0, 1, 2, 3), 1, (0,), -1, (1, -1), (2,), (0, 3)]
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "classes first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "cut": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:, :1].expand(t.shape),
}
# Of a value and of each element of a gradient: a half type rounds once, and a sum has rounded each term.
RTOL = {torch.float16: 5e-4, torch.bfloat16: 3.92e-3, torch.float32: 4e-6, torch.float64: 1e-12}

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_dims = pytest.mark.parametrize("dims", DIMS, ids=str)
with_bce = pytest.mark.parametrize("bce_weight", [0.0, 0.7])


def summed(x, dims):
    return tuple(range(2, x.dim())) if dims is None else dims


def oracle(x, target, smooth=1.0, dims=None, reduction="mean", bce_weight=0.0):
    """The definition; no digit is lost by its subtraction in float64, but where the loss is tiny."""
    t, p, dims = target.double(), torch.sigmoid(x), summed(x, dims)
    values = 1 - (2 * (p * t).sum(dims) + smooth) / (p.sum(dims) + t.sum(dims) + smooth)
    if bce_weight:
        values = values + bce_weight * (t * softplus(-x) + (1 - t) * softplus(x)).mean(dims)
    return reduced(values, reduction)


def tensors(dtype=torch.float32, kind="soft", layout="contiguous", shape=SHAPE, scale=3.0):
    x, target = make(shape, dtype, kind, DEVICE, scale)
    return LAYOUTS[layout](x.detach()).requires_grad_(), target


def check(x, target, backend, **options):
    """Value and gradient, of an incoming gradient that rounds nothing."""
    exact = x.detach().double().requires_grad_()
    expected = oracle(exact, target, **options)
    incoming = torch.exp2(torch.randn(expected.shape, dtype=torch.float64).round()).to(x.device)
    expected.backward(incoming)
    with running(backend):
        actual = sigmoid_dice_loss(x, target, **options)
        (grad,) = torch.autograd.grad(actual, x, incoming.to(actual.dtype))
    assert actual.dtype == (target.dtype if target.is_floating_point() else x.dtype)
    assert (grad.dtype, grad.shape) == (x.dtype, x.shape)
    if torch.ops.aten.is_non_overlapping_and_dense(x):
        assert grad.stride() == x.stride()
    # t is subtracted from half of the similarity, and 1 - t from sigmoid(-x) with a cross-entropy.
    cancels = exact.grad.abs().max().item()
    for mine, theirs, atol in ((actual, expected, 1e-15), (grad, exact.grad, RTOL[torch.float32] * cancels)):
        if mine.dtype in (torch.float16, torch.bfloat16):
            assert_rounded_once(mine, theirs, RTOL[torch.float32] * theirs.abs() + atol)
        else:
            torch.testing.assert_close(mine.double(), theirs, rtol=RTOL[mine.dtype], atol=RTOL[mine.dtype] * cancels)


@every_path
@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@with_bce
def test_matches_float64(dtype, kind, bce_weight, backend):
    check(*tensors(dtype, kind), backend, bce_weight=bce_weight)


@every_path
@every_dims
def test_dims(dims, backend):
    check(*tensors(), backend, dims=dims, reduction="none", bce_weight=0.7, smooth=0.25)


@every_path
@pytest.mark.parametrize("reduction", REDUCTIONS)
@with_bce
def test_reductions(reduction, bce_weight, backend):
    check(*tensors(), backend, reduction=reduction, bce_weight=bce_weight, smooth=0.25)


@every_path
@pytest.mark.parametrize("dims", [None, (0, 2, 3), 1, -1], ids=str)
@every_layout
def test_layouts(layout, dims, backend):
    for follows in (False, True):
        x, target = tensors(torch.float32, "hard", layout)
        check(x, LAYOUTS[layout](target) if follows else target, backend, dims=dims, reduction="none")


@every_path
@pytest.mark.parametrize(("shape", "dims"), [((7,), 0), ((2, 9), -1), ((4, 1, 3), (0, 2)), ((2, 3, 4, 5, 6), None)])
def test_other_numbers_of_dimensions(shape, dims, backend):
    check(*tensors(shape=shape), backend, dims=dims, bce_weight=1.0)


@every_path
@pytest.mark.parametrize(("shape", "dims"), [((3, 5000), 1), ((1000, 3), 0), ((2, 500, 3), 1), ((7000,), 0)])
def test_many_tiles(shape, dims, backend, monkeypatch, plans):
    """Several tiles a program, and several programs a sum."""
    monkeypatch.setattr("sigtorch.kernels._reduce.GATE_PROGRAMS", 4)
    check(*tensors(shape=shape), backend, dims=dims, bce_weight=0.5)


@every_path
def test_half_logits_of_float32_targets(backend):
    x, target = tensors(torch.bfloat16)
    check(x, target.float(), backend)


@every_path
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_a_small_loss_keeps_its_digits(smooth, backend):
    """The float64 of what it is made of: 1 minus a quotient near 1 is none."""
    target = (torch.rand(2, 3, 400) > 0.5).to(DEVICE)
    x = torch.where(target, 14.0, -14.0).requires_grad_()
    exact = x.detach().double()
    apart = torch.sigmoid(torch.where(target, -exact, exact)).sum(-1)
    overlap = (torch.sigmoid(exact) * target).sum(-1)
    with running(backend):
        found = sigmoid_dice_loss(x, target, smooth, reduction="none")
    torch.testing.assert_close(found.double(), apart / (apart + 2 * overlap + smooth), rtol=2e-6, atol=0)


@every_path
def test_a_saturated_logit_keeps_its_gradient(backend):
    """The derivative is not 0 where 1 - sigmoid is 0 in float32."""
    x = torch.tensor([[20.0, -20.0, 0.0, 18.0]], device=DEVICE, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 1.0, 1.0]], device=DEVICE)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(oracle(exact, target, dims=1), exact)
    with running(backend):
        (grad,) = torch.autograd.grad(sigmoid_dice_loss(x, target, dims=1), x)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=0)


@every_path
@with_bce
def test_infinite_logits(bce_weight, backend):
    x = torch.tensor([[math.inf, -math.inf, 1000.0, -1000.0]], device=DEVICE, requires_grad=True)
    target = torch.tensor([[1, 0, 1, 0]], dtype=torch.uint8, device=DEVICE)
    with running(backend):
        value = sigmoid_dice_loss(x, target, dims=1)
        (grad,) = torch.autograd.grad(value, x)
    assert value == 0
    assert not grad.any()


@every_path
def test_huge_numbers(backend):
    """Those that float32 does not hold take the formula."""
    x, target = tensors()
    with running(backend):
        value = sigmoid_dice_loss(x, target, smooth=1e300)
        (grad,) = torch.autograd.grad(value, x)
        assert sigmoid_dice_loss(x, target, bce_weight=1e300).isinf()
    assert value == 0
    assert not grad.any()


@every_backend
@pytest.mark.parametrize(
    ("shape", "expected"), [((0, 3, 4), math.nan), ((2, 3, 0), 0.0), ((2, 0, 3), math.nan), ((2, 3, 0, 4), 0.0)]
)
def test_empty(shape, expected, backend):
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    with sigtorch.use_backend(backend):
        value = sigmoid_dice_loss(x, torch.zeros_like(x))
        total = sigmoid_dice_loss(x, torch.zeros_like(x), reduction="sum")
        assert sigmoid_dice_loss(x, torch.zeros_like(x), bce_weight=1.0).isnan()
        assert torch.autograd.grad(total, x)[0].shape == shape
    torch.testing.assert_close(value, torch.tensor(expected, device=DEVICE), equal_nan=True)
    assert total == 0


@every_backend
def test_sums_over_dimensions_of_one_element(backend):
    check(*tensors(shape=(3, 4, 1, 1)), "auto" if backend == "aten" else backend, bce_weight=1.0)


@every_backend
@with_bce
def test_gradcheck(bce_weight, backend):
    x, t = (torch.randn(2, 3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))
    mask = t.detach() > 0
    call = functools.partial(sigmoid_dice_loss, reduction="none", bce_weight=bce_weight)
    with sigtorch.use_backend(backend):
        for function, inputs in ((lambda x: call(x, mask), [x]), (lambda x, t: call(x, t.sigmoid()), [x, t])):
            assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_transforms():
    x, target = tensors(torch.float64)
    x = x.detach()
    with sigtorch.use_backend("triton"):
        call = functools.partial(sigmoid_dice_loss, dims=(-2, -1))
        each = torch.func.vmap(call)(x, target)
        grad = torch.func.grad(sigmoid_dice_loss)(x, target)
        _, tangent = torch.func.jvp(lambda x: sigmoid_dice_loss(x, target), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(each, torch.stack([oracle(a, b, dims=(-2, -1)) for a, b in zip(x, target, strict=True)]))
    (expected,) = torch.autograd.grad(oracle(leaf := x.clone().requires_grad_(), target), leaf)
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(tangent, expected.sum())


@every_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype, backend):
    x, target = tensors(dtype)
    with running(backend), torch.autocast(x.device.type, dtype):
        value = sigmoid_dice_loss(x, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), oracle(x.detach().double(), target), rtol=4e-6, atol=0)


@pytest.mark.kernels
@pytest.mark.parametrize("dims", [None, (0, 2, 3), 1], ids=str)
def test_two_runs_are_equal(dims):
    def run():
        x, target = tensors()
        with sigtorch.use_backend("triton"):
            value = sigmoid_dice_loss(x, target, dims=dims, bce_weight=0.3)
            return value.detach(), torch.autograd.grad(value, x)[0]

    torch.manual_seed(1)
    first = run()
    torch.manual_seed(1)
    assert all(map(torch.equal, first, run()))


BYTES = {
    (torch.bfloat16, "soft"): 10,
    (torch.bfloat16, "uint8"): 8,
    (torch.float32, "soft"): 20,
    (torch.float32, "bool"): 14,
}


@pytest.mark.kernels
@pytest.mark.parametrize("dims", [None, (0, 2, 3)], ids=str)
@with_bce
@pytest.mark.parametrize(("dtype", "kind"), BYTES)
def test_each_element_is_read_once_a_pass(dtype, kind, dims, bce_weight):
    gpu = engine_that_counts()
    x, target = tensors(dtype, kind, shape=(2, 2, 64, 64))
    before = gpu.loads + gpu.stores
    with sigtorch.use_backend("triton"):
        torch.autograd.grad(sigmoid_dice_loss(x, target, dims=dims, bce_weight=bce_weight), x)
    moved = (gpu.loads + gpu.stores - before) / x.numel()
    assert BYTES[dtype, kind] <= moved <= BYTES[dtype, kind] + 0.25  # the sums


@pytest.mark.kernels
@every_layout
@pytest.mark.parametrize("dims", [None, (0, 2, 3)], ids=str)
def test_what_is_read_in_place(layout, dims, monkeypatch, plans):
    """One launch a pass, of the tensors themselves: cut rows and repeated logits are copied for their sums."""
    launched, launch = [], _plan.Plan.launch

    def recorded(plan, inputs, outputs):
        launched.append({t.data_ptr() for t in inputs if isinstance(t, torch.Tensor)})
        launch(plan, inputs, outputs)
        del plan.launch

    monkeypatch.setattr(_plan.Plan, "launch", recorded)
    x, target = tensors(layout=layout)
    target = LAYOUTS[layout](target)
    with sigtorch.use_backend("triton"):
        torch.autograd.grad(sigmoid_dice_loss(x, target, dims=dims), x)
    forward, backward = launched
    assert {x.data_ptr(), target.data_ptr()} <= backward or (layout == "cut" and dims)  # of four axes
    assert ({x.data_ptr(), target.data_ptr()} <= forward) == (layout not in ("cut", "expanded"))


def test_sums_alone_are_saved_beside_the_inputs():
    x, target = tensors(kind="uint8")
    with sigtorch.use_backend("triton"):
        _, *saved = sigmoid_dice_loss(x, target, bce_weight=1.0).grad_fn.saved_tensors
    assert [t.data_ptr() for t in saved[:2]] == [x.data_ptr(), target.data_ptr()]
    assert [t.shape for t in saved[2:]] == [(3, 3, 2, 1, 1)]


def test_checkpointed():
    x, target = tensors()
    with sigtorch.use_backend("triton"):
        (expected,) = torch.autograd.grad(sigmoid_dice_loss(x, target), x)
        (found,) = torch.autograd.grad(checkpoint(sigmoid_dice_loss, x, target, use_reentrant=False), x)
        with pytest.raises(RuntimeError, match=r"sigmoid_dice_loss.*a checkpoint recomputed it another way"):
            torch.autograd.grad(_recomputed_by_another(x, target), x)
    assert torch.equal(found, expected)


def _recomputed_by_another(x, target):
    backends = iter(["triton", "aten"])

    def call(x):
        with sigtorch.use_backend(next(backends)):
            return sigmoid_dice_loss(x, target) if len(x) else x

    return checkpoint(call, x, use_reentrant=False, determinism_check="none")


@pytest.mark.parametrize("choice", ["triton", "auto"])
@pytest.mark.parametrize("dynamic", [False, True])
@with_bce
def test_compiles_whole(bce_weight, dynamic, choice, variable):
    variable(choice)
    x, target = tensors(kind="uint8")
    whole, graphs = compiled(lambda x, t: sigmoid_dice_loss(x * 1, t, dims=(0, -1), bce_weight=bce_weight))
    if dynamic:
        for t in (x, target):
            torch._dynamo.mark_dynamic(t, 0)
    found = whole(x, target)
    (grad,) = torch.autograd.grad(found, x)
    exact = x.detach().double().requires_grad_()
    expected = oracle(exact, target, dims=(0, -1), bce_weight=bce_weight)
    torch.testing.assert_close(found.double(), expected, rtol=4e-6, atol=0)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(expected, exact)[0], rtol=1e-5, atol=1e-8)
    assert graphs.ours == (["sigmoid_dice_loss"] if choice == "triton" or DEVICE == "cuda" else [])


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@with_bce
def test_operators_as_pytorch_checks_them(bce_weight, layout, reduction, backend):
    x, target = tensors(layout=layout)
    whole = layout == "contiguous" and backend == "triton"  # its autograd is the same for all
    with sigtorch.use_backend("triton"), Recorded() as seen:
        value = sigmoid_dice_loss(x, target, reduction=reduction, bce_weight=bce_weight)
        torch.autograd.grad(value, x, torch.ones_like(value))
    assert seen.names == ["sigmoid_dice_loss", "sigmoid_dice_loss_backward"]
    (forward, given), (backward, given_back) = seen.calls
    with sigtorch.use_backend(backend):
        opcheck(forward, (x.detach().requires_grad_(), *given[1:]), test_utils=WHOLE if whole else BODY)
        opcheck(backward, given_back, test_utils=BODY)


OPERATOR = torch.ops.sigtorch.sigmoid_dice_loss.default
BACKWARD = torch.ops.sigtorch.sigmoid_dice_loss_backward.default


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_an_operator_called_as_it_is(backend):
    x, t = (torch.randn(2, 3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))

    def call(x, t):
        return OPERATOR(x, t, [-1], "none", torch.float64, 0.5, 0.25)[0]

    with sigtorch.use_backend(backend):
        torch.testing.assert_close(call(x, t), oracle(x, t, 0.5, -1, "none", 0.25))
        assert torch.autograd.gradcheck(call, [x, t], fast_mode=True)
        assert torch.autograd.gradgradcheck(call, [x, t], fast_mode=True)
        grads = [
            torch.autograd.grad(f(x, t.detach()).sum(), x)[0]
            for f in (call, lambda x, t: oracle(x, t, 0.5, -1, "none", 0.25))
        ]
        torch.testing.assert_close(*grads)


def test_a_backward_operator_cannot_be_differentiated():
    x = torch.randn(2, 3, 4, device=DEVICE, requires_grad=True)
    given = [-1], "mean", x.dtype, 1.0, 0.0
    _, sums = OPERATOR(x.detach(), x.detach(), *given)
    found = BACKWARD(torch.ones((), device=DEVICE), x, x.detach(), sums, *given)
    with pytest.raises(RuntimeError, match="backward cannot be differentiated; differentiate torch"):
        found.sum().backward()


X = torch.zeros(2, 3, 4)
ROWS = torch.zeros(2, 4, dtype=torch.int64)
BAD = [
    ((X[0], X[0]), {}, ValueError, r"input of shape \(3, 4\) has no third dimension to sum over; give dims"),
    ((X, X), {"dims": 3}, ValueError, r"dims=3 are not all of input, whose shape is \(2, 3, 4\)"),
    ((X, X), {"dims": (0, -4)}, ValueError, r"dims=\(0, -4\) are not all of input"),
    ((X, X), {"dims": (2, -1)}, ValueError, r"dims=\(2, -1\) name a dimension of input twice"),
    ((X, X), {"dims": ()}, ValueError, r"dims must name a dimension to sum over, got \(\)"),
    ((X, X), {"dims": 1.0}, TypeError, "dims must be a whole number, got float"),
    ((X, X), {"dims": "2"}, TypeError, "dims must be a whole number, got str"),
    ((X[0, 0, 0], X[0, 0, 0]), {"dims": 0}, ValueError, r"dims=0 are not all of input, whose shape is \(\)"),
    ((X, X), {"smooth": -1.0}, ValueError, "smooth must be finite and at least 0, got -1.0"),
    ((X, X), {"smooth": math.inf}, ValueError, "smooth must be finite and at least 0, got inf"),
    ((X, X), {"smooth": X}, TypeError, "smooth must be a Python number, got Tensor"),
    ((X, X), {"bce_weight": math.nan}, ValueError, "bce_weight must be finite and at least 0, got nan"),
    ((X, X), {"bce_weight": "1"}, TypeError, "bce_weight must be a number, got str"),
    ((X, X), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    ((X, X[:1]), {}, ValueError, r"target must have the shape of input, \(2, 3, 4\), got \(1, 3, 4\)"),
    ((X, ROWS), {}, TypeError, r"target must be floating point, bool or uint8, got torch.int64; give .*one_hot"),
    ((X, X.long()), {}, TypeError, r"got torch.int64; give target.to\(input.dtype\)"),
    ((X, X.int()), {}, TypeError, "16 bits or more, bool or uint8, got torch.int32"),
    ((X.long(), X), {}, TypeError, "input must be floating point of 16 bits or more, got torch.int64"),
    ((X, X.to("meta")), {}, ValueError, "several devices: input on cpu, target on meta"),
    (([1.0], X), {}, TypeError, "input must be a Tensor, got list"),
    ((X, None), {}, TypeError, "target must be a Tensor, got NoneType"),
    ((X, (X + 255).byte()), {}, ValueError, "holds 255, expected 0 and 1; give target > 0 for a mask$"),
]


@pytest.mark.parametrize(("given", "options", "error", "message"), BAD)
def test_a_mistake_is_one_line(given, options, error, message):
    with pytest.raises(error, match=message) as seen:
        sigmoid_dice_loss(*given, **options)
    assert str(seen.value).startswith("sigmoid_dice_loss(): ")
    assert "\n" not in str(seen.value)


MODULE_MISTAKES = [
    ({"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    ({"smooth": -1}, ValueError, "smooth must be"),
    ({"bce_weight": -1}, ValueError, "bce_weight must be"),
    ({"dims": []}, ValueError, "dims must name"),
    ({"dims": 0.5}, TypeError, "dims must be a whole number"),
]


@pytest.mark.parametrize(("options", "error", "message"), MODULE_MISTAKES)
def test_a_module_refuses_when_it_is_made(options, error, message):
    with pytest.raises(error, match=rf"SigmoidDiceLoss\(\): {message}"):
        SigmoidDiceLoss(**options)


OPERATOR_MISTAKES = [
    ({"dims": [3]}, "are not all of input"),
    ({"reduction": "avg"}, "unknown reduction"),
    ({"smooth": -1.0}, "smooth must be"),
    ({"bce_weight": math.inf}, "bce_weight must be"),
    ({"target": X[:1]}, "target must have the shape"),
    ({"target": X.long()}, "bool or uint8, got torch.int64"),
]


@pytest.mark.parametrize(("options", "message"), OPERATOR_MISTAKES)
def test_an_operator_refuses_them_too(options, message):
    given = {"dims": [-1], "reduction": "mean", "dtype": X.dtype, "smooth": 1.0, "bce_weight": 0.0, "target": X}
    with pytest.raises((TypeError, ValueError), match=message):
        OPERATOR(X, **(given | options))


def test_an_operator_refuses_others_sums():
    with pytest.raises(ValueError, match=r"sums must be those that forward returned, of shape \[2, 2, 3, 1\]"):
        BACKWARD(torch.ones(()), X, X, torch.zeros(2, 3), [-1], "mean", X.dtype, 1.0, 0.0)


@pytest.mark.kernels
def test_a_mask_out_of_range_is_loud_in_a_kernel():
    x, target = tensors(kind="uint8")
    target[0, 0, 0, 0] = 2
    with sigtorch.use_backend("triton"):
        values = sigmoid_dice_loss(x, target, reduction="none")
        (grad,) = torch.autograd.grad(values.sum(), x)
    assert values.isnan().nonzero().tolist() == [[0, 0]]
    assert grad[0, 0].isnan().all()
    assert grad.isnan().sum() == grad[0, 0].numel()


def test_module():
    x, target = tensors()
    module = SigmoidDiceLoss(0.5, (0, 2, 3), "sum", bce_weight=0.25)
    assert repr(module) == "SigmoidDiceLoss(smooth=0.5, dims=(0, 2, 3), reduction='sum', bce_weight=0.25)"
    torch.testing.assert_close(
        module(x, target).double(), oracle(x.double(), target, 0.5, (0, 2, 3), "sum", 0.25), rtol=4e-6, atol=0
    )
    assert repr(SigmoidDiceLoss(dims=-1)) == "SigmoidDiceLoss(smooth=1.0, dims=(-1,), reduction='mean', bce_weight=0.0)"


def theirs_of_monai(x, target):
    """DiceLoss(sigmoid=True) by its formula, with its smooth of 1e-5."""
    p, dims = torch.sigmoid(x), tuple(range(2, x.dim()))
    below = target.sum(dims) + p.sum(dims)
    return (1 - (2 * (p * target).sum(dims) + 1e-5) / (below + 1e-5)).mean()


def theirs_of_segmentation_models(x, target):
    """DiceLoss("multilabel") by its formula, of a batch in which every class is there."""
    p = F.logsigmoid(x).exp().flatten(2)
    t = target.flatten(2)
    score = 2 * (p * t).sum((0, 2)) / (p + t).sum((0, 2)).clamp_min(1e-7)
    return (1 - score).mean()


@every_path
def test_what_docs_put_in_place_of_others(backend):
    x, target = tensors(torch.float32, "hard")
    with running(backend):
        batch = sigmoid_dice_loss(x, target, smooth=0.0, dims=(0, 2, 3))
        each = sigmoid_dice_loss(x, target, smooth=1e-5)
    torch.testing.assert_close(each, theirs_of_monai(x, target))
    torch.testing.assert_close(batch, theirs_of_segmentation_models(x, target))
