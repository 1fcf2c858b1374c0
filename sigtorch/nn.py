"""The modules of every family: they store arguments and call the functions."""

from sigtorch.ops.chunked_losses import LinearBCE, SigLIPLoss
from sigtorch.ops.gates import GLU, GatedMLP, SigmoidGate, SigmoidLerp, SwiGLU
from sigtorch.ops.losses import BCEWithLogitsLoss, SigmoidFocalLoss
from sigtorch.ops.sigmoid import Sigmoid

__all__ = [
    "GLU",
    "BCEWithLogitsLoss",
    "GatedMLP",
    "LinearBCE",
    "SigLIPLoss",
    "Sigmoid",
    "SigmoidFocalLoss",
    "SigmoidGate",
    "SigmoidLerp",
    "SwiGLU",
]
