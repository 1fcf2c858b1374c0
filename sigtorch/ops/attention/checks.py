"""Checks of the arguments of sigmoid attention: each error is one line that quotes what was seen."""

from __future__ import annotations

from typing import Any

import torch

from sigtorch import _checks, _eligible


def check_heads(where: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dims: str) -> None:
    """Checks query, key and value, whose last three dimensions are named by ``dims``, but for how many heads they have."""
    given = {"query": query, "key": key, "value": value}
    for name, t in given.items():
        _check_tensor(where, name, t)
        if t.dim() < 3:
            raise ValueError(f"{where}: {name} must have shape {dims}, got {tuple(t.shape)}")
    if not query.dtype == key.dtype == value.dtype and len({dtype_after_autocast(t) for t in given.values()}) > 1:
        seen = ", ".join(f"{name} {t.dtype}" for name, t in given.items())
        raise TypeError(f"{where}: query, key and value must have one dtype, got {seen}")
    if not query.device == key.device == value.device:
        raise _checks.error_several_devices(where, **given)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"{where}: query and key must have one head dimension, got {query.shape[-1]} in query {tuple(query.shape)} "
            f"and {key.shape[-1]} in key {tuple(key.shape)}"
        )


def dtype_after_autocast(t: torch.Tensor) -> torch.dtype:
    """Returns the dtype that autocast, if it is on, rounds a tensor to: float64 stays."""
    device = t.device.type
    if t.dtype == torch.float64 or not _eligible.knows_autocast(device) or not _eligible.autocasts(device):
        return t.dtype
    return torch.get_autocast_dtype(device)


def check_key_heads(where: str, heads: int, key_heads: int, value_heads: int, enable_gqa: bool) -> None:
    if key_heads != value_heads:
        raise ValueError(f"{where}: key and value must have as many heads, got {key_heads} and {value_heads}")
    if heads == key_heads:
        return
    if not enable_gqa:
        raise ValueError(f"{where}: {heads} heads of query and {key_heads} of key need enable_gqa=True")
    if not key_heads or heads % key_heads:
        raise ValueError(f"{where}: the heads of key, {key_heads}, must divide those of query, {heads}")


def check_keys(where: str, key: torch.Tensor, value: torch.Tensor, axis: int) -> None:
    if key.shape[axis] != value.shape[axis]:
        raise ValueError(
            f"{where}: value must have a row for each key, got key {tuple(key.shape)} and value {tuple(value.shape)}"
        )


def check_batches(where: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    if query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        return
    try:
        torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    except RuntimeError:
        seen = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"{where}: the dimensions before the heads must broadcast, got {seen}") from None


def check_mask(where: str, mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> None:
    _check_dense(where, "attn_mask", mask)
    if is_causal:
        raise ValueError(f"{where}: give attn_mask or is_causal=True, not both")
    if mask.dtype != torch.bool and mask.dtype not in _checks.FLOATS:
        raise TypeError(f"{where}: attn_mask must be bool or floating point, got {mask.dtype}")
    shape = (*query.shape[:-1], key.shape[-2])
    ahead = len(shape) - mask.dim()
    if ahead < 0 or any(m not in (1, n) for m, n in zip(mask.shape, shape[ahead:], strict=True)):
        raise ValueError(f"{where}: attn_mask must broadcast to {tuple(shape)}, got {tuple(mask.shape)}")
    _check_device(where, "attn_mask", mask, query)


def check_bias(where: str, bias: Any, query: torch.Tensor, heads: int) -> None:
    """Takes a number, or a tensor of one for all heads or of one for each."""
    if not isinstance(bias, torch.Tensor):
        _checks.check_number(where, bias=bias)
        return
    _check_tensor(where, "bias", bias)
    if bias.dim() and tuple(bias.shape) != (heads,):
        raise ValueError(
            f"{where}: bias must be a number, a 0-d tensor or of shape ({heads},), one number a head, "
            f"got shape {tuple(bias.shape)}"
        )
    _check_device(where, "bias", bias, query)


def check_slopes(where: str, slopes: torch.Tensor, query: torch.Tensor, heads: int) -> None:
    _check_tensor(where, "alibi_slopes", slopes)
    if tuple(slopes.shape) != (heads,):
        raise ValueError(
            f"{where}: alibi_slopes must have shape ({heads},), one number a head, got {tuple(slopes.shape)}"
        )
    _check_device(where, "alibi_slopes", slopes, query)


def check_cu_seqlens(where: str, name: str, cu_seqlens: torch.Tensor, query: torch.Tensor) -> None:
    _check_dense(where, name, cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{where}: {name} must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or not cu_seqlens.shape[0]:
        raise ValueError(f"{where}: {name} must have shape (sequences + 1,), got {tuple(cu_seqlens.shape)}")
    _check_device(where, name, cu_seqlens, query)


def check_as_many(where: str, cu_q: torch.Tensor, cu_k: torch.Tensor) -> None:
    if cu_q.shape != cu_k.shape:
        raise ValueError(
            f"{where}: cu_seqlens_q and cu_seqlens_k must be of as many sequences, "
            f"got {tuple(cu_q.shape)} and {tuple(cu_k.shape)}"
        )


def check_lengths(where: str, name: str, cu_seqlens: torch.Tensor, total: int, longest: int) -> None:
    """Checks the values: those of a CUDA device by an assertion there, which the host does not wait for."""
    lengths = cu_seqlens.diff()
    right = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == total) & (lengths >= 0).all() & (lengths <= longest).all()
    if not _eligible.readable(cu_seqlens) or cu_seqlens.is_cuda:
        torch._assert_async(right, f"{where}: {name} must rise from 0 to {total} by at most {longest}")
    elif not right:
        raise ValueError(
            f"{where}: {name} must rise from 0 to {total}, the rows, by at most {longest}, the longest sequence, "
            f"got {_shortened(cu_seqlens)}"
        )


def _shortened(t: torch.Tensor) -> str:
    values = [str(v) for v in t[:8].tolist()]
    return f"[{', '.join(values)}{', ...' if t.shape[0] > 8 else ''}]"


def _check_tensor(where: str, name: str, t: Any) -> None:
    """Takes a dense floating tensor."""
    _check_dense(where, name, t)
    _checks.check_floating(where, name, t)


def _check_dense(where: str, name: str, t: Any) -> None:
    if type(t) is not torch.Tensor:
        _checks.check_tensors(where, **{name: t})
    if t.is_nested or t.layout != torch.strided:
        raise TypeError(f"{where}: {name} must be a dense tensor, got {'a nested one' if t.is_nested else t.layout}")


def _check_device(where: str, name: str, t: torch.Tensor, query: torch.Tensor) -> None:
    if t.device != query.device:
        raise _checks.error_several_devices(where, query=query, **{name: t})
