"""The loss of a chunk of logits and its gradients in place, by kernels and by PyTorch's operators."""

import importlib

import pytest
import torch
from torch.testing import assert_close

from sigtorch.kernels import _reduce

every_step = pytest.mark.parametrize("step", ["cpu", pytest.param("kernels", marks=pytest.mark.kernels)])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
RTOL = {torch.bfloat16: 4e-3, torch.float32: 2e-6, torch.float64: 1e-13}
SHAPES = [(1, 2), (1, 4097), (5, 3), (33, 7), (6, 64), (3, 1000), (17, 2048), (1, 1), (33, 1), (2100, 1)]
NONE = torch.empty(0, dtype=torch.int64)


def module(step):
    return importlib.import_module(f"sigtorch.{step}.chunked_losses")


def oracle(logits, scale, bias, at):
    z = logits.double() * (1 if scale is None else scale.double()) + (0 if bias is None else bias.double())
    z = z.contiguous()
    z.view(-1)[at] = -torch.inf
    return z.clamp_min(0) + torch.log1p(torch.exp(-z.abs())), torch.sigmoid(z)


def numbers(shape, dtype, device):
    logits = (torch.randn(shape) * 3).to(device, dtype)
    scale = torch.tensor(-1.75, device=device, dtype=dtype)
    every_third = torch.arange(0, logits.numel(), 3, device=device)
    column = torch.randn(shape[0], 1).to(device, dtype)
    bias = torch.tensor(-2.5, device=device, dtype=dtype)
    for given in ((scale, bias, every_third), (None, None, NONE.to(device)), (scale, column, every_third[:1])):
        yield logits, *given


@every_step
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient(step, dtype, shape, device):
    for logits, scale, bias, at in numbers(shape, dtype, device):
        losses, slopes = oracle(logits, scale, bias, at)
        rtol = RTOL[dtype]
        total = module(step).negatives(logits.clone(), scale, bias, at)
        assert_close(total.double(), losses.sum(), rtol=rtol, atol=0)
        given = logits.clone()
        total, grad = module(step).negatives_with_gradient(given, scale, bias, at, dtype)
        assert grad.data_ptr() == given.data_ptr()
        assert_close(total.double(), losses.sum(), rtol=rtol, atol=0)
        assert_close(grad.double(), slopes, rtol=8 * rtol, atol=0)
        if dtype == torch.float64:  # never beside bfloat16
            continue
        total, grad = module(step).negatives_with_gradient(logits.clone(), scale, bias, at, torch.bfloat16)
        assert grad.dtype == torch.bfloat16
        assert_close(grad.double(), slopes, rtol=RTOL[torch.bfloat16], atol=0)


@every_step
@every_dtype
def test_every_element_is_right_relative_to_itself(step, dtype, device):
    """From logits whose loss is almost 0 to those whose loss is the logit; a sum of one element shows each of them."""
    z = torch.linspace(-80, 80, 23, dtype=torch.float64).to(device, dtype)
    z = torch.cat([z, torch.tensor([0.0, 700.0, -torch.inf, torch.inf], dtype=dtype, device=device)])
    losses, slopes = oracle(z.view(-1, 1), None, None, NONE)
    for x, loss, slope in zip(z, losses, slopes):
        pair = torch.stack([x, x.new_tensor(-torch.inf)]).view(1, 2)
        assert_close(
            module(step).negatives(pair.clone(), None, None, NONE.to(device)).double(), loss[0], rtol=4e-6, atol=0
        )
        total, grad = module(step).negatives_with_gradient(pair, None, None, NONE.to(device), dtype)
        assert_close(total.double(), loss[0], rtol=4e-6, atol=0)
        assert_close(grad[0, 0].double(), slope[0], rtol=4e-6, atol=0)
        assert grad[0, 1] == 0
    nan = torch.full((1, 2), torch.nan, dtype=dtype, device=device)
    total, grad = module(step).negatives_with_gradient(nan, None, None, NONE.to(device), dtype)
    assert total.isnan()
    assert grad.isnan().all()


@pytest.mark.kernels
@pytest.mark.parametrize("programs", [1, 3])
def test_few_programs_add_many_tiles(programs, device, plans, monkeypatch):
    monkeypatch.setattr(_reduce, "LOSS_PROGRAMS", programs)
    monkeypatch.setattr(_reduce, "GATE_PROGRAMS", programs)
    test_loss_and_gradient("kernels", torch.float32, (7, 4104), device)
