"""sigtorch: sigmoid-family training operations for PyTorch, fused in Triton."""

from sigtorch import nn
from sigtorch._backend import backend_of, use_backend
from sigtorch.ops.attention import sigmoid_attention, sigmoid_attention_varlen
from sigtorch.ops.chunked_losses import linear_binary_cross_entropy, siglip_loss
from sigtorch.ops.experts import sigmoid_topk
from sigtorch.ops.gates import glu, sigmoid_gate, sigmoid_lerp, swiglu, swiglu_linear
from sigtorch.ops.losses import (
    asymmetric_loss,
    binary_cross_entropy_with_logits,
    quality_focal_loss,
    sigmoid_dice_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from sigtorch.ops.sigmoid import sigmoid
from sigtorch.plugin.functions import patched_functions
from sigtorch.plugin.patch import Patch, patch

__all__ = [
    "Patch",
    "asymmetric_loss",
    "backend_of",
    "binary_cross_entropy_with_logits",
    "glu",
    "linear_binary_cross_entropy",
    "nn",
    "patch",
    "patched_functions",
    "quality_focal_loss",
    "siglip_loss",
    "sigmoid",
    "sigmoid_attention",
    "sigmoid_attention_varlen",
    "sigmoid_dice_loss",
    "sigmoid_focal_loss",
    "sigmoid_gate",
    "sigmoid_lerp",
    "sigmoid_topk",
    "swiglu",
    "swiglu_linear",
    "use_backend",
    "varifocal_loss",
]
__version__ = "0.1.0"
