"""The router's function: against its oracle, at its edges, by every engine."""

import inspect
import math

import pytest
import torch
from support.cases import DTYPES, HALF, STRIDES
from support.counting import engine_that_counts
from support.device import DEVICE
from support.router_cases import CASES, RouterCase, oracle
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jvp, vmap

import sigtorch
from sigtorch.ops.experts import topk

pytestmark = pytest.mark.usefixtures("on_device")
by_kernels = pytest.param("triton", marks=pytest.mark.kernels)
every_backend = pytest.mark.parametrize("backend", ["auto", by_kernels])
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
F64 = torch.float64


def assert_right(case, logits, bias, backend, weigh=None):
    """Indices, weights and gradients are the oracle's, in float64 on the same inputs."""
    wide = logits.detach().double().requires_grad_()
    exact, order = case.oracle(wide, None if bias is None else bias.double())
    incoming = torch.linspace(-1, 1, exact.numel(), dtype=F64).view(exact.shape)
    incoming = incoming if weigh is None else weigh(incoming)
    with sigtorch.use_backend(backend):
        weights, indices = case.ours(logits, bias)
        (slope,) = torch.autograd.grad(weights, logits, incoming.to(weights.dtype))
    (exact_slope,) = torch.autograd.grad(exact, wide, incoming)
    assert indices.dtype == torch.int64
    assert weights.dtype == (F64 if logits.dtype == F64 else torch.float32)
    assert weights.shape == indices.shape == (*logits.shape[:-1], case.k)
    assert (slope.dtype, slope.shape) == (logits.dtype, logits.shape)
    assert torch.equal(indices, order)
    near = 1e-13 if logits.dtype == F64 else 2e-6
    torch.testing.assert_close(weights.double(), exact, rtol=0, atol=near * case.scale)
    eps = torch.finfo(logits.dtype).eps / 2 if logits.dtype in HALF else 0
    torch.testing.assert_close(slope.double(), exact_slope, rtol=eps + near, atol=near * case.scale)


@every_case
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_oracle(case, backend, dtype):
    assert_right(case, *case.inputs((5,), dtype, DEVICE), backend)


@every_backend
@pytest.mark.parametrize("rows", [(), (1,), (2, 3), (0,), (3, 0)], ids=str)
def test_takes_any_rows(rows, backend):
    case = RouterCase("", 20, 3, 4, 2)
    assert_right(case, *case.inputs(rows, torch.float32, DEVICE), backend)


@every_backend
@pytest.mark.parametrize("strides", STRIDES, ids=lambda f: f.__name__)
def test_takes_any_strides(strides, backend):
    case = RouterCase("", 24, 4)
    logits, bias = case.inputs((6,), torch.bfloat16, DEVICE)
    logits = strides(logits.detach()).requires_grad_()
    spread = torch.stack([bias, bias], -1)[:, 0]
    assert_right(case, logits, spread, backend, strides)
    with sigtorch.use_backend(backend):
        (slope,) = torch.autograd.grad(case.ours(logits, bias)[0].sum(), logits)
    if backend == "triton" and torch.ops.aten.is_non_overlapping_and_dense(logits):
        assert slope.stride() == logits.stride()


@every_backend
def test_equal_experts_are_taken_in_their_order(backend):
    logits = torch.randint(-1, 2, (40, 24)).float() * torch.tensor([1.0, -1.0]).repeat(12)  # with zeros of both signs
    bias = torch.zeros(24)
    bias[::3] = -0.0
    with sigtorch.use_backend(backend):
        for given in (None, bias):
            _, indices = sigtorch.sigmoid_topk(logits, 9, given)
            expected = [sorted(range(24), key=lambda i, row=row: (-row[i], i))[:9] for row in logits.tolist()]
            assert indices.tolist() == expected
        _, indices = sigtorch.sigmoid_topk(torch.zeros(2, 24), 5, num_groups=6, topk_groups=2)
        assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2
        logits = torch.zeros(2, 24)
        logits[:, 13] = 1.0  # its group is chosen first
        _, indices = sigtorch.sigmoid_topk(logits, 5, num_groups=6, topk_groups=2)
        assert indices.tolist() == [[13, 0, 1, 2, 3]] * 2


@every_backend
@pytest.mark.parametrize("low", [-3.0, -math.inf, math.nan])
def test_experts_of_other_groups_are_never_chosen(low, backend):
    """The first group wins by its two best, and its two others are worth less than all other experts."""
    logits, bias = torch.zeros(3, 12), torch.zeros(12)
    bias[4:8] = torch.tensor([2.0, 2.0, low, low])
    with sigtorch.use_backend(backend):
        weights, indices = sigtorch.sigmoid_topk(logits, 4, bias, num_groups=3, topk_groups=1)
    assert indices.sort(-1).values.tolist() == [[4, 5, 6, 7]] * 3
    assert torch.equal(weights, torch.full((3, 4), 0.25))
    if not math.isnan(low):
        assert indices.tolist() == [[4, 5, 6, 7]] * 3


@every_backend
def test_nothing_is_chosen_twice(backend):
    """Not where what is left is worth minus infinity."""
    logits = torch.full((2, 9), -math.inf)
    logits[:, 5] = 1.0
    with sigtorch.use_backend(backend):
        weights, indices = sigtorch.sigmoid_topk(logits, 4)
        _, biased = sigtorch.sigmoid_topk(torch.zeros(2, 9), 9, torch.full((9,), -math.inf))
    assert indices.tolist() == [[5, 0, 1, 2]] * 2
    assert weights.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    assert biased.tolist() == [[*range(9)]] * 2


@every_backend
@pytest.mark.parametrize("offset", [-500.0, -88.0, -20.0, 0.0, 20.0, 500.0])
def test_weights_are_right_however_small_the_scores(offset, backend):
    logits = (torch.randn(6, 32).double() * 3 + offset).float().requires_grad_()
    wide = logits.detach().double().requires_grad_()
    exact, order = oracle(wide, 5)
    if offset > 0:  # all scores are 1: the order is that of the logits, though
        order = wide.sort(dim=-1, descending=True, stable=True).indices[:, :5]
    with sigtorch.use_backend(backend):
        weights, indices = sigtorch.sigmoid_topk(logits, 5)
        (slope,) = torch.autograd.grad(weights[:, 0].sum(), logits)
    assert torch.equal(indices, order)
    torch.testing.assert_close(weights.double(), exact, rtol=0, atol=2e-6)
    (exact_slope,) = torch.autograd.grad(exact[:, 0].sum(), wide)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=0, atol=2e-6)


@every_backend
@pytest.mark.parametrize("normalize", [True, False])
def test_a_nan_is_chosen_and_shows(normalize, backend):
    logits = torch.randn(4, 16)
    logits[1, 3], logits[2] = torch.tensor(math.nan).copysign(torch.tensor(-1.0)), math.nan
    with sigtorch.use_backend(backend):
        for groups in ({}, {"num_groups": 4, "topk_groups": 2}):
            weights, indices = sigtorch.sigmoid_topk(logits, 4, normalize=normalize, **groups)
            assert indices.min() >= 0
            assert indices.max() < 16
            assert all(len(set(row)) == 4 for row in indices.tolist())
            assert indices[1, 0] == 3
            assert weights[1, 0].isnan()
            assert weights[2].isnan().all()
            assert weights[1].isnan().all() == normalize
            assert not weights[[0, 3]].isnan().any()


@every_backend
def test_infinite_logits(backend):
    logits = torch.tensor([[math.inf, 0.0, -math.inf], [math.inf, math.inf, 0.0]])
    with sigtorch.use_backend(backend):
        weights, indices = sigtorch.sigmoid_topk(logits, 3)
    assert indices.tolist() == [[0, 1, 2], [0, 1, 2]]
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 3, 0.0], [0.4, 0.4, 0.2]]))


@every_case
@every_backend
def test_two_runs_agree_bit_for_bit(case, backend):
    logits, bias = case.inputs((17,), torch.bfloat16, DEVICE)
    runs = []
    with sigtorch.use_backend(backend):
        for _ in range(2):
            weights, indices = case.ours(logits, bias)
            (slope,) = torch.autograd.grad(weights.square().sum(), logits)
            runs.append((weights, indices, slope))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("case", [c for c in CASES if c.experts <= 24], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_derivatives_and_transforms(case, backend):
    logits, bias = case.inputs((1,), F64, DEVICE)
    x = logits.detach()

    def ours(x):
        with sigtorch.use_backend(backend):
            return case.ours(x, bias)[0]

    def theirs(x):
        return case.oracle(x, None if bias is None else bias.double())[0]

    assert gradcheck(ours, logits, check_batched_grad=True, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(ours, logits, check_batched_grad=True, fast_mode=True)
    for transform in (
        lambda f: jvp(f, (x,), (x.cos(),)),
        lambda f: grad(lambda x: f(x).square().sum())(x),
        lambda f: vmap(f)(torch.stack([x, -x])),
        lambda f: hessian(lambda x: f(x).square().sum())(x),
        lambda f: jacfwd(jacfwd(f))(x),
    ):
        torch.testing.assert_close(transform(ours), transform(theirs))


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_only_logits_have_a_gradient(backend):
    logits, bias = torch.randn(3, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    with sigtorch.use_backend(backend):
        weights, indices = sigtorch.sigmoid_topk(logits, 2, bias)
        assert weights.requires_grad
        assert not indices.requires_grad
        weights.sum().backward()
        fixed, _ = sigtorch.sigmoid_topk(logits.detach(), 2, bias)
    assert bias.grad is None
    assert logits.grad is not None
    assert not fixed.requires_grad


@pytest.mark.parametrize(("experts_", "k", "groups"), [(1030, 4, 1), (64, 33, 1), (645, 4, 5)])
def test_rows_that_are_too_long_take_the_formula(experts_, k, groups, monkeypatch):
    monkeypatch.setattr(topk.SigmoidTopkFunction, "apply", lambda *_: pytest.fail("the kernels were asked"))
    case = RouterCase("", experts_, k, groups, groups - 1 or None)
    assert_right(case, *case.inputs((2,), torch.float32, DEVICE), "triton")


@pytest.mark.kernels
def test_the_longest_rows(device, monkeypatch):
    monkeypatch.setattr(topk, "_formula", lambda *_: pytest.fail("the formula was asked"))
    case = RouterCase("", 1024, 32, 8, 5)
    assert_right(case, *case.inputs((2,), torch.float32, device), "triton")


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_each_logit_is_read_once_and_each_gradient_written_once(dtype, device):
    """Allows for the logits of chosen experts, which backward reads again."""
    gpu, size, k = engine_that_counts(), dtype.itemsize, 4
    logits = torch.randn(16, 256, dtype=dtype, device=device, requires_grad=True)
    with sigtorch.use_backend("triton"):
        loads, stores = gpu.loads, gpu.stores
        weights, _ = sigtorch.sigmoid_topk(logits, k)
        assert (gpu.loads - loads, gpu.stores - stores) == (16 * (256 + k) * size, 16 * k * (4 + 8))
        weights.backward(torch.ones_like(weights))
    assert gpu.stores - stores == 16 * k * (4 + 8) + 16 * 256 * size
    assert gpu.loads - loads == 16 * (256 + k) * size + 16 * k * (4 + 8 + size)


X = torch.zeros(2, 12, device=DEVICE)
MISTAKES = {
    "k, 0": (lambda: sigtorch.sigmoid_topk(X, 0), "k=0 must be from 1 to 12"),
    "k, large": (lambda: sigtorch.sigmoid_topk(X, 13), "k=13 must be from 1 to 12"),
    "k, of groups": (
        lambda: sigtorch.sigmoid_topk(X, 7, num_groups=4, topk_groups=2), "k=7 must be from 1 to 6",
    ),
    "k, no number": (lambda: sigtorch.sigmoid_topk(X, 1.5), "k must be a whole number"),
    "groups, uneven": (lambda: sigtorch.sigmoid_topk(X, 2, num_groups=5, topk_groups=1), "num_groups=5 must divide"),
    "groups, 0": (lambda: sigtorch.sigmoid_topk(X, 2, num_groups=0), "num_groups=0 must divide"),
    "groups, all": (lambda: sigtorch.sigmoid_topk(X, 2, num_groups=4), "num_groups=4 needs topk_groups"),
    "groups, too many": (
        lambda: sigtorch.sigmoid_topk(X, 2, num_groups=4, topk_groups=5), "topk_groups=5 must be from 1 to num_groups=4",
    ),
    "groups, of one": (lambda: sigtorch.sigmoid_topk(X, 2, topk_groups=2), "topk_groups=2 must be from 1"),
    "bias, length": (lambda: sigtorch.sigmoid_topk(X, 2, X[0, :3]), r"correction_bias must have shape \(12,\)"),
    "bias, rows": (lambda: sigtorch.sigmoid_topk(X, 2, X), r"correction_bias must have shape \(12,\)"),
    "bias, dtype": (lambda: sigtorch.sigmoid_topk(X, 2, X[0].long()), "correction_bias must be floating"),
    "bias, device": (lambda: sigtorch.sigmoid_topk(X, 2, X[0].to("meta")), "tensors on several devices"),
    "scalar": (lambda: sigtorch.sigmoid_topk(X[0, 0], 1), "logits must have a dimension of experts"),
    "logits, dtype": (lambda: sigtorch.sigmoid_topk(X.long(), 1), "logits must be floating"),
    "logits, list": (lambda: sigtorch.sigmoid_topk([0.0], 1), "logits must be a Tensor, got list"),
    "scale": (lambda: sigtorch.sigmoid_topk(X, 1, scale="2"), "scale must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, backend):
    call, message = MISTAKES[name]
    with sigtorch.use_backend(backend), pytest.raises((TypeError, ValueError), match=message) as seen:
        call()
    assert "\n" not in str(seen.value)
    assert str(seen.value).startswith("sigmoid_topk(): ")


def test_names_of_options():
    _, *options = inspect.signature(sigtorch.sigmoid_topk).parameters
    assert options == ["k", "correction_bias", "num_groups", "topk_groups", "normalize", "scale"]
