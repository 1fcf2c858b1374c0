"""The modules of every family: they store arguments and call the functions."""

from sigtorch.ops.attention import SigmoidAttention
from sigtorch.ops.chunked_losses import LinearBCE, SigLIPLoss
from sigtorch.ops.experts import SigmoidRouter
from sigtorch.ops.gates import GLU, GatedMLP, SigmoidGate, SigmoidLerp, SwiGLU
from sigtorch.ops.losses import (
    AsymmetricLoss,
    BCEWithLogitsLoss,
    QualityFocalLoss,
    SigmoidDiceLoss,
    SigmoidFocalLoss,
    VarifocalLoss,
)
from sigtorch.ops.sigmoid import Sigmoid

__all__ = [
    "GLU",
    "AsymmetricLoss",
    "BCEWithLogitsLoss",
    "GatedMLP",
    "LinearBCE",
    "QualityFocalLoss",
    "SigLIPLoss",
    "Sigmoid",
    "SigmoidAttention",
    "SigmoidDiceLoss",
    "SigmoidFocalLoss",
    "SigmoidGate",
    "SigmoidLerp",
    "SigmoidRouter",
    "SwiGLU",
    "VarifocalLoss",
]
