"""Image classifiers, detectors, and towers of images and text."""

from functools import partial
from typing import Any

import torch

from .example import Example, drawn, noise

TIMM = [
    "coatnet_0_rw_224",
    "convit_tiny",
    "cs3sedarknet_l",
    "eca_halonext26ts",
    "eca_nfnet_l0",
    "ecaresnet26t",
    "efficientnet_b0",
    "efficientvim_m1",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "hgnet_tiny",
    "legacy_seresnet18",
    "legacy_seresnext26_32x4d",
    "maxvit_rmlp_nano_rw_256",
    "mixnet_s",
    "mnasnet_small",
    "nf_seresnet26",
    "regnety_002",
    "repvit_m0_9",
    "rexnet_100",
    "semnasnet_075",
    "senet154",
    "seresnet18",
    "seresnet50",
    "seresnetaa50d",
    "seresnext26t_32x4d",
    "tf_efficientnetv2_b0",
    "tinynet_e",
    "vit_small_plus_patch16_dinov3",
]
TORCHVISION = {"efficientnet_b0": 224, "efficientnet_v2_s": 224, "regnet_y_400mf": 224, "maxvit_t": 224}


def timm() -> dict[str, Example]:
    """Image classifiers, at the smallest size that each takes."""
    from timm import create_model, get_pretrained_cfg

    def image(name: str) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(1, *get_pretrained_cfg(name).input_size)}

    return {name: Example(partial(create_model, name), partial(image, name)) for name in TIMM}


def torchvision() -> dict[str, Example]:
    """Image classifiers."""
    from torchvision.models import get_model

    return {
        name: Example(partial(get_model, name), lambda size=size: {"x": torch.randn(1, 3, size, size)})
        for name, size in TORCHVISION.items()
    }


GEFFNET = ["efficientnet_b0", "mixnet_s", "mnasnet_a1", "mobilenetv3_rw", "spnasnet_100", "tf_efficientnet_es"]
VIT: dict[str, dict[str, Any]] = {
    "cct.CCT": {"img_size": 64, "embedding_dim": 32, "num_layers": 2, "num_heads": 2},
    "max_vit.MaxViT": {"dim": 16, "depth": (1, 2), "dim_head": 8, "dim_conv_stem": 16, "window_size": 4},
    "mobile_vit.MobileViT": {
        "image_size": (64, 64), "dims": [32, 40, 48], "channels": [8, 16, 24, 24, 32, 32, 40, 40, 48, 48, 64],
    },
    "normalized_vit.nViT": {"image_size": 64, "patch_size": 16, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48},
    "simple_vit_with_value_residual.SimpleViT": {
        "image_size": 64, "patch_size": 16, "dim": 32, "depth": 3, "heads": 2, "mlp_dim": 48,
    },
    "xcit.XCiT": {
        "image_size": 64, "patch_size": 8, "dim": 32, "depth": 2, "cls_depth": 1, "heads": 2, "mlp_dim": 48, "dim_head": 16,
    },
}  # fmt: skip
VIT_INPUT = {"normalized_vit.nViT": "images", "simple_vit_with_value_residual.SimpleViT": "img", "xcit.XCiT": "img"}
TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64}
RESNET = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64, "patch_size": None}
MULTIMODAL = {**TEXT, "dim_head": 16, "n_queries": 8, "attn_pooler_heads": 2}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ViT-quickgelu": {"vision_cfg": VISION, "quick_gelu": True},
    "RN-quickgelu": {"vision_cfg": RESNET, "quick_gelu": True},
    "convnext_tiny": {"vision_cfg": {"timm_model_name": "convnext_tiny", "timm_pool": "", "image_size": 224}},
    "EVA02": {"vision_cfg": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "image_size": 224}},
    "MobileCLIP-S1": {"vision_cfg": {"timm_model_name": "fastvit_mci1", "timm_proj": None, "image_size": 256}},
    "ViTamin-S": {"vision_cfg": {"timm_model_name": "vitamin_small_224", "timm_pool": "", "image_size": 224}},
    "coca-quickgelu": {
        "vision_cfg": {**VISION, "output_tokens": True},
        "multimodal_cfg": MULTIMODAL,
        "quick_gelu": True,
    },
}
ULTRALYTICS = [
    "rtdetr-l", "yolo11n", "yolo11n-seg", "yolo12n", "yolo26n", "yolov10n", "yolov3-tiny", "yolov5n", "yolov8n",
    "yolov8n-cls", "yolov8n-ghost", "yolov8n-pose", "yolov8n-world", "yolov9t",
]  # fmt: skip


def geffnet() -> dict[str, Example]:
    """Image classifiers of the generic EfficientNets."""
    from geffnet import create_model

    return {name: Example(partial(create_model, name, pretrained=False), noise(x=(1, 3, 64, 64))) for name in GEFFNET}


def efficientnet_pytorch() -> dict[str, Example]:
    """EfficientNets, with the activation that saves memory and with the one for export."""
    from efficientnet_pytorch import EfficientNet

    def exportable() -> torch.nn.Module:
        model = EfficientNet.from_name("efficientnet-b0")
        model.set_swish(memory_efficient=False)
        return model  # type: ignore[no-any-return]

    inputs = noise(inputs=(1, 3, 64, 64))
    made = {
        name: Example(partial(EfficientNet.from_name, name), inputs) for name in ("efficientnet-b0", "efficientnet-b1")
    }
    return {**made, "efficientnet-b0 for export": Example(exportable, inputs)}


def vit_pytorch() -> dict[str, Example]:
    """Vision transformers of one author, whose code is copied far and wide."""
    from importlib import import_module

    def build(name: str) -> torch.nn.Module:
        module, kind = name.split(".")
        return getattr(import_module(f"vit_pytorch.{module}"), kind)(**VIT[name], num_classes=10)  # type: ignore[no-any-return]

    inputs = {name: noise(**{VIT_INPUT.get(name, "x"): (1, 3, 64, 64)}) for name in VIT}
    return {name: Example(partial(build, name), inputs[name]) for name in VIT}


def open_clip() -> dict[str, Example]:
    """Towers of images and text; those of timm at their own size, others of two small layers."""
    from open_clip import CLIP, CoCa, CustomTextCLIP

    def build(options: dict[str, Any]) -> torch.nn.Module:
        kind = (
            CoCa
            if "multimodal_cfg" in options
            else CustomTextCLIP
            if "timm_model_name" in options["vision_cfg"]
            else CLIP
        )
        text = {**TEXT, "embed_cls": True, "output_tokens": True} if kind is CoCa else TEXT
        return drawn(kind(embed_dim=32, text_cfg=text, **options))

    def example(options: dict[str, Any]) -> Example:
        size = options["vision_cfg"]["image_size"]
        text = torch.arange(16).reshape(1, 16) % 64
        return Example(partial(build, options), noise({"text": text}, image=(1, 3, size, size)))

    return {name: example(options) for name, options in OPEN_CLIP.items()}


def ultralytics() -> dict[str, Example]:
    """Detectors, from the descriptions that come with the library."""
    from ultralytics import RTDETR, YOLO
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("ERROR")  # it sums up each model that it builds

    def build(name: str) -> torch.nn.Module:
        kind = RTDETR if name.startswith("rtdetr") else YOLO
        return kind(f"{name}.yaml").model  # type: ignore[no-any-return]

    return {name: Example(partial(build, name), noise(x=(1, 3, 64, 64))) for name in ULTRALYTICS}
