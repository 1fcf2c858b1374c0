"""Precision of the losses over a product: gradients are rounded to the dtype of their inputs, as seldom as can be."""

import pytest
import torch
from support.chunked_cases import CASES, check, every_case
from torch.testing import assert_close


@every_case
def test_autocast_leaves_float64_alone(case, device):
    with torch.autocast(device, torch.bfloat16):
        loss, _ = check(case, case.make(4, device=device))
    assert loss.dtype == torch.float64


@pytest.mark.parametrize(("scale", "error"), [(1.0, 2.0**-11), (2.0**12, 2.0**-11), (3000.0, 2.0**-10)])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("siglip-no-bias", "linear-csr")], ids=lambda c: c.name)
def test_a_loss_scale_reaches_gradients_below_what_float16_holds(case, scale, error, device):
    u, v, *numbers = case.tensors(6, 8)
    leaves = [(t * 1e-4).to(device, torch.float16).requires_grad_() for t in (u, v)]
    numbers = [t.to(device, torch.float16) * 1e-3 for t in numbers]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = torch.autograd.grad(case.oracle(*exact, *[t.double() for t in numbers]) * scale, exact)
    found = torch.autograd.grad(case.ours(*leaves, *numbers).float() * scale, leaves)
    for mine, theirs in zip(found, expected):
        assert_close(mine.double(), theirs, rtol=error, atol=2.0**-25)  # half of what is between two of the smallest
