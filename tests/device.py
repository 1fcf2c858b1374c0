"""Where tests put their tensors."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a driver that is too old speaks of itself
    DEVICE = "cuda" if torch.cuda.is_available() and torch.version.hip is None else "cpu"
