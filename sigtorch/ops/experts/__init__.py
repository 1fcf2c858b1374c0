"""The router of a mixture of experts: the function that chooses experts, and the module."""

from sigtorch.ops.experts.router import SigmoidRouter
from sigtorch.ops.experts.topk import sigmoid_topk

__all__ = ["SigmoidRouter", "sigmoid_topk"]
