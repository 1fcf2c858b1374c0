"""Small models of other libraries with random weights, and an input for each."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch


class Example(NamedTuple):
    """A function that makes a model, and the keyword arguments of one call."""

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]


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

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 24}
NEXT = {
    **SHARED, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
GLM_MOE = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
SILU = {"hidden_act": "silu", "hidden_activation": "silu"}
DECODERS: dict[str, dict[str, Any]] = {
    "Afmoe": EXPERTS, "Cohere": {}, "Cohere2": {}, "Doge": {}, "Ernie4_5": {}, "Exaone4": {}, "FalconH1": MAMBA, "Gemma": SILU,
    "Glm": {}, "Glm4": {}, "Glm4Moe": GLM_MOE, "GptOss": EXPERTS, "Granite": {}, "GraniteMoe": EXPERTS, "Helium": {},
    "HunYuanDenseV1": {}, "Lfm2": {}, "Llama": {}, "Mamba": {}, "MiniMax": EXPERTS, "Mistral": {}, "Mixtral": EXPERTS,
    "Olmo": {}, "Olmo2": {}, "Olmo3": {}, "Olmoe": EXPERTS, "Phi3": {}, "Qwen2": {}, "Qwen2Moe": SHARED, "Qwen3": {},
    "Qwen3Moe": EXPERTS, "Qwen3Next": NEXT, "SeedOss": {}, "SmolLM3": {}, "StableLm": {},
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}


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


def transformers() -> dict[str, Example]:
    """Decoders and a vision tower, of two small layers."""
    import transformers

    def build(name: str) -> torch.nn.Module:
        config = getattr(transformers, f"{name}Config")(**{**SIZES, **DECODERS[name]})
        return getattr(transformers, f"{name}ForCausalLM")(config)  # type: ignore[no-any-return]

    tokens = {"input_ids": torch.arange(12).reshape(1, 12) % 64}
    made = {name: Example(partial(build, name), lambda: dict(tokens)) for name in DECODERS}
    tower = partial(transformers.Aimv2VisionModel, transformers.Aimv2VisionConfig(**TOWER))
    return {**made, "Aimv2Vision": Example(tower, lambda: {"pixel_values": torch.randn(1, 3, 28, 28)})}


LIBRARIES = {"timm": timm, "torchvision": torchvision, "transformers": transformers}
