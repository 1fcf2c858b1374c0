"""The operators of ``torch.library``: as PyTorch checks them, over the tables of cases, and called as they are."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import chunked_cases, router_cases
from support.cases import ALIKE, CASES, contiguous, transposed, variant
from support.device import DEVICE
from support.loss_cases import (
    KINDS,
    KINDS_AND_REDUCTIONS,
    OPTIONS,
    ORACLES,
    REDUCTIONS,
    every_loss_with_options,
    focal_oracle,
    make,
    suit,
)
from support.recording import BODY, WHOLE, Recorded
from torch.autograd import forward_ad
from torch.library import opcheck

import sigtorch

pytestmark = [
    pytest.mark.usefixtures("on_device"),
    # PyTorch's own check looks at it.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
DEFINED = {
    name.removeprefix("sigtorch::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("sigtorch::")
}
SUMMED = (
    "binary_cross_entropy_with_logits",
    "sigmoid_focal_loss",
    "quality_focal_loss",
    "varifocal_loss",
    "asymmetric_loss",
)
ROUTER = "sigmoid_topk"
CHUNKED = ("siglip_loss", "linear_binary_cross_entropy")
SCALE = "scale_loss_gradient_"  # what backward runs where forward computed the gradient
# Checked in test_dice.py, test_swiglu_linear.py and test_attention_traced.py.
ELSEWHERE = {"sigmoid_dice_loss", "swiglu_variant_recompute", "sigmoid_attention"}
FORWARD = {name for name in DEFINED if not name.endswith("_backward")}
ELEMENTWISE = sorted(FORWARD - ELSEWHERE - {*SUMMED, *CHUNKED, ROUTER, SCALE})
BACKWARD = tuple(f"{name}_backward" for name in (*ELEMENTWISE, *SUMMED, ROUTER))


def operator(name):
    return getattr(torch.ops.sigtorch, name).default


def recorded(call, inputs, backend="triton"):
    """The operators that forward and backward of a call run, with their arguments."""
    with sigtorch.use_backend(backend), Recorded() as seen:
        out = call(*inputs)
        wanted = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
        torch.autograd.grad(out, wanted, torch.ones_like(out))
    return seen


def checked(seen, differentiated, backend, whole):
    """Has PyTorch check each operator with what it was given; those arguments of forward that are listed want a gradient."""
    tests = WHOLE if whole and backend == "triton" else BODY
    for func, args in seen.calls:
        wants = () if func._opname in (*BACKWARD, SCALE) else differentiated
        given = [a.requires_grad_() if place in wants else a for place, a in enumerate(args)]
        with sigtorch.use_backend(backend):
            opcheck(func, tuple(given), test_utils=tests)


every_backend = pytest.mark.parametrize("backend", ["auto", "triton"])


@every_backend
@pytest.mark.parametrize("strides", [contiguous, transposed], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name == "glu-first" or c.name not in ALIKE], ids=lambda c: c.name
)
def test_elementwise_as_pytorch_checks_it(case, strides, backend):
    inputs = [strides(t.detach()).requires_grad_() for t in case.inputs((4, 6), torch.float32, DEVICE)]
    seen = recorded(case.ours, inputs)
    assert len(seen.calls) == 2, "one operator a pass"
    checked(seen, range(len(inputs)), backend, whole=strides is contiguous)


@every_backend
@pytest.mark.parametrize("strides", [contiguous, transposed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", router_cases.CASES, ids=lambda c: c.name)
def test_the_router_as_pytorch_checks_it(case, strides, backend):
    logits, bias = case.inputs((3,), torch.float32, DEVICE)
    seen = recorded(lambda x: case.ours(x, bias)[0], [strides(logits.detach()).requires_grad_()])
    assert seen.names == [ROUTER, f"{ROUTER}_backward"]
    checked(seen, [0], backend, whole=strides is contiguous)


def check_loss(loss, kind, reduction, options, backend, whole, dtype=torch.float32):
    x, target = make((3, 6), dtype, kind, DEVICE)
    given = options(6, lambda n: torch.rand(n))
    seen = recorded(lambda x: loss(x, suit(target, given), reduction=reduction, **given), [x])
    is_kept = reduction != "none" and dtype != torch.float16
    assert seen.names == [loss.__name__, SCALE if is_kept else f"{loss.__name__}_backward"]
    checked(seen, [0], backend, whole)


@every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@every_loss_with_options
def test_losses_as_pytorch_checks_them(loss, reduction, kind, backend):
    whole = (kind, reduction) in KINDS_AND_REDUCTIONS
    dtype = torch.float16 if kind == "hard" else torch.float32
    check_loss(loss, kind, reduction, lambda n, like: {}, backend, whole, dtype)


@every_backend
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_options_as_pytorch_checks_them(loss, options, backend):
    check_loss(loss, "index", "mean", options, backend, whole=True)
    check_loss(loss, "soft", "none", options, backend, whole=False)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", chunked_cases.CASES, ids=lambda c: c.name)
def test_losses_in_chunks_as_pytorch_checks_them(case, dtype, backend):
    inputs = case.make(6, dtype=dtype, device=DEVICE)
    seen = recorded(case.ours, inputs)
    assert set(seen.names) <= set(CHUNKED)
    assert len(seen.calls) == 1, "gradients come with the loss"
    checked(seen, (), backend, whole=True)  # needs_grad says which are wanted


@every_backend
@pytest.mark.parametrize("name", [*ELEMENTWISE, ROUTER, *SUMMED, *(f"{name}, with its gradient" for name in SUMMED)])
def test_called_as_they_are(name, backend):
    """Value, gradient and second derivative of an operator that is called directly."""
    call, oracle, shapes = DIRECT[name]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    with sigtorch.use_backend(backend):
        torch.testing.assert_close(call(*inputs), oracle(*inputs))
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def _bce(x, t, w, *, with_gradient):
    settings = "sum", torch.float64, -1, None, None, 0.25, with_gradient
    loss, *_ = operator("binary_cross_entropy_with_logits")(x, t, w, None, None, *settings)
    return loss


def _focal(x, t, w, *, reduction, with_gradient):
    settings = reduction, torch.float64, -1, None, None, 0.25, 2.0, with_gradient
    loss, *_ = operator("sigmoid_focal_loss")(x, t, w, None, None, *settings)
    return loss


def _smoothed(x, t, w):
    return (F.binary_cross_entropy_with_logits(x, t * 0.75 + 0.125, reduction="none") * w).sum()


T, W = torch.rand(2, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
DIRECT = {
    "sigmoid": (operator("sigmoid"), torch.sigmoid, [(2, 3)]),
    "sigmoid_from_input": (operator("sigmoid_from_input"), torch.sigmoid, [(2, 3)]),
    "sigmoid_gate": (
        operator("sigmoid_gate"), lambda x, g, r: torch.sigmoid(g) * x + r, [(2, 3), (1, 3), (3,)],
    ),
    "sigmoid_lerp": (
        operator("sigmoid_lerp"), lambda x, y, g: torch.sigmoid(g) * x + torch.sigmoid(-g) * y, [(2, 3)] * 3,
    ),
    "glu": (lambda x: operator("glu")(x, 0), lambda x: F.glu(x, 0), [(4, 2)]),
    "swiglu": (operator("swiglu"), lambda g, u: F.silu(g) * u, [(2, 3), (2, 1)]),
    "swiglu_packed": (operator("swiglu_packed"), lambda x: F.silu(x[:, :2]) * x[:, 2:], [(2, 4)]),
    "swiglu_variant": (
        lambda g, u: operator("swiglu_variant")(g, u, 2.0, 0.5, 1.0),
        lambda g, u: variant(g, u, alpha=2.0, limit=0.5, offset=1.0), [(2, 3), (2, 1)],
    ),
    "swiglu_weighted": (
        lambda g, u, w: operator("swiglu_weighted")(g, u, w, 1.0, 0.5, 0.0),
        lambda g, u, w: variant(g, u, w, limit=0.5), [(2, 3), (3,), (2, 1)],
    ),
    "swiglu_packed_variant": (
        lambda x: operator("swiglu_packed_variant")(x, True, 2.0, None, 1.0),
        lambda x: variant(x[:, 0::2], x[:, 1::2], alpha=2.0, offset=1.0), [(3, 4)],
    ),
    "swiglu_packed_weighted": (
        lambda x, w: operator("swiglu_packed_weighted")(x, w, False, 2.0, 0.5, 1.0),
        lambda x, w: variant(x[:, :2], x[:, 2:], w, alpha=2.0, limit=0.5, offset=1.0), [(3, 4), (3, 1)],
    ),
    "sigmoid_topk": (
        lambda x: operator("sigmoid_topk")(x, None, 3, 4, 2, True, 2.0)[0],
        lambda x: router_cases.oracle(x, 3, num_groups=4, topk_groups=2, scale=2.0)[0], [(2, 8)],
    ),
    "binary_cross_entropy_with_logits": (
        functools.partial(_bce, with_gradient=False), _smoothed, [(2, 3), (2, 3), (3,)],
    ),
    "binary_cross_entropy_with_logits, with its gradient": (
        lambda x: _bce(x, T, W, with_gradient=True), lambda x: _smoothed(x, T, W), [(2, 3)],
    ),
    "sigmoid_focal_loss": (
        functools.partial(_focal, reduction="none", with_gradient=False),
        lambda x, t, w: focal_oracle(x, t, weight=w), [(2, 3), (2, 3), (3,)],
    ),
    "sigmoid_focal_loss, with its gradient": (
        lambda x: _focal(x, T, W, reduction="mean", with_gradient=True),
        lambda x: focal_oracle(x, T, weight=W, reduction="mean"), [(2, 3)],
    ),
    "quality_focal_loss": (
        lambda x, t: operator("quality_focal_loss")(x, t, "none", torch.float64, 2.0, False)[0],
        lambda x, t: ORACLES[sigtorch.quality_focal_loss](x, t, reduction="none"), [(2, 3), (2, 3)],
    ),
    "asymmetric_loss": (
        lambda x, t: operator("asymmetric_loss")(x, t.sigmoid(), "none", torch.float64, 4.0, 1.0, 0.05, False)[0],
        lambda x, t: ORACLES[sigtorch.asymmetric_loss](x, t.sigmoid(), reduction="none"), [(2, 3), (2, 3)],
    ),
    "asymmetric_loss, with its gradient": (
        lambda x: operator("asymmetric_loss")(x, T, "mean", torch.float64, 4.0, 1.0, 0.05, True)[0],
        lambda x: ORACLES[sigtorch.asymmetric_loss](x, T), [(2, 3)],
    ),
    "varifocal_loss": (  # of a weight that does not change
        lambda x: operator("varifocal_loss")(x, T, "none", torch.float64, 0.75, 2.0, False)[0],
        lambda x: ORACLES[sigtorch.varifocal_loss](x, T, reduction="none"), [(2, 3)],
    ),
    "varifocal_loss, with its gradient": (
        lambda x: operator("varifocal_loss")(x, T, "mean", torch.float64, 0.75, 2.0, True)[0],
        lambda x: ORACLES[sigtorch.varifocal_loss](x, T), [(2, 3)],
    ),
    "quality_focal_loss, with its gradient": (
        lambda x: operator("quality_focal_loss")(x, T, "mean", torch.float64, 2.0, True)[0],
        lambda x: ORACLES[sigtorch.quality_focal_loss](x, T), [(2, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_operator_cannot_be_differentiated(name):
    tensors = [
        t.detach().requires_grad_() for t in (torch.rand(4, 6), torch.rand(4, 6), torch.rand(4, 6), torch.rand(4, 6))
    ]
    x = tensors[0]
    arguments = {
        "sigmoid_backward": (x, x), "sigmoid_from_input_backward": (x, x), "sigmoid_gate_backward": (x, x, x),
        "sigmoid_lerp_backward": tensors, "swiglu_backward": (x, x, x),
        "glu_backward": (x[:, :3], x, 1), "swiglu_packed_backward": (x[:, :3], x),
        "swiglu_variant_backward": (x, x, x, 1.0, 2.0, 0.0), "swiglu_weighted_backward": (x, x, x, x[:, :1], 1.0, 2.0, 0.0),
        "swiglu_packed_variant_backward": (x[:, :3], x, True, 1.0, None, 0.0),
        "swiglu_packed_weighted_backward": (x[:, :3], x, x[:, :1], True, 1.0, None, 0.0),
        "binary_cross_entropy_with_logits_backward": (x, x, x, None, None, None, "none", x.dtype, -1, None, None, 0.0),
        "sigmoid_focal_loss_backward": (x, x, x, None, None, None, "none", x.dtype, -1, None, None, 0.25, 2.0),
        "quality_focal_loss_backward": (x, x, x, "none", x.dtype, 2.0),
        "varifocal_loss_backward": (x, x, x, "none", x.dtype, 0.75, 2.0),
        "asymmetric_loss_backward": (x, x, x, "none", x.dtype, 4.0, 1.0, 0.05),
        "sigmoid_topk_backward": (x, x, torch.zeros(4, 6, dtype=torch.int64), True, 1.0),
    }  # fmt: skip
    found = operator(name)(*arguments[name])
    first = found if isinstance(found, torch.Tensor) else found[0]
    with pytest.raises(
        RuntimeError, match=f"sigtorch.{name} cannot be differentiated; differentiate torch.ops.sigtorch."
    ):
        first.sum().backward()


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", ["sigmoid", "swiglu_packed", "swiglu_packed_backward"])
def test_forward_mode_is_refused(name, grad_mode):
    """Not a tangent lost, nor a derivative of 0."""
    x, grad = torch.randn(3, 4), torch.randn(3, 2)
    call = functools.partial(operator(name), grad) if name.endswith("_backward") else operator(name)
    with grad_mode():
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
            call(forward_ad.make_dual(x, x))
        with pytest.raises(RuntimeError, match="setup_context"):
            torch.func.jvp(call, (x,), (x,))


@pytest.mark.parametrize("needs", [(False,) * 4, (True,) * 4])
def test_a_gradient_of_a_loss_in_chunks_has_to_be_asked_for(needs):
    image, text = (torch.rand(4, 3, requires_grad=True) for _ in range(2))
    scale = torch.tensor(2.0, requires_grad=True)
    settings = torch.float32, torch.float32, None, needs
    loss, *_ = operator("siglip_loss")(image, text, scale, None, *settings)
    if not any(needs):
        with pytest.raises(RuntimeError, match="image_features is differentiated, but needs_grad has not asked"):
            loss.backward()
        return
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, image, create_graph=True)
    expected = chunked_cases.siglip_oracle(image.detach().double().requires_grad_(), text.double(), scale.double())
    torch.testing.assert_close(loss.double(), expected)


def bce_of(target=None, weight=None, normalizer=None, reduction="sum", divisor=None):
    x = torch.randn(3, 4)
    target = torch.rand(3, 4) if target is None else target
    settings = reduction, torch.float32, -1, None, divisor, 0.0, False
    return operator("binary_cross_entropy_with_logits")(x, target, weight, None, normalizer, *settings)


def asymmetric_of(clip):
    settings = "mean", torch.float32, 4.0, 1.0, clip, False
    return operator("asymmetric_loss")(torch.randn(3, 4), torch.rand(3, 4), *settings)


def bce_backward_without_a_count():
    settings = "mean", torch.float32, -1, 255, None, 0.0
    x = torch.randn(3, 4)
    return operator("binary_cross_entropy_with_logits_backward")(torch.ones(()), x, x, None, None, None, *settings)


def linear_of(target, bias=None, pos_weight=None, reduction="mean", chunk_size=None, crow=None):
    settings = reduction, torch.float32, torch.float32, chunk_size, (False,) * 4
    tensors = torch.rand(3, 5), torch.rand(7, 5), bias, target, crow, None, pos_weight
    return operator("linear_binary_cross_entropy")(*tensors, *settings)


def siglip_of(n, scale=1.0, bias=0.0, chunk_size=None):
    settings = torch.float32, torch.float32, chunk_size, (False,) * 4
    tensors = torch.rand(3, 5), torch.rand(n, 5), torch.tensor(scale), torch.tensor(bias)
    return operator("siglip_loss")(*tensors, *settings)


LABELS = torch.rand(3, 7, device=DEVICE) > 0.5
MISTAKES = {
    "glu": (lambda: operator("glu")(torch.randn(3, 5), 1), "must have an even size"),
    "glu-backward": (lambda: operator("glu_backward")(torch.randn(3, 2), torch.randn(3, 5), 1), "must have an even size"),
    "swiglu-packed": (lambda: operator("swiglu_packed")(torch.randn(4, 3)), "must have an even size"),
    "swiglu-limit": (
        lambda: operator("swiglu_variant")(*torch.randn(2, 4, 3), 1.0, -2.0, 0.0), "limit must be at least 0, got -2.0",
    ),
    "swiglu-weight": (
        lambda: operator("swiglu_weighted")(*torch.randn(3, 4, 3), 1.0, None, 0.0), "weight must be one number a row",
    ),
    "swiglu-weight-backward": (
        lambda: operator("swiglu_packed_weighted_backward")(*torch.randn(3, 4, 4), True, 1.0, None, 0.0),
        "weight must be one number a row",
    ),
    "swiglu-interleaved": (
        lambda: operator("swiglu_packed_variant")(torch.randn(4, 3), True, 1.0, None, 0.0), "must have an even size",
    ),
    "router": (lambda: operator(ROUTER)(torch.randn(2, 8), None, 5, 4, 2, True, 1.0), "k=5 must be from 1 to 4"),
    "router-bias": (
        lambda: operator(ROUTER)(torch.randn(2, 8), torch.rand(4), 2, 1, 1, True, 1.0), "correction_bias must have shape",
    ),
    "router-indices": (
        lambda: operator(f"{ROUTER}_backward")(torch.rand(2, 3), torch.rand(2, 8), torch.zeros(2, 3), True, 1.0),
        "indices must be int64",
    ),
    "reduction": (lambda: bce_of(reduction="median"), "unknown reduction='median'"),
    "target": (lambda: bce_of(torch.rand(4)), "target must have the shape of input"),
    "classes": (lambda: bce_of(torch.zeros(2, dtype=torch.int64)), "must lack its last dimension"),
    "weight": (lambda: bce_of(weight=torch.rand(3)), "does not broadcast"),
    "normalizer": (lambda: bce_of(normalizer=torch.tensor(2.0), reduction="mean"), "divides by the count"),
    "divisor": (lambda: bce_of(divisor=2.0, reduction="mean"), "divides by the count"),
    "both": (lambda: bce_of(normalizer=torch.tensor(2.0), divisor=2.0), "not both"),
    "number": (lambda: asymmetric_of(clip=2.0), "clip must be at least 0 and below 1, got 2.0"),
    "scaled": (lambda: operator(SCALE)(torch.zeros(3, 4)[:, :2], torch.ones(()), None), "must be dense"),
    "factor": (lambda: operator(SCALE)(torch.zeros(3, 4), torch.ones(3), None), "grad must be a floating scalar"),
    "scaled-count": (lambda: operator(SCALE)(torch.zeros(3), torch.ones(()), torch.ones(3)), "count must be a floating"),
    "scaled-leaf": (
        lambda: operator(SCALE)(torch.zeros(3, requires_grad=True), torch.ones(()), None), "must not require",
    ),
    "scaled-by-a-count": (lambda: operator(SCALE)(torch.zeros(3), torch.ones((), dtype=torch.int64), None), "floating"),
    "count": (bce_backward_without_a_count, "takes the count that forward returned"),
    "linear-labels": (lambda: linear_of(LABELS.t()), "target must have shape"),
    "linear-dtype": (lambda: linear_of(LABELS.float()), "target must be a bool matrix"),
    "linear-both": (lambda: linear_of(LABELS, crow=torch.zeros(4, dtype=torch.int64)), "give either target"),
    "linear-bias": (lambda: linear_of(LABELS, bias=torch.rand(3)), "linear_bias must have shape"),
    "linear-reduction": (lambda: linear_of(LABELS, reduction="none"), "unknown reduction='none'"),
    "linear-chunks": (lambda: linear_of(LABELS, chunk_size=0), "chunk_size must be at least 1"),
    "siglip-pairs": (lambda: siglip_of(4), "features must have one shape"),
    "siglip-bias": (lambda: siglip_of(3, bias=[0.0, 1.0, 2.0]), "logit_bias must be a scalar"),
    "siglip-chunks": (lambda: siglip_of(3, chunk_size=-1), "chunk_size must be at least 1"),
}  # fmt: skip


@every_backend
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, backend):
    """Not a wrong number, nor memory read beyond a tensor."""
    call, message = MISTAKES[name]
    with sigtorch.use_backend(backend), pytest.raises((TypeError, ValueError), match=message) as seen:
        call()
    assert "\n" not in str(seen.value)


def test_a_weight_of_positives_has_no_gradient():
    weight, pos_weight = torch.rand(7, 5, requires_grad=True), torch.rand(7, requires_grad=True)
    settings = "mean", torch.float32, torch.float32, None, (True, False, False, False)
    tensors = torch.rand(3, 5), weight, None, LABELS, None, None, pos_weight
    loss, *_ = operator("linear_binary_cross_entropy")(*tensors, *settings)
    with pytest.raises(RuntimeError, match="pos_weight is differentiated"):
        loss.backward()


def test_a_linear_loss_needs_a_target():
    settings = None, None, None, None, "mean", torch.float32, torch.float32, None, (False,) * 4
    with pytest.raises(ValueError, match="give either target, or crow_indices and col_indices"):
        operator("linear_binary_cross_entropy")(torch.rand(2, 3), torch.rand(4, 3), None, *settings)


def test_defined_once_however_often_modules_are_loaded():
    """In a process of its own: the modules of this one are the other tests'."""
    script = """
import gc, importlib, sys, torch, sigtorch
from sigtorch.ops.gates import sigmoid, silu
for module in (sigtorch._operators, sigtorch._elementwise, sigmoid, silu):
    importlib.reload(module)
for name in [name for name in sys.modules if name.split(".")[0] == "sigtorch"]:
    del sys.modules[name]
del sigtorch, sigmoid, silu
gc.collect()
import sigtorch
gc.collect()
x = torch.randn(3, 4)
torch.testing.assert_close(torch.ops.sigtorch.glu(x, 1), torch.nn.functional.glu(x))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def test_the_examples_of_their_page_run():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        with torch.compiler.set_stance("force_eager"):
            exec(compile(example, str(PAGE), "exec"), {})


def test_their_schemas_are_documented():
    page = PAGE.read_text()
    lines = [line for line in page.splitlines() if re.match(r"\w+\(.*\) -> ", line)]
    documented = {line.partition("(")[0]: line for line in lines}
    schemas = {name: str(operator(name)._schema).removeprefix("sigtorch::") for name in DEFINED}
    assert documented == schemas
