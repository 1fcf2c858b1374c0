"""The most memory that losses over a product that is never whole take, beside eager code's, in bytes that PyTorch allocates."""

import pytest
import torch
import torch.nn.functional as F
from _measure import peak_extra_bytes
from support.chunked_cases import siglip_oracle

import sigtorch
from sigtorch import linear_binary_cross_entropy, siglip_loss

LEAST = 2**19  # bytes that a step may take, whatever eager code does
LARGE = 150 * 2**20  # what eager code takes where a chunk is small beside it
FEW = 5  # positives of a sample


def linear(n, labels, d, dtype, share=None, csr=False):
    """Tensors, eager code that is given its targets as floats, and ours."""
    x, weight = torch.randn(n, d).to(dtype), torch.randn(labels, d).to(dtype)
    hits = torch.rand(n, labels) < (min(0.5, FEW / labels) if share is None else share)
    soft, targets = hits.to(dtype), hits
    if csr:
        targets = F.pad(hits.sum(1).cumsum(0), (1, 0)), hits.nonzero()[:, 1].contiguous()
    return (
        [x, weight, torch.zeros(labels, dtype=dtype)],
        lambda x, w, b: F.binary_cross_entropy_with_logits(F.linear(x, w, b), soft),
        lambda x, w, b: linear_binary_cross_entropy(x, w, targets, linear_bias=b),
    )


def siglip(n, d, dtype):
    features = [torch.randn(n, d).to(dtype) for _ in range(2)]
    return [*features, torch.tensor(2.0).to(dtype), torch.tensor(-1.0).to(dtype)], siglip_oracle, siglip_loss


def peaks(loss, tensors):
    """Peaks of loss and gradients, beyond the latter, and of the loss alone."""
    leaves = [t.requires_grad_() for t in tensors]

    def step():
        for t in leaves:
            t.grad = None
        loss(*leaves).backward()

    def forward():
        with torch.no_grad():
            loss(*leaves)

    device = tensors[0].device
    both = peak_extra_bytes(step, device) - sum(t.numel() * t.element_size() for t in leaves)
    return both, peak_extra_bytes(forward, device)


def check(tensors, eager, ours):
    for theirs, mine in zip(peaks(eager, tensors), peaks(ours, tensors)):
        assert mine <= max(theirs, LEAST), f"{mine:,} bytes, eager {theirs:,}"
        assert theirs < LARGE or mine <= 0.03 * theirs, f"{mine:,} bytes, eager {theirs:,}"


WIDE = [torch.float32, torch.float64]
LAYERS = [(n, labels, d) for n in (1, 4, 16, 64, 256, 1024, 4096) for labels, d in ((1, 8), (300, 1024), (3000, 16))]
LAYERS += [(1, 40_000, 256), (4, 50_000, 512), (16, 50_000, 64), (256, 30_000, 4), (4096, 3000, 8), (4, 1, 40_000)]


@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("n", "labels", "d"), LAYERS)
def test_a_layers_loss_takes_no_more_than_eager_code(n, labels, d, dtype, csr):
    if n * labels > 2**20 and dtype == torch.float64:
        pytest.skip("as float32 does")
    check(*linear(n, labels, d, dtype, csr=csr))


PAIRS = [(n, d) for n in (1, 4, 64, 256, 1024, 4096) for d in (1, 64)] + [
    (64, 1024),
    (1024, 1024),
    (2, 100_000),
    (3000, 16),
]


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("n", "d"), PAIRS)
def test_siglip_takes_no_more_than_eager_code(n, d, dtype):
    if n * n * 24 > 2**28 and dtype == torch.float64:
        pytest.skip("as float32 does")
    check(*siglip(n, d, dtype))


@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize(("n", "labels"), [(4, 1000), (64, 1000), (16, 50_000), (64, 50_000), (1024, 1000)])
def test_positives_may_be_many(n, labels, share, csr):
    tensors, eager, ours = linear(n, labels, 16, torch.float32, share=share, csr=csr)
    for theirs, mine in zip(peaks(eager, tensors), peaks(ours, tensors)):
        assert mine <= max(theirs, LEAST), f"{mine:,} bytes, eager {theirs:,}"


@pytest.mark.parametrize("weights", [torch.tensor(2.0), torch.rand(50_000)])
def test_weights_of_positives_take_little(weights):
    (x, weight, bias), *_ = linear(64, 50_000, 16, torch.float32)
    hits = torch.rand(64, 50_000) < 0.2
    mine = peaks(
        lambda x, w, b: linear_binary_cross_entropy(x, w, hits, linear_bias=b, pos_weight=weights), [x, weight, bias]
    )
    theirs = peaks(
        lambda *given: F.binary_cross_entropy_with_logits(F.linear(*given), hits.float(), pos_weight=weights),
        [x, weight, bias],
    )
    assert all(m < t for m, t in zip(mine, theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "labels", "d"), [(4, 20_000, 256), (64, 1000, 512), (1000, 64, 512), (4, 8, 40_000), (4, 200_000, 64)]
)
def test_half_types_copy_no_more_than_a_chunk(n, labels, d, dtype):
    """On a CPU they are added up in float32: copies of a chunk's features, the sum of the samples' gradient, and units."""
    tensors, _, ours = linear(n, labels, d, dtype)
    both, alone = peaks(ours, tensors)
    units = (n + labels) * 4  # of float16
    assert both < n * d * 4 + units + 4 * 2**20
    assert alone < 4 * 2**20


@pytest.mark.kernels
@pytest.mark.parametrize(("n", "labels", "d"), [(1, 30_000, 16), (64, 500, 64), (500, 64, 64)])
def test_kernels_take_no_more_than_eager_code(n, labels, d):
    tensors, eager, ours = linear(n, labels, d, torch.float32)
    for theirs, mine in zip(peaks(eager, tensors), peaks(running_kernels(ours), tensors)):
        assert mine <= max(theirs, LEAST), f"{mine:,} bytes, eager {theirs:,}"


def running_kernels(loss):
    def call(*given):
        with sigtorch.use_backend("triton"):
            return loss(*given)

    return call
