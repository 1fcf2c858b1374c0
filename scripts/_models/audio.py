"""Models of speech and sound."""

from functools import partial
from importlib import import_module
from typing import Any

import torch

from .example import Example, noise

LOBES = "speechbrain.lobes.models."
ASR = {
    "tgt_vocab": 16, "input_size": 24, "d_model": 32, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 1, "d_ffn": 48,
    "kernel_size": 7, "attention_type": "RelPosMHAXL", "csgu_linear_units": 48, "causal": False,
    "normalize_before": True,
}  # fmt: skip
TDNN = {
    "channels": [16, 16, 16, 16, 48],
    "attention_channels": 8,
    "lin_neurons": 16,
    "res2net_scale": 4,
    "se_channels": 8,
}
FEATURES = {"x": (2, 20, 24)}
RECURRENT = {"hidden_size": 16, "input_shape": (2, 20, 24), "bidirectional": True, "num_layers": 2}

# A class, its options, and the shapes of its inputs.
SPEECHBRAIN: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "ECAPA-TDNN": (f"{LOBES}ECAPA_TDNN.ECAPA_TDNN", {"input_size": 24, **TDNN}, FEATURES),
    "ContextNet": (
        f"{LOBES}ContextNet.ContextNet",
        {"input_shape": (2, 20, 24), "out_channels": 16, "conv_channels": [16] * 5, "strides": [1] * 5, "num_blocks": 5,
         "num_layers": 2, "residuals": [True] * 5}, FEATURES,
    ),
    "CRDNN": (
        f"{LOBES}CRDNN.CRDNN", {"input_shape": (2, 20, 24), "cnn_channels": [8, 8], "rnn_neurons": 16, "rnn_layers": 2,
                                   "dnn_neurons": 16}, FEATURES,
    ),
    "ResNet": (
        f"{LOBES}ResNet.ResNet", {"input_size": 24, "channels": [8, 8, 16, 16], "block_sizes": [1] * 4, "lin_neurons": 16},
        FEATURES,
    ),
    "Xvector": (f"{LOBES}Xvector.Xvector", {"in_channels": 24, "tdnn_channels": [16] * 5, "lin_neurons": 16}, FEATURES),
    "LiGRU": ("speechbrain.nnet.RNN.LiGRU", RECURRENT, FEATURES),
    "SLiGRU": ("speechbrain.nnet.RNN.SLiGRU", RECURRENT, FEATURES),
    "QuasiRNN": ("speechbrain.nnet.RNN.QuasiRNN", RECURRENT, FEATURES),
    "QLiGRU": ("speechbrain.nnet.quaternion_networks.q_RNN.QLiGRU", RECURRENT, FEATURES),
    "Conv-TasNet": (
        f"{LOBES}conv_tasnet.MaskNet", {"N": 16, "B": 8, "H": 16, "P": 3, "X": 2, "R": 2, "C": 2, "mask_nonlinear": "softmax"},
        {"mixture_w": (1, 16, 20)},
    ),
    "DPTNet": (f"{LOBES}dual_path.DPTNetBlock", {"d_model": 16, "nhead": 2, "dim_feedforward": 16}, {"src": (2, 20, 16)}),
    "Conformer": (
        f"{LOBES}transformer.Conformer.ConformerEncoder",
        {"num_layers": 2, "d_model": 32, "d_ffn": 48, "nhead": 2, "kernel_size": 7},
        {"src": (1, 20, 32), "pos_embs": (1, 39, 32)},
    ),
    "Branchformer": (
        f"{LOBES}transformer.Branchformer.BranchformerEncoder",
        {"num_layers": 2, "d_model": 32, "nhead": 2, "kernel_size": 7, "csgu_linear_units": 48,
         "gate_activation": torch.nn.Sigmoid}, {"src": (1, 20, 32), "pos_embs": (1, 39, 32)},
    ),
    "FastSpeech2 encoder": (
        f"{LOBES}transformer.Transformer.TransformerEncoder",
        {"num_layers": 2, "nhead": 2, "d_ffn": 48, "d_model": 32, "activation": torch.nn.SiLU, "ffn_type": "1dcnn",
         "ffn_cnn_kernel_size_list": [3, 1]}, {"src": (1, 20, 32)},
    ),
}  # fmt: skip
TORCHAUDIO: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "Conformer": (
        "Conformer", {"input_dim": 32, "num_heads": 2, "ffn_dim": 48, "num_layers": 2, "depthwise_conv_kernel_size": 7},
        {"lengths": torch.tensor([20])}, {"input": (1, 20, 32)},
    ),
    "ConvTasNet": (
        "ConvTasNet",
        {"enc_num_feats": 16, "msk_num_feats": 8, "msk_num_hidden_feats": 16, "msk_num_layers": 2, "msk_num_stacks": 2}, {},
        {"input": (1, 1, 160)},
    ),
    "Emformer": (
        "Emformer",
        {"input_dim": 32, "num_heads": 2, "ffn_dim": 48, "num_layers": 2, "segment_length": 4, "activation": "silu"},
        {"lengths": torch.tensor([16])}, {"input": (1, 20, 32)},
    ),
    "HDemucs": (
        "HDemucs", {"sources": ["one", "two"], "channels": 8, "depth": 3, "nfft": 256}, {}, {"input": (1, 2, 2048)},
    ),
    "WaveRNN": (
        "WaveRNN",
        {"upsample_scales": [2, 2, 2], "n_classes": 16, "hop_length": 8, "n_res_block": 1, "n_rnn": 16, "n_fc": 16, "n_freq": 8,
         "n_hidden": 16, "n_output": 16}, {}, {"waveform": (1, 1, 48), "specgram": (1, 1, 8, 10)},
    ),
    "WavLM": (
        "wavlm_model",
        {"extractor_mode": "group_norm", "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)], "extractor_conv_bias": False,
         "encoder_embed_dim": 32, "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 4,
         "encoder_num_layers": 2, "encoder_num_heads": 2, "encoder_num_buckets": 8, "encoder_max_distance": 16,
         "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 48, "encoder_ff_interm_dropout": 0.0,
         "encoder_dropout": 0.0, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": None}, {},
        {"waveforms": (1, 400)},
    ),
}  # fmt: skip


def speechbrain() -> dict[str, Example]:
    """Recognisers, and separators of voices."""
    import_module("speechbrain")

    def build(name: str, options: dict[str, Any]) -> torch.nn.Module:
        module, kind = name.rsplit(".", 1)
        return getattr(import_module(module), kind)(**options)  # type: ignore[no-any-return]

    def recogniser(encoder: str) -> torch.nn.Module:
        return build(f"{LOBES}transformer.TransformerASR.TransformerASR", {**ASR, "encoder_module": encoder})

    def sepformer() -> torch.nn.Module:
        block = partial(
            build, f"{LOBES}dual_path.SBTransformerBlock", {"num_layers": 1, "d_model": 16, "nhead": 2, "d_ffn": 24}
        )
        sizes = {"in_channels": 16, "out_channels": 16, "num_layers": 1, "K": 8, "num_spks": 2}
        return build(f"{LOBES}dual_path.Dual_Path_Model", {**sizes, "intra_model": block(), "inter_model": block()})

    made = {
        name: Example(partial(build, kind, options), noise(**shapes))
        for name, (kind, options, shapes) in SPEECHBRAIN.items()
    }
    heard = noise({"tgt": torch.tensor([[1, 2, 3]])}, src=(1, 20, 24))
    return {
        **made,
        "recogniser by a conformer": Example(partial(recogniser, "conformer"), heard),
        "recogniser by a branchformer": Example(partial(recogniser, "branchformer"), heard),
        "SepFormer": Example(sepformer, noise(x=(1, 16, 40))),
    }


def torchaudio() -> dict[str, Example]:
    """Recognisers, separators and vocoders."""
    from torchaudio import models

    def build(kind: str, options: dict[str, Any]) -> torch.nn.Module:
        return getattr(models, kind)(**options)  # type: ignore[no-any-return]

    return {
        name: Example(partial(build, kind, options), noise(given, **shapes))
        for name, (kind, options, given, shapes) in TORCHAUDIO.items()
    }
