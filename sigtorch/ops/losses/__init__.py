"""The losses: a file for each, with its formula, kernels, function and module."""

from sigtorch.ops.losses.bce import BCEWithLogitsLoss, binary_cross_entropy_with_logits
from sigtorch.ops.losses.focal import SigmoidFocalLoss, sigmoid_focal_loss

__all__ = ["BCEWithLogitsLoss", "SigmoidFocalLoss", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"]
