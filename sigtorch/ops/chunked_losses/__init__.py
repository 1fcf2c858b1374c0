"""Losses over a product of two matrices that is never whole: chunks of it, and gradients computed in forward."""

from sigtorch.ops.chunked_losses.linear import LinearBCE, linear_binary_cross_entropy
from sigtorch.ops.chunked_losses.siglip import SigLIPLoss, siglip_loss

__all__ = ["LinearBCE", "SigLIPLoss", "linear_binary_cross_entropy", "siglip_loss"]
