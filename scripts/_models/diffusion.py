"""Models of diffusion: UNets, transformers, and autoencoders of what they make."""

from functools import partial
from typing import Any

import torch

from .example import Example, drawn, noise

BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
UNET = {
    **BLOCKS,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CROSS = {
    **BLOCKS, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 24,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip
GLIGEN = {**CROSS, "attention_type": "gated"}
KL = {**BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
DC = {
    "latent_channels": 4, "attention_head_dim": 8, "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16), "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
TWO_KINDS = {**HEADS, "num_single_layers": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8)}
IDS = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(4, 3)}
STEP = {"timestep": torch.tensor([3])}
HALF = {"timestep": torch.tensor([0.5])}
SEQUENCE = {"hidden_states": (1, 16, 8), "encoder_hidden_states": (1, 4, 24)}
IMAGE = {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": (1, 4, 24)}
VIDEO = {"hidden_states": (1, 4, 2, 8, 8), "encoder_hidden_states": (1, 4, 24)}
MASK = {"encoder_attention_mask": torch.ones(1, 4, dtype=torch.bool)}
LUMINA = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "multiple_of": 16, "sample_size": 8}

# A class, its options, what is given at a call, and the shapes of what is drawn.
DIFFUSERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "UNet2D": ("UNet2DModel", UNET, STEP, {"sample": (1, 3, 16, 16)}),
    "UNet2DCondition": (
        "UNet2DConditionModel", CROSS, STEP, {"sample": (1, 4, 16, 16), "encoder_hidden_states": (1, 4, 24)},
    ),
    "UNet2DCondition GLIGEN": (
        "UNet2DConditionModel", GLIGEN, STEP, {"sample": (1, 4, 16, 16), "encoder_hidden_states": (1, 4, 24)},
    ),
    "UNet1D": (
        "UNet1DModel", {"sample_size": 64, "block_out_channels": (32, 32, 64), "extra_in_channels": 64}, STEP,
        {"sample": (1, 2, 64)},
    ),
    "UNet3DCondition": (
        "UNet3DConditionModel",
        {
            **CROSS, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        STEP, {"sample": (1, 4, 2, 16, 16), "encoder_hidden_states": (1, 4, 24)},
    ),
    "AutoencoderKL": ("AutoencoderKL", KL, {}, {"sample": (1, 3, 16, 16)}),
    "AutoencoderDC": ("AutoencoderDC", DC, {}, {"sample": (1, 3, 32, 32)}),
    "AutoencoderOobleck": (
        "AutoencoderOobleck",
        {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_channels": 8, "decoder_input_channels": 4,
         "channel_multiples": [1, 2]}, {}, {"sample": (1, 2, 64)},
    ),
    "VQModel": ("VQModel", {**KL, "num_vq_embeddings": 16}, {}, {"sample": (1, 3, 16, 16)}),
    "DiT": (
        "DiTTransformer2DModel", {**HEADS, "sample_size": 8}, {**STEP, "class_labels": torch.tensor([1])},
        {"hidden_states": (1, 4, 8, 8)},
    ),
    "SD3": (
        "SD3Transformer2DModel",
        {**HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 24, "pooled_projection_dim": 16,
         "caption_projection_dim": 32, "pos_embed_max_size": 8}, STEP, {**IMAGE, "pooled_projections": (1, 16)},
    ),
    "Flux": (
        "FluxTransformer2DModel", {**TWO_KINDS, "in_channels": 8, "pooled_projection_dim": 16}, {**HALF, **IDS},
        {**SEQUENCE, "pooled_projections": (1, 16)},
    ),
    "Flux2": (
        "Flux2Transformer2DModel",
        {**TWO_KINDS, "in_channels": 8, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        {**HALF, "img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(4, 4), "guidance": torch.ones(1)}, SEQUENCE,
    ),
    "Chroma": (
        "ChromaTransformer2DModel",
        {**TWO_KINDS, "in_channels": 8, "approximator_num_channels": 8, "approximator_hidden_dim": 16,
         "approximator_layers": 1}, {**HALF, **IDS}, SEQUENCE,
    ),
    "PixArt": (
        "PixArtTransformer2DModel", {**HEADS, "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 24},
        {**STEP, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}, IMAGE,
    ),
    "Sana": (
        "SanaTransformer2DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
         "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8}, STEP, IMAGE,
    ),
    "LuminaNext": (
        "LuminaNextDiT2DModel", {**LUMINA, "num_kv_heads": 2, "cross_attention_dim": 24},
        {**HALF, "encoder_mask": torch.ones(1, 4), "image_rotary_emb": torch.ones(16, 16, 8, dtype=torch.complex64),
         "cross_attention_kwargs": {}},
        IMAGE,
    ),
    "Lumina2": (
        "Lumina2Transformer2DModel",
        {**LUMINA, "in_channels": 4, "num_refiner_layers": 1, "num_kv_heads": 1, "axes_dim_rope": (8, 4, 4),
         "axes_lens": (16, 16, 16), "cap_feat_dim": 24}, {**HALF, **MASK}, IMAGE,
    ),
    "AuraFlow": (
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 32, "pos_embed_max_size": 64},
        HALF, IMAGE,
    ),
    "CogVideoX": (
        "CogVideoXTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "text_embed_dim": 24, "sample_width": 8, "sample_height": 8,
         "sample_frames": 5, "max_text_seq_length": 4, "time_embed_dim": 8}, STEP,
        {"hidden_states": (1, 2, 4, 8, 8), "encoder_hidden_states": (1, 4, 24)},
    ),
    "Mochi": (
        "MochiTransformer3DModel",
        {**HEADS, "in_channels": 4, "pooled_projection_dim": 16, "text_embed_dim": 24, "time_embed_dim": 8,
         "max_sequence_length": 4}, {**STEP, **MASK}, VIDEO,
    ),
    "StableAudio": (
        "StableAudioDiTModel",
        {"sample_size": 4, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "num_key_value_attention_heads": 2, "cross_attention_dim": 24, "time_proj_dim": 8,
         "global_states_input_dim": 16, "cross_attention_input_dim": 24}, STEP,
        {"hidden_states": (1, 4, 8), "encoder_hidden_states": (1, 4, 24), "global_hidden_states": (1, 1, 16)},
    ),
    "Wan": (
        "WanTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 24, "freq_dim": 16, "ffn_dim": 48, "rope_max_seq_len": 32},
        STEP, VIDEO,
    ),
    "QwenImage": (
        "QwenImageTransformer2DModel",
        {**HEADS, "in_channels": 8, "out_channels": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8)},
        {**HALF, "encoder_hidden_states_mask": torch.ones(1, 4, dtype=torch.long), "img_shapes": [[(1, 4, 4)]]}, SEQUENCE,
    ),
    "ZImage": (
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24,
         "axes_dims": [8, 4, 4], "axes_lens": [64, 32, 32]},
        {"x": [torch.ones(4, 1, 8, 8)], "t": torch.tensor([0.5]), "cap_feats": [torch.ones(4, 24)]}, {},
    ),
    "StableCascade": (
        "StableCascadeUNet",
        {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 32,
         "block_out_channels": (16, 32), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1),
         "up_num_layers_per_block": (1, 1), "clip_text_pooled_in_channels": 16, "clip_text_in_channels": 16},
        {"timestep_ratio": torch.tensor([0.5])},
        {"sample": (1, 4, 8, 8), "clip_text_pooled": (1, 1, 16), "clip_text": (1, 4, 16)},
    ),
    "UVit2D": (
        "UVit2DModel",
        {"hidden_size": 32, "cond_embed_dim": 16, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40,
         "encoder_hidden_size": 24, "vocab_size": 64, "codebook_size": 32, "in_channels": 16, "block_out_channels": 16,
         "num_res_blocks": 1, "block_num_heads": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
         "sample_size": 8},
        {"input_ids": torch.arange(64).reshape(1, 8, 8) % 32, "micro_conds": torch.ones(1, 5)},
        {"encoder_hidden_states": (1, 4, 24), "pooled_text_emb": (1, 16)},
    ),
    "HunyuanDiT": (
        "HunyuanDiT2DModel",
        {**HEADS, "hidden_size": 32, "in_channels": 4, "patch_size": 2, "sample_size": 8, "cross_attention_dim": 24,
         "cross_attention_dim_t5": 16, "pooled_projection_dim": 16, "text_len": 4, "text_len_t5": 4,
         "activation_fn": "gelu-approximate", "use_style_cond_and_image_meta_size": False},
        {**HALF, "text_embedding_mask": torch.ones(1, 4, dtype=torch.bool),
         "text_embedding_mask_t5": torch.ones(1, 4, dtype=torch.bool),
         "image_rotary_emb": (torch.ones(16, 16), torch.zeros(16, 16))},
        {**IMAGE, "encoder_hidden_states_t5": (1, 4, 16)},
    ),
    "LTXVideo": (
        "LTXVideoTransformer3DModel",
        {**HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 24},
        {**STEP, "encoder_attention_mask": torch.ones(1, 4), "num_frames": 1, "height": 4, "width": 4}, SEQUENCE,
    ),
    "Prior": (
        "PriorTransformer", {**HEADS, "embedding_dim": 24, "num_embeddings": 4, "additional_embeddings": 4}, STEP,
        {"hidden_states": (1, 24), "proj_embedding": (1, 24), "encoder_hidden_states": (1, 4, 24)},
    ),
    "T5FilmDecoder": (
        "T5FilmDecoder",
        {"input_dims": 8, "targets_length": 8, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48},
        {"encodings_and_masks": [(torch.ones(1, 4, 32), torch.ones(1, 4))], "decoder_noise_time": torch.tensor([0.5])},
        {"decoder_input_tokens": (1, 8, 8)},
    ),
    "AutoencoderVidTok": (
        "AutoencoderVidTok",
        {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "spatial_ds": [0], "spatial_us": [1], "tempo_ds": [0],
         "tempo_us": [1]},
        {"sample_posterior": False}, {"sample": (1, 3, 5, 16, 16)},
    ),
    "AceStep": (
        "AceStepTransformer1DModel",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 16, "in_channels": 12, "audio_acoustic_hidden_dim": 4, "encoder_hidden_size": 24},
        {**HALF, "timestep_r": torch.tensor([0.5])},
        {"hidden_states": (1, 16, 4), "encoder_hidden_states": (1, 4, 24), "context_latents": (1, 16, 8)},
    ),
    "Ideogram4": (
        "Ideogram4Transformer2DModel",
        {"in_channels": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "intermediate_size": 48,
         "adaln_dim": 16, "llm_features_dim": 24, "mrope_section": (4, 2, 2)},
        {**HALF, "position_ids": torch.zeros(1, 16, 3, dtype=torch.long), "segment_ids": torch.ones(1, 16, dtype=torch.long),
         "indicator": torch.tensor([[3] * 4 + [2] * 12])}, {"hidden_states": (1, 16, 8), "encoder_hidden_states": (1, 16, 24)},
    ),
    "Krea2": (
        "Krea2Transformer2DModel",
        {"in_channels": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 48, "timestep_embed_dim": 16, "text_hidden_dim": 24, "num_text_layers": 2,
         "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 32,
         "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 4, 8)},
        {**HALF, "position_ids": torch.zeros(20, 3)}, {"hidden_states": (1, 16, 8), "encoder_hidden_states": (1, 4, 2, 24)},
    ),
    "LTX2": (
        "LTX2VideoTransformer3DModel",
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32,
         "gated_attn": True, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
         "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "audio_gated_attn": True, "num_layers": 2,
         "caption_channels": 24},
        {**STEP, "num_frames": 1, "height": 4, "width": 4, "audio_num_frames": 2},
        {**SEQUENCE, "audio_hidden_states": (1, 2, 4), "audio_encoder_hidden_states": (1, 4, 24)},
    ),
    "NucleusMoE": (
        "NucleusMoEImageTransformer2DModel",
        {**HEADS, "in_channels": 8, "out_channels": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8), "num_experts": 4,
         "moe_intermediate_dim": 16, "capacity_factors": 2.0, "dense_moe_strategy": "all_moe", "use_sigmoid": True},
        {**HALF, "img_shapes": [(1, 4, 4)]}, SEQUENCE,
    ),
    "StableAudio3": (
        "StableAudio3DiTModel",
        {"io_channels": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 24, "global_cond_dim": 16,
         "local_add_cond_dim": 4, "timestep_features_dim": 16, "ff_mult": 2.0, "num_memory_tokens": 2}, HALF,
        {"hidden_states": (1, 8, 16), "encoder_hidden_states": (1, 4, 24), "global_hidden_states": (1, 16)},
    ),
}  # fmt: skip


def diffusers() -> dict[str, Example]:
    """Models of one or two small layers a block."""
    import diffusers

    def build(kind: str, options: dict[str, Any]) -> torch.nn.Module:
        return drawn(getattr(diffusers, kind)(**options))

    return {
        name: Example(partial(build, kind, options), noise(given, **shapes))
        for name, (kind, options, given, shapes) in DIFFUSERS.items()
    }
