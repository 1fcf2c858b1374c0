"""The losses: a file for each, with its formula, kernels, function and module."""

from sigtorch.ops.losses.asymmetric import AsymmetricLoss, asymmetric_loss
from sigtorch.ops.losses.bce import BCEWithLogitsLoss, binary_cross_entropy_with_logits
from sigtorch.ops.losses.dice import SigmoidDiceLoss, sigmoid_dice_loss
from sigtorch.ops.losses.focal import SigmoidFocalLoss, sigmoid_focal_loss
from sigtorch.ops.losses.quality_focal import QualityFocalLoss, quality_focal_loss
from sigtorch.ops.losses.varifocal import VarifocalLoss, varifocal_loss

__all__ = [
    "AsymmetricLoss",
    "BCEWithLogitsLoss",
    "QualityFocalLoss",
    "SigmoidDiceLoss",
    "SigmoidFocalLoss",
    "VarifocalLoss",
    "asymmetric_loss",
    "binary_cross_entropy_with_logits",
    "quality_focal_loss",
    "sigmoid_dice_loss",
    "sigmoid_focal_loss",
    "varifocal_loss",
]
