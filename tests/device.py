"""Where tests put their tensors, and what PyTorch can do there."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a driver that is too old speaks of itself
    DEVICE = "cuda" if torch.cuda.is_available() and torch.version.hip is None else "cpu"
TORCH_2_8 = torch.__version__.startswith("2.8.")  # where DTensor, export and Dynamo know less
