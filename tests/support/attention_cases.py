"""Cases of sigmoid attention, and its oracle in plain PyTorch, for float64."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import triton

import sigtorch

# Relative errors in Frobenius norm: what the library promises. The interpreter's bfloat16 is less precise.
TOLERANCES = {
    torch.float32: 1e-6,
    torch.float16: 5e-4,
    torch.bfloat16: 8e-3 if triton.knobs.runtime.interpret else 4e-3,
    torch.float64: 1e-12,
}


@dataclass(frozen=True)
class AttentionCase:
    name: str
    queries: int = 40
    keys: int = 37
    heads: int = 2
    key_heads: int = 2
    d: int = 16
    dv: int = 16
    batch: tuple[int, ...] = (2,)
    causal: bool = False
    scale: float | None = None
    bias: object = None  # a number, or the shape of a tensor
    alibi: bool = False
    mask: object = None  # a dtype and a shape
    fused: bool = True
    options: dict = field(default_factory=dict)

    def inputs(self, dtype, device="cpu"):
        """Query, key, value, and tensors that are options, by name; all that can have a gradient want one."""
        q = torch.randn(*self.batch, self.heads, self.queries, self.d)
        k = torch.randn(*self.batch, self.key_heads, self.keys, self.d)
        v = torch.randn(*self.batch, self.key_heads, self.keys, self.dv)
        given = [t.to(device, dtype).requires_grad_() for t in (q, k, v)]
        options, wide = {}, torch.float64 if dtype == torch.float64 else torch.float32
        if isinstance(self.bias, tuple):
            options["bias"] = (torch.randn(self.bias) - 2).to(device, wide).requires_grad_()
        if self.alibi:
            options["alibi_slopes"] = torch.rand(self.heads).to(device, wide)
        if self.mask is not None:
            kind, shape = self.mask
            mask = torch.rand(shape) > 0.4 if kind == torch.bool else torch.randn(shape)
            options["attn_mask"] = mask.to(device, kind if kind == torch.bool else wide)
            if kind != torch.bool:
                options["attn_mask"].requires_grad_()
        return given, options

    def ours(self, query, key, value, **options):
        if not isinstance(self.bias, tuple):
            options["bias"] = self.bias
        return sigtorch.sigmoid_attention(
            query,
            key,
            value,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=self.heads != self.key_heads,
            **options,
        )

    def oracle(self, query, key, value, **options):
        if not isinstance(self.bias, tuple):
            options["bias"] = self.bias
        return oracle(query, key, value, causal=self.causal, scale=self.scale, **options)


def oracle(q, k, v, attn_mask=None, *, causal=False, scale=None, bias=None, alibi_slopes=None, from_the_end=False):
    """Attention as its definition; causal from the top left, or from the bottom right."""
    (n, d), keys, group = q.shape[-2:], k.shape[-2], q.shape[-3] // max(k.shape[-3], 1)
    k, v = (t.repeat_interleave(group, -3) for t in (k, v))
    bias = torch.as_tensor(-math.log(max(keys, 1)) if bias is None else bias, dtype=q.dtype, device=q.device)
    z = q @ k.mT * (d**-0.5 if scale is None else scale) + bias.reshape(-1, 1, 1)
    i, j = torch.arange(n, device=q.device).unsqueeze(1), torch.arange(keys, device=q.device)
    if alibi_slopes is not None:
        z = z - alibi_slopes.to(z.dtype).reshape(-1, 1, 1) * (i + keys - n - j).abs()
    if attn_mask is not None:
        z = z.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else z + attn_mask.to(z.dtype)
    if causal:
        z = z.masked_fill(j > i + (keys - n if from_the_end else 0), -math.inf)
    return torch.exp(F.logsigmoid(z)) @ v  # the derivative of torch.sigmoid is none where weights are nearly 1


CASES = [
    AttentionCase("plain"),
    AttentionCase("causal", causal=True),
    AttentionCase("causal, more queries", 70, 37, causal=True),
    AttentionCase("shared keys", heads=6, key_heads=2, causal=True),
    AttentionCase("other values", d=32, dv=16),
    AttentionCase("odd sizes", d=24, dv=9),
    AttentionCase("bias", bias=0.5, scale=0.3),
    AttentionCase("high bias", bias=20.0),
    AttentionCase("low bias", bias=-30.0),
    AttentionCase("bias of each head", bias=(2,), causal=True),
    AttentionCase("bias of all", bias=()),
    AttentionCase("alibi", alibi=True),
    AttentionCase("alibi, causal", alibi=True, causal=True, heads=4, bias=(4,)),
    AttentionCase("one of each", 1, 1),
    AttentionCase("one query", 1, 40),
    AttentionCase("no keys", keys=0),
    AttentionCase("no queries", queries=0),
    AttentionCase("mask", mask=(torch.bool, (40, 37)), fused=False),
    AttentionCase("mask of keys", mask=(torch.bool, (2, 1, 1, 37)), fused=False),
    AttentionCase("added", mask=(torch.float32, (2, 40, 37)), fused=False),
    AttentionCase("added to keys", mask=(torch.float32, (2, 2, 1, 37)), fused=False),
]


def error(found, expected):
    """Returns the relative error in Frobenius norm."""
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def doubled(tensors):
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def check(ours, theirs, tensors, tolerance, grad_scale=1.0):
    """Compares a function's result and gradients with the oracle's, in the norm of each."""
    out, expected, exact = ours(*tensors), None, doubled(tensors)
    expected = theirs(*exact)
    assert out.shape == expected.shape
    assert error(out, expected) <= tolerance
    grad = (torch.randn(expected.shape).to(expected) * grad_scale).to(out.dtype)
    wanted = [t for t in tensors if t.requires_grad]
    found = torch.autograd.grad(out, wanted, grad)
    slopes = torch.autograd.grad(expected, [t for t in exact if t.requires_grad], grad.double())
    for t, mine, slope in zip(wanted, found, slopes, strict=True):
        assert (mine.dtype, mine.shape) == (t.dtype, t.shape)
        assert error(mine, slope) <= tolerance, error(mine, slope)


def check_case(case, dtype, device, tolerance=None):
    """Runs a case in the backend in force."""
    given, options = case.inputs(dtype, device)
    floating = {name: t for name, t in options.items() if t.is_floating_point()}
    fixed = {name: t for name, t in options.items() if name not in floating}

    def called(function):
        return lambda q, k, v, *others: function(q, k, v, **dict(zip(floating, others, strict=True)), **fixed)

    grad_scale = 1.0
    if case.bias in (20.0, -30.0):  # a half type holds the gradients of large numbers only
        grad_scale = 512.0
        with torch.no_grad():
            given[2].mul_(256)
    tolerance = tolerance or TOLERANCES[dtype]
    if case.bias == -30.0 and dtype == torch.float32:
        tolerance = 3e-6  # a score of -30 is itself rounded by as much
    check(called(case.ours), called(case.oracle), [*given, *floating.values()], tolerance, grad_scale)
