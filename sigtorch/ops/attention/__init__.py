"""Attention whose weights are sigmoids of the scores: functions, checks, formula, autograd Function, operators and module."""

from sigtorch.ops.attention.functions import sigmoid_attention, sigmoid_attention_varlen
from sigtorch.ops.attention.module import SigmoidAttention

__all__ = ["SigmoidAttention", "sigmoid_attention", "sigmoid_attention_varlen"]
