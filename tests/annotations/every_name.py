"""A program that uses every public name, for type checkers, and runs."""
# mypy: warn-return-any, warn-unused-ignores, disallow-untyped-calls

import torch
from torch import Tensor

import sigtorch
from sigtorch import nn

x: Tensor = torch.randn(4, 6, requires_grad=True)
y: Tensor = torch.randn(4, 6)
dense: Tensor = torch.rand(4, 6)
classes: Tensor = torch.tensor([0, -1, 255, 6])
number: Tensor = torch.tensor(0.5)
weight: Tensor = torch.rand(6)
heads: Tensor = torch.randn(2, 3, 4, 6)
rows: Tensor = torch.randn(4, 3, 6)
cu_seqlens: Tensor = torch.tensor([0, 1, 4], dtype=torch.int32)

outputs: list[Tensor] = [
    sigtorch.sigmoid(x),
    sigtorch.sigmoid(input=x, save="input"),
    sigtorch.sigmoid_gate(x, gate=y, residual=x),
    sigtorch.sigmoid_lerp(x, y, gate=x),
    sigtorch.glu(input=x, dim=1),
    sigtorch.swiglu(x, up=y),
    sigtorch.swiglu(gate=x),
    sigtorch.swiglu(x, y, alpha=1.702, limit=7, offset=1, weight=x[:, :1]),
    sigtorch.swiglu(x, interleaved=True, limit=None),
    sigtorch.swiglu_linear(x, y, weight=x, bias=x[:, 0], alpha=1.702, limit=7.0, offset=1),
    *sigtorch.sigmoid_topk(x, 2, weight, num_groups=3, topk_groups=2, normalize=False, scale=2.5),
    *sigtorch.sigmoid_topk(logits=x, k=2, correction_bias=None),
    sigtorch.binary_cross_entropy_with_logits(x, dense, weight, None, None, "sum", weight),
    sigtorch.binary_cross_entropy_with_logits(
        input=x, target=classes, reduction="none", label_smoothing=number, background_index=-1, ignore_index=255, dim=-1
    ),
    sigtorch.sigmoid_focal_loss(x, dense, 0.25, 2, "mean", weight=weight, pos_weight=weight),
    sigtorch.sigmoid_focal_loss(
        inputs=x, targets=classes, alpha=number, gamma=number, reduction="sum", normalizer=number, background_index=-1,
        ignore_index=255, dim=-1,
    ),
    sigtorch.quality_focal_loss(x, classes.clamp(max=6), 2.0, "sum"),
    sigtorch.quality_focal_loss(input=x, target=dense, beta=1.5, reduction="mean"),
    sigtorch.varifocal_loss(x, dense, 0.75, 2.0, "sum"),
    sigtorch.varifocal_loss(input=x, target=dense, alpha=1, gamma=1.5, reduction="mean"),
    sigtorch.asymmetric_loss(x, dense, 4.0, 1.0, 0.05, "sum"),
    sigtorch.asymmetric_loss(input=x, target=dense, gamma_neg=4, gamma_pos=1, clip=0, reduction="mean"),
    sigtorch.sigmoid_dice_loss(x, dense, 1.0, -1, "sum"),
    sigtorch.sigmoid_dice_loss(input=x, target=dense, smooth=0, dims=(0, 1), reduction="mean", bce_weight=0.5),
    sigtorch.siglip_loss(x, y, 10.0, logit_bias=number, chunk_size=2),
    sigtorch.sigmoid_attention(heads, heads, heads, torch.ones(4, 4) > 0, scale=0.5, bias=-1, enable_gqa=True),
    sigtorch.sigmoid_attention(
        query=heads, key=heads, value=heads, attn_mask=None, is_causal=True, bias=number, alibi_slopes=torch.rand(3)
    ),
    sigtorch.sigmoid_attention_varlen(
        rows, rows, rows, cu_seqlens, cu_seqlens, 3, 3, causal=True, softmax_scale=0.5, bias=-1.0, alibi_slopes=None
    ),
    sigtorch.linear_binary_cross_entropy(x, torch.randn(5, 6), torch.rand(4, 5) > 0.5, reduction="sum"),
]  # fmt: skip

modules: list[torch.nn.Module] = [
    nn.Sigmoid(save="input"),
    nn.SigmoidGate(),
    nn.SigmoidLerp(),
    nn.GLU(dim=1),
    nn.SwiGLU(),
    nn.SwiGLU(alpha=1.702, limit=7, offset=1, interleaved=True),
    nn.SigmoidRouter(6, 8, 2, num_groups=4, topk_groups=2, normalize=True, scale=2.5, device="cpu"),
    nn.SigmoidAttention(6, 2, num_kv_heads=1, bias=False, is_causal=True, gate=True, device="cpu", dtype=torch.float32),
    nn.GatedMLP(6, 12, bias=True, device="cpu", dtype=torch.float32),
    nn.GatedMLP(6, 12, alpha=1.702, limit=None, offset=1, recompute=True),
    nn.BCEWithLogitsLoss(
        weight, reduction="sum", label_smoothing=number, background_index=-1, ignore_index=255, dim=-1
    ),
    nn.SigmoidFocalLoss(number, number, "mean", pos_weight=weight, background_index=-1, ignore_index=255, dim=-1),
    nn.QualityFocalLoss(beta=1.5, reduction="sum"),
    nn.VarifocalLoss(alpha=1, gamma=1.5, reduction="sum"),
    nn.AsymmetricLoss(gamma_neg=4, gamma_pos=1, clip=0, reduction="sum"),
    nn.SigmoidDiceLoss(smooth=0, dims=(0, 1), reduction="sum", bce_weight=0.5),
    nn.SigLIPLoss(chunk_size=2),
    nn.LinearBCE(6, 5, chunk_size=2),
]
router = nn.SigmoidRouter(hidden=6, num_experts=8, k=2)
weights, indices = router(x)
router.update_bias(indices, rate=1e-3, group=None)
model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Sigmoid())
patch: sigtorch.Patch = sigtorch.patch(model, save="input")
with sigtorch.patched_functions(save="input"), sigtorch.use_backend("aten"):
    outputs.append(model(x))
patch.undo()


@sigtorch.use_backend("auto")
def loss(z: Tensor) -> Tensor:
    return sigtorch.sigmoid(z).sum()


outputs.append(loss(x))
assert sigtorch.backend_of(x, y) in ("triton", "aten")
