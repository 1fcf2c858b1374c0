"""Sigmoid attention as a block of a model."""

from __future__ import annotations

import torch

from sigtorch import _checks
from sigtorch.ops.attention.functions import sigmoid_attention
from sigtorch.ops.gates import sigmoid_gate


class SigmoidAttention(torch.nn.Module):
    """Self-attention of several heads by :func:`sigtorch.sigmoid_attention`, between linear layers.

    Computes ``out_proj(sigmoid_gate(attention, gate_proj(x)))``, or without a gate ``out_proj(attention)``.

    Args:
        embed_dim: features of the input and of the output.
        num_heads: how many heads of queries there are; they divide ``embed_dim``.
        num_kv_heads: how many heads of keys and values there are, ``num_heads`` by default, which they divide.
        bias: whether the linear layers have biases.
        is_causal: whether no row sees those behind it.
        gate: whether a layer ``gate_proj`` gates each number of the attention's output.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: a size that is no whole number.
        ValueError: heads that do not divide what they should.

    Example:
        >>> attention = sigtorch.nn.SigmoidAttention(32, 4, num_kv_heads=2, is_causal=True, gate=True)
        >>> attention(torch.randn(2, 10, 32)).shape
        torch.Size([2, 10, 32])

    Source:
        See :func:`sigtorch.sigmoid_attention`; for the gate, Qiu et al., "Gated Attention for Large Language Models", 2025,
        arXiv:2505.06708.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        is_causal: bool = False,
        gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = "SigmoidAttention()"
        self.embed_dim = _checks.check_whole(where, "embed_dim", embed_dim)
        self.num_heads = _checks.check_whole(where, "num_heads", num_heads)
        self.num_kv_heads = (
            num_heads if num_kv_heads is None else _checks.check_whole(where, "num_kv_heads", num_kv_heads)
        )
        if self.num_heads < 1 or self.embed_dim < 1 or self.embed_dim % self.num_heads:
            raise ValueError(f"{where}: num_heads={num_heads} must divide embed_dim={embed_dim}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"{where}: num_kv_heads={num_kv_heads} must divide num_heads={num_heads}")
        self.is_causal = _checks.check_flag(where, "is_causal", is_causal)
        gate = _checks.check_flag(where, "gate", gate)
        self.head_dim = self.embed_dim // self.num_heads
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.in_proj = torch.nn.Linear(embed_dim, width, bias, device, dtype)
        self.gate_proj = torch.nn.Linear(embed_dim, embed_dim, bias, device, dtype) if gate else None
        self.out_proj = torch.nn.Linear(embed_dim, embed_dim, bias, device, dtype)

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *,
        attn_bias: float | torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps (..., n, embed_dim) to that shape; the other arguments are those of :func:`sigtorch.sigmoid_attention`.

        ``attn_bias`` is its bias.
        """
        if x.dim() < 2:
            raise ValueError(f"SigmoidAttention(): x must have shape (..., n, {self.embed_dim}), got {tuple(x.shape)}")
        heads = self.in_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)
        query, key, value = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], -3)
        out = sigmoid_attention(
            query, key, value, attn_mask, is_causal=self.is_causal, bias=attn_bias, alibi_slopes=alibi_slopes,
            enable_gqa=True,
        )  # fmt: skip
        out = out.transpose(-2, -3).flatten(-2)
        return self.out_proj(out if self.gate_proj is None else sigmoid_gate(out, self.gate_proj(x)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Returns the sizes and the options."""
        return _checks.shown(
            embed_dim=self.embed_dim, num_heads=self.num_heads, num_kv_heads=self.num_kv_heads,
            bias=self.out_proj.bias is not None, is_causal=self.is_causal, gate=self.gate_proj is not None,
        )  # fmt: skip
