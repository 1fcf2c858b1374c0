"""Models that say what each point of an image or a volume belongs to."""

from functools import partial
from typing import Any

import torch

from .example import Example, noise

SMP: dict[str, dict[str, Any]] = {
    "Unet scse": {"arch": "unet", "encoder_name": "resnet18", "decoder_attention_type": "scse"},
    "Unet se_resnet50": {"arch": "unet", "encoder_name": "se_resnet50"},
    "Unet mobileone": {"arch": "unet", "encoder_name": "mobileone_s0"},
    "UnetPlusPlus scse": {"arch": "unetplusplus", "encoder_name": "efficientnet-b0", "decoder_attention_type": "scse"},
    "MAnet": {"arch": "manet", "encoder_name": "resnet18"},
    "MAnet se_resnext50": {"arch": "manet", "encoder_name": "se_resnext50_32x4d"},
    "FPN": {"arch": "fpn", "encoder_name": "timm-efficientnet-b0"},
    "PAN": {"arch": "pan", "encoder_name": "resnet18"},
    "DeepLabV3Plus": {"arch": "deeplabv3plus", "encoder_name": "timm-mobilenetv3_large_100"},
    "Linknet": {"arch": "linknet", "encoder_name": "efficientnet-b0"},
    "PSPNet": {"arch": "pspnet", "encoder_name": "timm-regnety_002"},
    "UPerNet": {"arch": "upernet", "encoder_name": "tu-seresnet18"},
    "Segformer": {"arch": "segformer", "encoder_name": "mit_b0"},
}
PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
SPACE = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
LEVELS = {"channels": (8, 16, 32), "strides": (2, 2)}
LATENT = {
    **PLANE, "channels": (16, 16, 32), "num_res_blocks": 1, "norm_num_groups": 8, "attention_levels": (False, True, True),
}  # fmt: skip
HEADS = {"num_head_channels": 8}
DYN = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
SENET = {"spatial_dims": 2, "in_channels": 3, "num_classes": 10}
MONAI: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "AttentionUnet": ("AttentionUnet", {**PLANE, **LEVELS}, {"x": (1, 1, 32, 32)}),
    "AttentionUnet of volumes": ("AttentionUnet", {**SPACE, **LEVELS}, {"x": (1, 1, 16, 16, 16)}),
    "AutoencoderKL": ("AutoencoderKL", LATENT, {"x": (1, 1, 32, 32)}),
    "BasicUNet swish": ("BasicUNet", {**PLANE, "features": (8, 8, 8, 8, 8, 8), "act": "swish"}, {"x": (1, 1, 32, 32)}),
    "BasicUNetPlusPlus mish": ("BasicUNetPlusPlus", {**PLANE, "features": (8,) * 6, "act": "mish"}, {"x": (1, 1, 32, 32)}),
    "DynUNet": ("DynUNet", {**SPACE, **DYN, "res_block": True}, {"x": (1, 1, 16, 16, 16)}),
    "EfficientNetBN": ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, {"inputs": (1, 3, 64, 64)}),
    "FlexibleUNet": (
        "FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, {"inputs": (1, 3, 64, 64)},
    ),
    "MedNeXt": ("MedNeXt", {**PLANE, "init_filters": 8, "kernel_size": 3, "global_resp_norm": True}, {"x": (1, 1, 32, 32)}),
    "SEResNet50": ("SEResNet50", SENET, {"x": (1, 3, 64, 64)}),
    "SEResNet50 of volumes": ("SEResNet50", {**SENET, "spatial_dims": 3, "in_channels": 1}, {"x": (1, 1, 32, 32, 32)}),
    "SEResNext50": ("SEResNext50", SENET, {"x": (1, 3, 64, 64)}),
    "SENet154": ("SENet154", {**SENET, "layers": (1, 1, 2, 1)}, {"x": (1, 3, 64, 64)}),
    "SegResNet": ("SegResNet", {**PLANE, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, {"x": (1, 1, 32, 32)}),
    "SwinUNETR": (
        "SwinUNETR", {**PLANE, "feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}, {"x_in": (1, 1, 64, 64)},
    ),
    "UNETR": (
        "UNETR", {**PLANE, "img_size": 32, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4}, {"x_in": (1, 1, 32, 32)},
    ),
}  # fmt: skip


def segmentation_models_pytorch() -> dict[str, Example]:
    """Encoders under decoders, without weights."""
    from segmentation_models_pytorch import create_model

    def example(name: str) -> Example:
        size = 128 if name == "PAN" else 64  # PAN halves what the encoder leaves three times more
        return Example(partial(create_model, encoder_weights=None, **SMP[name]), noise(x=(1, 3, size, size)))

    return {name: example(name) for name in SMP}


def monai() -> dict[str, Example]:
    """Networks for medical images, and the two of latent diffusion."""
    from monai.networks import nets

    def build(kind: str, options: dict[str, Any]) -> torch.nn.Module:
        return getattr(nets, kind)(**options)  # type: ignore[no-any-return]

    unet = {**LATENT, **HEADS, "with_conditioning": True, "cross_attention_dim": 24}
    diffused = noise({"timesteps": torch.tensor([3])}, x=(1, 1, 16, 16), context=(1, 4, 24))
    made = {
        name: Example(partial(build, kind, options), noise(**shapes)) for name, (kind, options, shapes) in MONAI.items()
    }
    return {**made, "DiffusionModelUNet": Example(partial(build, "DiffusionModelUNet", unet), diffused)}
