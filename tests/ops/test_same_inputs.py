"""Processes that share labels compare their inputs: replicas may differ in last bits, and nothing else passes."""

import pytest
import torch
from support.cases import HALF

from sigtorch.ops.chunked_losses import products, shares

N, D, SEEDS = 128, 64, 50
DTYPES = [*HALF, torch.float32, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def is_other(mine, first, dtype=None):
    tolerance = shares.tolerance_of(mine.dtype, dtype or mine.dtype)
    return shares.is_other(shares.fingerprints(mine), shares.fingerprints(first), tolerance)


def noise(x):
    return torch.randn_like(x)


def shuffled(x):
    return x[torch.randperm(N)]


def swapped(x):
    """Two samples that are far apart, or next to one another."""
    x, (i, j) = x.clone(), torch.randperm(N)[:2].tolist()
    x[[i, j]] = x[[j, i]]
    return x


def one_replaced(x):
    x = x.clone()
    x[torch.randint(N, ())] = torch.randn(D)
    return x


def dropped(x):
    return torch.nn.functional.dropout(x, 0.1)


def another_sign(x):
    x = x.clone()
    x[torch.randint(N, ())] *= -1
    return x


@every_dtype
@pytest.mark.parametrize("change", [noise, shuffled, swapped, one_replaced, dropped, another_sign])
def test_other_inputs_are_never_missed(change, dtype):
    missed = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        first = torch.randn(N, D)
        mine = change(torch.nn.functional.dropout(first, 0.1) if change is dropped else first)
        if not is_other(mine.to(dtype), first.to(dtype)).any():
            missed.append(seed)
    assert not missed


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("change", [shuffled, dropped])
def test_a_mean_hides_nothing(change, dtype):
    """Finds other samples beside a mean of 100 standard deviations; in bfloat16 one of these is two last bits."""
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        first = torch.randn(N, D) + 100
        assert is_other(change(first).to(dtype), first.to(dtype)).any(), seed


@every_dtype
@pytest.mark.parametrize("features", [1, 2, 5, 700])
def test_last_bits_pass(features, dtype):
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        first = (torch.randn(64, features, dtype=torch.float64) + seed % 3).to(dtype)
        mine = first * (1 + torch.finfo(dtype).eps * torch.randint(-2, 3, first.shape))
        assert not is_other(mine.to(dtype), first).any(), seed


def test_the_coarser_dtype_decides():
    """Inputs of bfloat16 beside a float32 weight differ in their own last bits; under autocast, so may float32's."""
    first = torch.randn(8, 16)
    mine = first * (1 + torch.finfo(torch.bfloat16).eps * torch.randint(-1, 2, first.shape))
    assert is_other(mine, first).any()
    assert not is_other(mine, first, torch.bfloat16).any()
    assert not is_other(mine.bfloat16(), first.bfloat16(), torch.float32).any()


@every_dtype
def test_what_is_no_number(dtype):
    first = torch.randn(8, 16).to(dtype)
    first[0], first[1, 2], first[2, 3] = torch.nan, torch.inf, -torch.inf
    first[3] = 0
    assert not is_other(first, first.clone()).any()
    for row, value in ((0, 1.0), (1, 1.0), (3, 1.0), (3, torch.nan), (4, 0.0)):
        mine = first.clone()
        mine[row] = value
        assert is_other(mine, first).tolist() == [other == row for other in range(8)]
        assert is_other(first, mine).tolist() == [other == row for other in range(8)]


def test_large_numbers_of_a_half_type_do_not_overflow():
    first = torch.full((4, 1000), 6e4, dtype=torch.float16)
    assert not is_other(first, first.clone()).any()
    assert is_other(-first, first).all()


def test_a_part_at_a_time_finds_the_same(monkeypatch):
    x = torch.randn(37, 5)
    whole = shares.fingerprints(x)
    monkeypatch.setattr(products, "WIDE_ELEMENTS", {"cpu": 16})
    assert torch.allclose(shares.fingerprints(x), whole, rtol=1e-14, atol=1e-14)
    assert shares.fingerprints(x[:, :0]).shape == (37, shares.SUMS + 1)
