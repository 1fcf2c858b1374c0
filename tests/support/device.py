"""The device of the tests' tensors, and the PyTorch release."""

import warnings

import numpy
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a driver that is too old speaks of itself
    DEVICE = "cuda" if torch.cuda.is_available() and torch.version.hip is None else "cpu"
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))  # of the older ones DTensor, export and Dynamo know less


def vast(elements):
    """Zeros in bfloat16, of which a CPU's take no memory before they are written: torch.zeros writes them."""
    if DEVICE == "cuda":
        return torch.zeros(elements, dtype=torch.bfloat16, device=DEVICE)
    return torch.from_numpy(numpy.zeros(elements, numpy.int16)).view(torch.bfloat16)
