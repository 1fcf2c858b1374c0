"""sigtorch: sigmoid-family training operations for PyTorch, fused in Triton."""

from sigtorch import nn
from sigtorch._backend import backend_of, use_backend
from sigtorch.functional import sigmoid

__all__ = ["backend_of", "nn", "sigmoid", "use_backend"]
__version__ = "0.1.0"
