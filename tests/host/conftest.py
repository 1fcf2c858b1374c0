"""The driver that does nothing, for all tests here that launch."""

import warnings

import pytest
import triton
from support.device import DEVICE
from without_gpu import standin


@pytest.fixture(scope="package", autouse=True)
def driver():
    if triton.knobs.runtime.interpret or DEVICE == "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA initialization")  # PyTorch sees the stand-in, too
        standin.install(90)
        yield
