"""The gates: a file for those of a sigmoid and one for SwiGLU, each with formulas, autograd Functions and modules."""

from sigtorch.ops.gates.linear import GatedMLP, swiglu_linear
from sigtorch.ops.gates.sigmoid import (
    GLU,
    GLUFunction,
    SigmoidGate,
    SigmoidGateFunction,
    SigmoidGateResidualFunction,
    SigmoidLerp,
    SigmoidLerpFunction,
    glu,
    sigmoid_gate,
    sigmoid_lerp,
)
from sigtorch.ops.gates.silu import (
    SwiGLU,
    SwiGLUFunction,
    SwiGLUPackedFunction,
    SwiGLUPackedVariantFunction,
    SwiGLUPackedWeightedFunction,
    SwiGLUVariantFunction,
    SwiGLUWeightedFunction,
    swiglu,
)

__all__ = [
    "GLU",
    "GLUFunction",
    "GatedMLP",
    "SigmoidGate",
    "SigmoidGateFunction",
    "SigmoidGateResidualFunction",
    "SigmoidLerp",
    "SigmoidLerpFunction",
    "SwiGLU",
    "SwiGLUFunction",
    "SwiGLUPackedFunction",
    "SwiGLUPackedVariantFunction",
    "SwiGLUPackedWeightedFunction",
    "SwiGLUVariantFunction",
    "SwiGLUWeightedFunction",
    "glu",
    "sigmoid_gate",
    "sigmoid_lerp",
    "swiglu",
    "swiglu_linear",
]
