"""A linear layer's binary cross-entropy: the module, the weight's gradient, and every mistake."""

import sys
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from _measure import peak_extra_bytes
from support.chunked_cases import CASES, csr, indices, linear_oracle, positives
from torch.autograd.forward_ad import dual_level, make_dual
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import sigtorch
from sigtorch import linear_binary_cross_entropy


def test_module_is_a_linear_layer():
    module = sigtorch.nn.LinearBCE(4, 9, chunk_size=2, reduction="sum", pos_weight=torch.tensor(2.0))
    assert isinstance(module, torch.nn.Linear)
    x, targets = torch.randn(5, 4), positives(9)
    assert_close(module(x), F.linear(x, module.weight, module.bias))
    expected = linear_oracle(x, module.weight, module.bias, "sum", torch.tensor(2.0))
    for given in (targets, csr(targets), indices(targets)):
        assert_close(module(x, given), expected)
    assert "in_features=4, out_features=9, bias=True, chunk_size=2, reduction='sum', pos_weight=tensor(2.)" in repr(
        module
    )
    assert list(module.state_dict()) == ["weight", "bias", "pos_weight"]
    assert sigtorch.nn.LinearBCE(4, 9, bias=False).bias is None


@pytest.mark.parametrize("size", [sys.maxsize, 2**62, 2**63])
def test_a_chunk_may_hold_more_labels_than_there_are(size):
    x, weight = torch.randn(5, 4), torch.randn(9, 4)
    for targets in (positives(9), csr(positives(9)), indices(positives(9))):
        loss = linear_binary_cross_entropy(x, weight, targets, chunk_size=size)
        assert_close(loss, linear_oracle(x, weight))


def test_a_pos_weight_without_dimensions_goes_with_any_device():
    x, weight = torch.empty(4, 6, device="meta"), torch.empty(8, 6, device="meta")
    targets = torch.empty(4, 8, dtype=torch.bool, device="meta")
    loss = linear_binary_cross_entropy(x, weight, targets, pos_weight=torch.tensor(2.0))
    assert (loss.shape, loss.device.type) == ((), "meta")


def test_a_pos_weight_may_want_a_gradient():
    tensors = [*CASES[-1].make(9, 4), torch.rand(9, dtype=torch.float64, requires_grad=True)]
    call = lambda x, w, b, p: linear_binary_cross_entropy(x, w, positives(9), linear_bias=b, pos_weight=p)  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors)
    assert_close(call(*tensors), linear_oracle(*tensors[:3], pos_weight=tensors[3].detach()))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_targets(strict):
    """Targets as inputs, and as a buffer of the module."""

    class Holds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("targets", positives(9))

        def forward(self, x, weight, bias):
            return linear_binary_cross_entropy(x, weight, self.targets, linear_bias=bias)

    class Takes(torch.nn.Module):
        def forward(self, x, weight, bias, targets):
            return linear_binary_cross_entropy(x, weight, targets, linear_bias=bias)

    tensors = [t.detach() for t in CASES[-1].make(9, 4)]
    for model, targets in ((Holds(), ()), (Takes(), (positives(9),)), (Takes(), (indices(positives(9)),))):
        exported = torch.export.export(model, (*tensors, *targets), strict=strict).module()
        assert_close(exported(*tensors, *targets), linear_oracle(*tensors))


def test_the_weights_gradient_is_held_once():
    """And handed out: a leaf takes it without a copy."""
    x, weight = torch.randn(4, 16), torch.randn(20_000, 16, requires_grad=True)
    targets = positives(20_000, 4)

    def step():
        weight.grad = None
        linear_binary_cross_entropy(x, weight, targets, chunk_size=100).backward()

    step()
    weight.grad = None
    assert peak_extra_bytes(step, x.device) < 1.1 * weight.numel() * 4


X = torch.ones(4, 3)
W = torch.ones(6, 3)
HITS = torch.zeros(4, 6, dtype=torch.bool)
ROWS, COLUMNS = torch.tensor([0, 1, 1, 3, 3]), torch.tensor([5, 0, 2])
WRAPPING = torch.tensor([0, 2**31 - 1, -2, 3, 3], dtype=torch.int32)
LINEAR_MISTAKES = [
    (([1.0], W, HITS), {}, TypeError, "input must be a Tensor, got list"),
    ((X, W.int(), HITS), {}, TypeError, "linear_weight must be floating point of 16 bits or more, got torch.int32"),
    (
        (X, W[:, :2], HITS),
        {},
        ValueError,
        "input must have shape (N, D) and linear_weight (L, D), got input (4, 3), linear_weight",
    ),
    ((X[0], W, HITS), {}, ValueError, "got input (3,), linear_weight (6, 3)"),
    ((X[:0], W, HITS[:0]), {}, ValueError, "there are no samples or no labels, got input (0, 3), linear_weight (6, 3)"),
    (
        (X, W[:0], HITS[:, :0]),
        {},
        ValueError,
        "there are no samples or no labels, got input (4, 3), linear_weight (0, 3)",
    ),
    ((X, W, HITS), {"linear_bias": X}, ValueError, "linear_bias must have shape (6,), got (4, 3)"),
    ((X, W, HITS[:3]), {}, ValueError, "target must have shape (4, 6), got (3, 6)"),
    ((X, W, csr(HITS[:3])), {}, ValueError, "target must have shape (4, 6), got (3, 6)"),
    ((X, W, csr(HITS.float() + 2)), {}, ValueError, "target must hold ones alone, got 2"),
    ((X, W, csr(HITS.float() + 2).requires_grad_()), {}, ValueError, "target gets no gradient, got a sparse CSR"),
    ((X, W, HITS.float()), {}, TypeError, "got torch.strided of torch.float32"),
    ((X, W, [ROWS]), {}, TypeError, "a tuple of its indices, got list"),
    (
        (X, W, (ROWS, COLUMNS.float())),
        {},
        TypeError,
        "col_indices must be one row of int32 or int64, got torch.float32",
    ),
    ((X, W, (ROWS[1:], COLUMNS)), {}, ValueError, "crow_indices must have 5 entries, got 4"),
    ((X, W, (ROWS + 1, COLUMNS)), {}, ValueError, "must rise from 0 to the 3 col_indices, got 1 to 4"),
    ((X, W, (ROWS, COLUMNS[:2])), {}, ValueError, "must rise from 0 to the 2 col_indices, got 0 to 3"),
    ((X, W, (ROWS[[0, 3, 1, 3, 4]], COLUMNS)), {}, ValueError, "got 0 to 3, with 3 before 1"),
    ((X, W, (WRAPPING, COLUMNS)), {}, ValueError, "got 0 to 3, with 2147483647 before -2"),
    ((X, W, (WRAPPING.long() << 32, COLUMNS)), {}, ValueError, "with 9223372032559808512 before -8589934592"),
    ((X, W, (ROWS, COLUMNS + 1)), {}, ValueError, "target names label 6, expected 0 to 5"),
    ((X, W, (ROWS, COLUMNS - 1)), {}, ValueError, "target names label -1, expected 0 to 5"),
    ((X, W, (ROWS, torch.tensor([5, 2, 2]))), {}, ValueError, "sample 2 names label 2 twice"),
    ((X, W, HITS.to("meta")), {}, ValueError, "several devices: input on cpu, target on meta"),
    ((X, W, HITS), {"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ((X, W, HITS), {"reduction": "none"}, ValueError, "unknown reduction='none', expected one of 'mean', 'sum'"),
    ((X, W, HITS), {"pos_weight": X}, ValueError, "pos_weight of shape (4, 3) does not broadcast to (6,)"),
    ((X, W, HITS), {"pos_weight": 2.0}, TypeError, "pos_weight must be a Tensor, got float"),
]


@pytest.mark.parametrize("backend", ["auto", "aten"])
@pytest.mark.parametrize(("given", "options", "kind", "said"), LINEAR_MISTAKES)
def test_linear_mistakes(given, options, kind, said, backend):
    with pytest.raises(kind) as error, sigtorch.use_backend(backend):
        linear_binary_cross_entropy(*given, **options)
    assert str(error.value).startswith("linear_binary_cross_entropy(): ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def in_inference_mode(call, targets):
    with torch.inference_mode():
        targets = tuple(t.clone() for t in targets) if isinstance(targets, tuple) else targets.clone()
    return call(X.clone().requires_grad_(), targets)


def counting_flops(call, targets):
    with FlopCounterMode(display=False):
        return call(X, targets)


def with_tangents(call, targets):
    with dual_level():
        return call(make_dual(X, X), targets)


# Where the formula runs, but what targets hold can be seen.
WATCHED = [
    in_inference_mode,
    counting_flops,
    with_tangents,
    lambda call, targets: torch.func.grad(call)(X, targets),
    lambda call, targets: torch.vmap(lambda x: call(x, targets))(X[None]),
]


@pytest.mark.parametrize("watched", WATCHED)
def test_what_is_malformed_is_said_whoever_watches(watched):
    call = lambda x, targets: linear_binary_cross_entropy(x, W, targets)  # noqa: E731
    for targets, said in (
        ((ROWS, COLUMNS - 1), "target names label -1, expected 0 to 5"),
        ((ROWS, COLUMNS + 4), "target names label 9, expected 0 to 5"),
        ((ROWS, torch.tensor([5, 2, 2])), "sample 2 names label 2 twice"),
        ((ROWS[[0, 3, 1, 3, 4]], COLUMNS), "got 0 to 3, with 3 before 1"),
    ):
        with pytest.raises(ValueError, match=said):
            watched(call, targets)
    if watched is not WATCHED[3]:  # which takes no CSR tensor
        with pytest.raises(ValueError, match=r"target must hold ones alone, got 0\.5"):
            watched(call, csr(HITS.float() + 0.5))


def test_many_positives_of_a_csr_are_looked_at():
    """They are too many to be sorted."""
    x, weight, hits = torch.randn(50, 4), torch.randn(60, 4), torch.rand(50, 60) < 0.9
    hits[29] = False
    crow, col = indices(hits)
    expected = F.binary_cross_entropy_with_logits(F.linear(x, weight), hits.float())
    for parts in ((crow, col), (crow.long(), col), (torch.stack([crow, crow], 1)[:, 0], col)):
        assert_close(linear_binary_cross_entropy(x, weight, parts), expected)
    again, outside = col.clone(), col.clone()
    again[1], outside[7] = again[0], 60
    with pytest.raises(ValueError, match=f"sample 0 names label {again[0]} twice"):
        linear_binary_cross_entropy(x, weight, (crow, again))
    with pytest.raises(ValueError, match="target names label 60, expected 0 to 59"):
        linear_binary_cross_entropy(x, weight, (crow, outside))


TRACERS = [
    lambda call: torch.func.grad(call)(X),
    lambda call: make_fx(call)(X),
    lambda call: torch.jit.trace(call, (X,)),
    lambda call: torch.export.export(Calls(call), (X,), strict=False),
]


class Calls(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_traces_takes_indices_for_a_csr_tensor(tracer, monkeypatch):
    # An export that raises leaves its hook there in torch 2.8.
    monkeypatch.setattr("torch.nn.modules.module._global_buffer_registration_hooks", OrderedDict())
    targets, pair = csr(HITS), indices(HITS)
    tracer(lambda x: linear_binary_cross_entropy(x, W, pair))
    with pytest.raises(RuntimeError, match=r"CSR tensor; give its crow_indices\(\) and col_indices\(\) in a tuple$"):
        tracer(lambda x: linear_binary_cross_entropy(x, W, targets))
