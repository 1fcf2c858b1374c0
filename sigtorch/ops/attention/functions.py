"""The public functions of sigmoid attention: they check their arguments, and choose what runs."""

from __future__ import annotations

from typing import Any

import torch

from sigtorch import _checks
from sigtorch._backend import select
from sigtorch._eligible import plain
from sigtorch.ops.attention import checks
from sigtorch.ops.attention.formula import Settings, Tensors, whole
from sigtorch.ops.attention.function import OP, SigmoidAttentionFunction, fuses


def sigmoid_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    bias: float | torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    r"""Computes attention whose weights are sigmoids: :math:`\sigma(\text{scale} \cdot q k^T + \text{bias}) v`.

    Its arguments are those of :func:`torch.nn.functional.scaled_dot_product_attention` without dropout; those after
    ``attn_mask`` are keywords, and tensors have a dimension of heads. A weight depends on one query and one key alone: no row
    is normalised.

    Args:
        query: of shape (..., heads, n_queries, d), in float16, bfloat16, float32 or float64.
        key: of shape (..., heads, n_keys, d) and query's dtype.
        value: of shape (..., heads, n_keys, d_value) and query's dtype.
        attn_mask: broadcast to (..., heads, n_queries, n_keys). A boolean one is True where a query sees a key; a floating one
            is added to the scores. The formula runs it, not the kernels.
        is_causal: whether query i sees keys up to key i alone, counted from the first of both.
        scale: of the products; :math:`1 / \sqrt{d}` by default.
        bias: added to the scores: a number, or a tensor, 0-d or of shape (heads,). By default :math:`-\log n_{keys}`, at which
            the weights of a row add up to about 1.
        alibi_slopes: of shape (heads,): slope times \|i + n_keys - n_queries - j\| is subtracted from the score of query i
            and key j.
        enable_gqa: whether key and value may have fewer heads, each for as many neighbouring heads of query.

    Returns:
        A tensor of shape (..., heads, n_queries, d_value), of query's dtype, or under autocast of autocast's. Zeros if there
        are no keys. Query, key and value are kept for backward, and a mask, bias or slopes that are tensors; no matrix of
        weights is. Masks, float64, and head dimensions above 256 take PyTorch's operators, in chunks of queries.
        In half precision, a weight below :math:`2^{-30}` may count as :math:`2^{-30}`.

    Raises:
        TypeError: no dense floating tensors, several dtypes, or a mask that is neither boolean nor floating.
        ValueError: shapes that do not fit, a mask with ``is_causal``, or tensors on several devices.

    Example:
        >>> q, k, v = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 1)
        >>> sigtorch.sigmoid_attention(q, k, v)  # 3 sigmoid(-log 3)
        tensor([[[[0.7500],
                  [0.7500]]]])
        >>> sigtorch.sigmoid_attention(q, k, v, is_causal=True, bias=0.0)
        tensor([[[[0.5000],
                  [1.0000]]]])

    Source:
        Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", ICLR 2025, arXiv:2409.04431; Press
        et al., "Train Short, Test Long: Attention with Linear Biases", ICLR 2022, arXiv:2108.12409.
    """
    where = "sigmoid_attention()"
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa)):
        _checks.check_flag(where, name, flag)
    checks.check_heads(where, query, key, value, "(..., heads, n, d)")
    heads = query.shape[-3]
    checks.check_key_heads(where, heads, key.shape[-3], value.shape[-3], enable_gqa)
    checks.check_keys(where, key, value, -2)
    checks.check_batches(where, query, key, value)
    if attn_mask is not None:
        checks.check_mask(where, attn_mask, query, key, is_causal)
    number, bias = _bias(where, bias, query, heads)
    if alibi_slopes is not None:
        checks.check_slopes(where, alibi_slopes, query, heads)
    settings = Settings(0, 0, is_causal, _scale(where, "scale", scale, query), number)
    batch = _batch(query, key, value)
    query, key, value, attn_mask = _with_one_batch(batch, query, key, value, attn_mask)
    out = _run(Tensors(query, key, value, attn_mask, bias, alibi_slopes), settings)
    return out if len(batch) == 1 else out.reshape(*batch, *out.shape[1:])


def sigmoid_attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    bias: float | torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Computes :func:`sigmoid_attention` of packed sequences, each by itself; arguments are those of flash-attention.

    Args:
        q: of shape (total_queries, heads, d), the sequences one behind the other.
        k: of shape (total_keys, key_heads, d) and q's dtype. Each of its heads serves heads / key_heads neighbours.
        v: of shape (total_keys, key_heads, d_value) and q's dtype.
        cu_seqlens_q: int32, of shape (sequences + 1,): where each sequence of q begins, from 0, and where the last ends.
        cu_seqlens_k: the same of k and v.
        max_seqlen_q: the length of the longest sequence of q.
        max_seqlen_k: the same of k.
        causal: whether query i sees keys up to key i + n_keys - n_queries alone: the last query sees the last key. This is
            flash-attention's order; that of :func:`sigmoid_attention` is another where the lengths differ.
        softmax_scale: of the products, under flash-attention's name; :math:`1 / \sqrt{d}` by default.
        bias: as for :func:`sigmoid_attention`; by default :math:`-\log n_{keys}` of each sequence.
        alibi_slopes: as for :func:`sigmoid_attention`.

    Returns:
        A tensor of shape (total_queries, heads, d_value) and q's dtype. Zeros for a sequence without keys.

    Raises:
        TypeError: as for :func:`sigmoid_attention`, or ``cu_seqlens`` that are not int32.
        ValueError: shapes that do not fit, or ``cu_seqlens`` that do not rise from 0 to the number of rows, by at most the
            longest length. On a CUDA device an assertion checks this, and stops the program later.

    Example:
        >>> q, k, v = torch.zeros(3, 1, 4), torch.zeros(3, 1, 4), torch.ones(3, 1, 1)
        >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
        >>> sigtorch.sigmoid_attention_varlen(q, k, v, cu_seqlens, cu_seqlens, 2, 2).flatten()
        tensor([0.5000, 0.6667, 0.6667])

    Source:
        See :func:`sigmoid_attention`.
    """
    where = "sigmoid_attention_varlen()"
    _checks.check_flag(where, "causal", causal)
    checks.check_heads(where, q, k, v, "(total, heads, d)")
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != 3:
            raise ValueError(f"{where}: {name} must have shape (total, heads, d), got {tuple(t.shape)}")
    heads = q.shape[1]
    checks.check_key_heads(where, heads, k.shape[1], v.shape[1], True)
    checks.check_keys(where, k, v, 0)
    checks.check_cu_seqlens(where, "cu_seqlens_q", cu_seqlens_q, q)
    checks.check_cu_seqlens(where, "cu_seqlens_k", cu_seqlens_k, q)
    checks.check_as_many(where, cu_seqlens_q, cu_seqlens_k)
    max_seqlen_q = _checks.check_whole(where, "max_seqlen_q", max_seqlen_q)
    max_seqlen_k = _checks.check_whole(where, "max_seqlen_k", max_seqlen_k)
    checks.check_lengths(where, "cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
    checks.check_lengths(where, "cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
    number, bias = _bias(where, bias, q, heads)
    if alibi_slopes is not None:
        checks.check_slopes(where, alibi_slopes, q, heads)
    scale = _scale(where, "softmax_scale", softmax_scale, q)
    tensors = Tensors(q, k, v, None, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k)
    return _run(tensors, Settings(max_seqlen_q, max_seqlen_k, causal, scale, number))


def _bias(where: str, bias: Any, query: torch.Tensor, heads: int) -> tuple[float | None, torch.Tensor | None]:
    """Returns the bias as a number and as a tensor, one of which is added to the other."""
    if bias is None:
        return None, None
    checks.check_bias(where, bias, query, heads)
    return (0.0, bias) if isinstance(bias, torch.Tensor) else (float(bias), None)


def _scale(where: str, name: str, scale: Any, query: torch.Tensor) -> float:
    if scale is None:
        return float(max(query.shape[-1], 1)) ** -0.5
    _checks.check_constant(where, f"; multiply {'query' if name == 'scale' else 'q'} by it instead", **{name: scale})
    return float(scale)


def _batch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Size:
    """Returns the shape to which the dimensions before the heads broadcast."""
    shapes = query.shape[:-3], key.shape[:-3], value.shape[:-3]
    return shapes[0] if shapes[0] == shapes[1] == shapes[2] else torch.broadcast_shapes(*shapes)


def _with_one_batch(
    batch: torch.Size, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns the tensors expanded to the shape ``batch``, as one dimension of batches."""
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3] == batch:
        query, key, value = (t.expand(*batch, *t.shape[-3:]) for t in (query, key, value))
    if len(batch) != 1:
        query, key, value = (t.reshape(-1, *t.shape[-3:]) for t in (query, key, value))
        if mask is not None and mask.dim() > 3:
            mask = mask.expand(*batch, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
    if mask is not None and mask.dim() < 2:
        mask = mask.reshape(1, -1)
    return query, key, value, mask


def _run(tensors: Tensors, settings: Settings) -> torch.Tensor:
    query, key, value, *others = _autocast(tensors)
    tensors = Tensors(query, key, value, *others)  # Dynamo in torch 2.8 cannot take a slice of it
    given = [t for t in others if t is not None]
    runner = select(query, key, value, beside=given, cpu_pass=True, opaque=True)
    if runner == "compiled":
        return getattr(torch.ops.sigtorch, OP).default(*tensors, *settings)  # type: ignore[no-any-return]
    if runner == "aten" and not plain(query, key, value, *given):
        return whole(tensors, settings)
    if runner == "triton" and not fuses(tensors):
        runner = "aten"
    return SigmoidAttentionFunction.apply(*tensors, *settings, runner)  # type: ignore[no-any-return]


def _autocast(tensors: Tensors) -> Tensors:
    """Rounds query, key and value as autocast does those of PyTorch's function."""
    query, key, value, *others = tensors
    dtype = checks.dtype_after_autocast(query)
    return Tensors(query.to(dtype), key.to(dtype), value.to(dtype), *others)
