"""Compiles and launches the losses in chunks, and counts what a chunk launches beside its products."""

import itertools
from collections import Counter

import pytest
import torch
from support.chunked_cases import indices
from support.launching import for_a_stand_in
from torch.utils._python_dispatch import TorchDispatchMode
from without_gpu import standin

import sigtorch
from sigtorch.ops.chunked_losses import linear, siglip

pytestmark = for_a_stand_in
PRODUCTS = {"mm", "addmm", "addmm_"}
# What launches nothing: views and allocations.
FREE = {"view", "_unsafe_view", "t", "slice", "select", "expand", "detach", "alias", "empty", "new_empty", "empty_like"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}


class Launches(TorchDispatchMode):
    """Counts PyTorch's operators, each as a launch."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


def counted(monkeypatch, loss, backend="triton"):
    """Returns the operators of a loss' forward, without its checks, and the launches of kernels."""
    modes = []

    def watched(original):
        def call(*given):
            modes.append(Launches())
            with modes[-1]:
                return original(*given)

        return call

    with monkeypatch.context() as patched, sigtorch.use_backend(backend):
        for module in (linear, siglip):
            patched.setattr(module, "_in_chunks", watched(module._in_chunks))
        before = standin.launches()
        loss()
    return sum((mode.seen for mode in modes), Counter()), standin.launches() - before


def leaf(*shape, dtype):
    return torch.randn(shape).to(dtype).requires_grad_()


def loss_of(kind, chunks, dtype, **options):
    """A loss of so many chunks."""
    if kind == "siglip":
        u, v = leaf(4 * chunks, 8, dtype=dtype), leaf(4 * chunks, 8, dtype=dtype)
        scale, bias = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
        return lambda: sigtorch.siglip_loss(u, v, scale, bias, chunk_size=4)
    hits = torch.rand(24, 4 * chunks) < 0.1
    hits[0, 0] = True
    x, weight, bias = (leaf(*shape, dtype=dtype) for shape in ((24, 8), (4 * chunks, 8), (4 * chunks,)))
    target = hits if kind == "matrix" else indices(hits)
    return lambda: sigtorch.linear_binary_cross_entropy(x, weight, target, linear_bias=bias, chunk_size=4, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["siglip", "list", "matrix"])
def test_a_chunk_launches_little_beside_its_products(kind, dtype, monkeypatch):
    """Eight at most; and what is launched once a call does not grow with chunks."""
    (few, kernels), (many, more) = (counted(monkeypatch, loss_of(kind, n, dtype)) for n in (6, 16))
    chunks = 10
    grown = {name: n - few[name] for name, n in many.items() if n > few[name]}
    assert sum(grown.pop(name, 0) for name in PRODUCTS) == 3 * chunks
    beside = {name: n / chunks for name, n in grown.items() if name not in FREE}
    assert sum(beside.values()) + (more - kernels) / chunks <= 8, beside
    assert more - kernels == (2 if dtype == torch.float16 else 1) * chunks
    assert sum(many[name] for name in WAITS) == (kind == "list"), many


@pytest.mark.parametrize("many", [False, True])
def test_a_sparse_target_is_looked_at_once(many, monkeypatch):
    monkeypatch.setattr(linear, "FEW", 1 if many else 10**6)
    monkeypatch.setattr(linear, "DENSE_FROM", 10**6 if many else 1)
    seen, _ = counted(monkeypatch, loss_of("list", 6, torch.float32))
    assert seen["count_nonzero"] == many
    assert sum(seen[name] for name in WAITS) == 1, seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [40, 132, 131])  # short rows, whole vectors, and none
def test_every_option_compiles(samples, dtype):
    hits = torch.rand(samples, 20) < 0.2
    x, weight = leaf(samples, 8, dtype=dtype), leaf(20, 8, dtype=dtype)
    for given in ({}, {"linear_bias": leaf(20, dtype=dtype), "pos_weight": torch.rand(20)}):
        for target, grad in itertools.product((hits, indices(hits)), (False, True)):
            before = standin.launches()
            with sigtorch.use_backend("triton"), torch.set_grad_enabled(grad):
                sigtorch.linear_binary_cross_entropy(x, weight, target, **given)
            assert standin.launches() > before
    u, v, scale = leaf(samples, 8, dtype=dtype), leaf(samples, 8, dtype=dtype), torch.ones((), requires_grad=True)
    for bias, frozen in itertools.product((None, torch.zeros(())), (False, True)):
        with sigtorch.use_backend("triton"):
            sigtorch.siglip_loss(u.detach() if frozen else u, v.detach() if frozen else v, scale, bias)
