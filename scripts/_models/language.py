"""Language models, and their building blocks."""

from functools import partial
from typing import Any

import torch

from .example import Example, noise

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


X_TRANSFORMERS = {
    "glu": {"ff_glu": True},
    "swiglu": {"ff_swish": True, "ff_glu": True, "rotary_pos_emb": True, "use_rmsnorm": True},
    "relu squared": {"ff_relu_squared": True, "attn_one_kv_head": True},
    "attention on attention": {"attn_on_attn": True},
    "gated values": {"attn_gate_values": True},
    "gated value heads": {"attn_gate_value_heads": True, "alibi_pos_bias": True},
    "SwiGLU values": {"attn_swiglu_values": True},
    "gated residual": {"gate_residual": True},
    "value residual": {"add_value_residual": True, "learned_value_residual_mix": True},
    "LIMe": {"integrate_layers": True, "num_residual_streams": 2},
    "macaron": {"macaron": True, "ff_glu": True, "attn_sigmoid": True},
    "headwise output gate": {"attn_output_gate": True, "attn_output_gate_headwise": True},
}  # fmt: skip


def x_transformers() -> dict[str, Example]:
    """Decoders of three small layers, one an option, and what is built from them."""
    from x_transformers import Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, XTransformer

    def build(options: dict[str, Any]) -> torch.nn.Module:
        layers = Decoder(dim=32, depth=3, heads=2, attn_dim_head=32, **options)
        return TransformerWrapper(num_tokens=64, max_seq_len=16, attn_layers=layers)  # type: ignore[no-any-return]

    def vision() -> torch.nn.Module:
        layers = Encoder(dim=32, depth=2, heads=2, attn_dim_head=32, ff_glu=True, ff_swish=True)
        return ViTransformerWrapper(image_size=32, patch_size=8, num_classes=10, attn_layers=layers)  # type: ignore[no-any-return]

    def pair() -> torch.nn.Module:
        sizes = {"num_tokens": 64, "max_seq_len": 16, "depth": 2, "heads": 2}
        both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in {**sizes, "ff_glu": True}.items()}
        return XTransformer(dim=32, **both)  # type: ignore[no-any-return]

    tokens = torch.arange(12).reshape(1, 12)
    made = {name: Example(partial(build, options), lambda: {"x": tokens}) for name, options in X_TRANSFORMERS.items()}
    return {
        **made,
        "vision": Example(vision, noise(img=(1, 3, 32, 32))),
        "encoder and decoder": Example(pair, lambda: {"src": tokens, "tgt": tokens}),
    }
