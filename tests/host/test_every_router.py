"""Compiles and launches the router in every dtype and with every setting: one launch a pass."""

import pytest
import torch
from support.cases import DTYPES
from support.launching import by_release, for_a_stand_in, launches
from support.router_cases import CASES, RouterCase

pytestmark = for_a_stand_in
ALL = [*CASES, RouterCase("longest", 1024, 32, 8, 4)]


@pytest.mark.parametrize(
    ("dtype", "case"), by_release(DTYPES, ALL, (torch.float32, ALL[0])), ids=lambda v: getattr(v, "name", str(v))
)
def test_dtypes(dtype, case):
    logits, bias = case.inputs((40,), dtype)
    assert launches(lambda x: case.ours(x, bias)[0], logits) == (1, 1)


def test_no_rows():
    case = CASES[0]
    logits, bias = case.inputs((0,), torch.float32)
    assert launches(lambda x: case.ours(x, bias)[0], logits) == (0, 0)
