"""The losses, a family in a folder: functions, formulas, modules, and what a user is told."""

from sigtorch.ops.losses.functions import binary_cross_entropy_with_logits, sigmoid_focal_loss
from sigtorch.ops.losses.modules import BCEWithLogitsLoss, SigmoidFocalLoss

__all__ = ["BCEWithLogitsLoss", "SigmoidFocalLoss", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"]
