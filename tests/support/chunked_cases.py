"""Shared by the tests of losses in chunks: one row a loss and kind of target, oracles in float64, and the check."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import sigtorch
from sigtorch import linear_binary_cross_entropy, siglip_loss

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of a loss, and of gradients relative to the largest: half types round once, float32 sums up.
RTOL = {torch.float16: 6e-4, torch.bfloat16: 4e-3, torch.float32: 2e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class Case:
    """A loss of differentiable tensors, which ``tensors(n, d)`` makes in float64; n is what chunks divide."""

    name: str
    tensors: Callable
    ours: Callable  # of the tensors, and chunk_size
    oracle: Callable

    def make(self, n, d=6, dtype=torch.float64, device="cpu"):
        return [t.to(device, dtype).requires_grad_() for t in self.tensors(n, d)]


def siglip_oracle(image, text, scale, bias=0.0):
    """The formula as the paper has it."""
    z = image @ text.T * scale + bias
    sign = 2 * torch.eye(len(z), dtype=z.dtype, device=z.device) - 1
    return -F.logsigmoid(sign * z).sum() / len(z)


def features(n, d):
    return [F.normalize(torch.randn(n, d, dtype=torch.float64), dim=-1) for _ in range(2)]


def number(value, shape=()):
    return torch.full(shape, value, dtype=torch.float64)


SIGLIP = Case("siglip", lambda n, d: [*features(n, d), number(6.0), number(-3.0)], siglip_loss, siglip_oracle)
CASES = [
    SIGLIP,
    Case("siglip-no-bias", lambda n, d: [*features(n, d), number(-2.5, (1,))], siglip_loss, siglip_oracle),
    Case(
        "siglip-far",
        lambda n, d: [*features(n, d), number(90.0, (1,)), number(20.0, (1, 1))],
        siglip_loss,
        siglip_oracle,
    ),
]
SAMPLES = 5


def positives(labels, samples=SAMPLES):
    """About a third of all pairs, but for the label 2 and the sample 1, which have none."""
    sample, label = torch.arange(samples)[:, None], torch.arange(labels)
    return ((sample + 2 * label) % 3 == 0) & (label != 2) & (sample != 1)


def csr(dense):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch speaks of its sparse tensors' state
        return dense.float().to_sparse_csr()


def indices(dense):
    return csr(dense).crow_indices().int(), csr(dense).col_indices().int()


def linear_oracle(input, weight, bias=None, reduction="mean", pos_weight=None):
    z = F.linear(input, weight, bias)
    targets = positives(len(weight)).to(z)
    return F.binary_cross_entropy_with_logits(z, targets, reduction=reduction, pos_weight=pos_weight)


def linear(kind):
    """The loss with targets of a kind, which are made where nothing watches, the first time."""
    made = {}

    def loss(input, weight, bias=None, **options):
        key = len(weight), input.device
        if key not in made:
            made[key] = on(input, kind(positives(len(weight))))
        return linear_binary_cross_entropy(input, weight, made[key], linear_bias=bias, **options)

    return loss


def on(like, targets):
    return tuple(t.to(like.device) for t in targets) if isinstance(targets, tuple) else targets.to(like.device)


def label_weights(labels, like):
    return (1 + torch.arange(labels) % 3).to(like.device, like.dtype)


def weighted(function):
    """Summed, with weights of the positives."""

    def loss(input, weight, bias, **options):
        pos_weight = label_weights(len(weight), weight)
        return function(input, weight, bias, reduction="sum", pos_weight=pos_weight, **options)

    return loss


def layer(n, d):
    return [torch.randn(SAMPLES, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)]


CASES += [
    Case("linear-csr", layer, linear(csr), linear_oracle),
    Case(
        "linear-dense", lambda n, d: [*layer(n, d), torch.randn(n).double()], linear(lambda dense: dense), linear_oracle
    ),
    Case(
        "linear-indices",
        lambda n, d: [*layer(n, d), torch.randn(n).double()],
        weighted(linear(indices)),
        weighted(linear_oracle),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
# PyTorch's transforms and traces know no sparse tensors.
every_traced_case = pytest.mark.parametrize("case", [c for c in CASES if c.name != "linear-csr"], ids=lambda c: c.name)
every_backend = pytest.mark.parametrize("backend", ["auto", "aten", pytest.param("triton", marks=pytest.mark.kernels)])
chunked = pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.kernels)])


def expected_of(case, tensors, incoming=1.0):
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    value = case.oracle(*exact)
    wanted = [t for t in exact if t.requires_grad]
    return value.detach(), torch.autograd.grad(value * incoming, wanted) if wanted else ()


def close(actual, expected, dtype=None):
    """Compares to the rounding of the actual dtype and of float32 sums, relative to a tensor's largest element."""
    rtol = RTOL[dtype or actual.dtype]
    if actual.is_cuda and dtype == torch.bfloat16:
        rtol *= 4  # it multiplies the logits' gradients as such, which then may cancel
    assert_close(actual.double(), expected, rtol=rtol, atol=rtol * max(expected.abs().max().item(), 1e-3))


def check(case, tensors, backend="auto", incoming=1.0, **options):
    value, grads = expected_of(case, tensors, incoming)
    with sigtorch.use_backend(backend):
        actual = case.ours(*tensors, **options)
        wanted = [t for t in tensors if t.requires_grad]
        found = torch.autograd.grad(actual * incoming, wanted) if wanted else ()
    close(actual.detach(), value)
    for mine, theirs, given in zip(found, grads, wanted):
        assert (mine.shape, mine.dtype, mine.device) == (given.shape, given.dtype, given.device)
        close(mine, theirs, max(mine.dtype, tensors[0].dtype, key=lambda d: RTOL[d]))
    return actual, found
