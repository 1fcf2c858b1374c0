"""sigtorch: sigmoid-family training operations for PyTorch, fused in Triton."""

from sigtorch import nn
from sigtorch._backend import backend_of, use_backend
from sigtorch.functional import glu, sigmoid, sigmoid_gate, sigmoid_lerp, swiglu

__all__ = ["backend_of", "glu", "nn", "sigmoid", "sigmoid_gate", "sigmoid_lerp", "swiglu", "use_backend"]
__version__ = "0.1.0"
