"""The kernels of sigmoid attention: forward, the gradient of queries, and the gradients of keys and values.

A program owns what it writes, so no sum is atomic. Rows behind the last are read as zeros, and add nothing: a weight's value
there times 0. So only causality masks scores. Exponents are of two, with their sign changed: a weight is 1 / (1 + 2^t).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sigtorch.kernels._attention_math import dot, product_of_weights, slopes_of_scores, steps, weights
from sigtorch.kernels._math import LOG2_E, rounded


class Form(NamedTuple):
    """Properties that a kernel is compiled for."""

    d: int
    dv: int
    group: int  # heads of queries that share one of keys
    packed: bool
    causal: bool
    has_number: bool  # a bias that is a number; if not, it is -log(n_keys)
    has_bias: bool  # a tensor, added
    has_slopes: bool
    full_queries: bool  # the queries of each block are all there
    full_keys: bool
    grouped: bool  # one reciprocal for four weights
    tf32: bool


class Block(NamedTuple):
    """The sizes of a program's blocks, powers of two."""

    queries: int
    keys: int
    d: int
    dv: int


@triton.jit
def _load(ptr, first, stride, n, ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """Returns rows of a matrix from the first on, as zeros behind its end."""
    i, d = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    at = ptr + (tl.zeros([], tl.int64) + first) * stride + (i * stride + d)
    if FULL and D == BLOCK:
        return tl.load(at)
    else:
        return tl.load(at, mask=(i < n - first) & (d < D), other=0.0)


@triton.jit
def _store(ptr, x, first, stride, n, ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    i, d = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    at = ptr + (tl.zeros([], tl.int64) + first) * stride + (i * stride + d)
    x = rounded(x, ptr.dtype.element_ty)
    if FULL and D == BLOCK:
        tl.store(at, x)
    else:
        tl.store(at, x, mask=(i < n - first) & (d < D))


@triton.jit
def _at_head(ptr, batch, head, first, batch_stride, head_stride, stride):
    """Returns where a head's first row is."""
    return ptr + (batch.to(tl.int64) * batch_stride + head.to(tl.int64) * head_stride + first.to(tl.int64) * stride)


@triton.jit
def _sequence(cu_q_ptr, cu_k_ptr, batch, queries, keys, FORM: tl.constexpr):
    """Returns a sequence's first query and key, and how many it has of each."""
    first_q = tl.zeros([], tl.int32)
    first_k = tl.zeros([], tl.int32)
    if FORM.packed:
        first_q, first_k = tl.load(cu_q_ptr + batch), tl.load(cu_k_ptr + batch)
        queries = tl.load(cu_q_ptr + batch + 1) - first_q
        keys = tl.load(cu_k_ptr + batch + 1) - first_k
    return first_q, first_k, queries, keys


@triton.jit
def _seen_keys(m, offset, keys, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """Returns up to where every query of a block from m on sees the keys, in whole blocks, and up to where some do."""
    all_see, some_see = keys, keys
    if FORM.causal:
        all_see = tl.minimum(keys, tl.maximum(0, m + offset + 1)) // BLOCK.keys * BLOCK.keys
        some_see = tl.minimum(keys, tl.maximum(0, m + offset + BLOCK.queries))
    return all_see, some_see


@triton.jit
def _shift_and_slope(number, bias_ptr, slopes_ptr, head, keys, FORM: tl.constexpr):
    """Returns what is added to the exponents of a head, and what the distance multiplies."""
    shift = number * -LOG2_E if FORM.has_number else tl.log2(tl.maximum(keys, 1).to(tl.float32))
    slope = 0.0
    if FORM.has_bias:
        shift += tl.load(bias_ptr + head) * -LOG2_E
    if FORM.has_slopes:
        slope = tl.load(slopes_ptr + head) * LOG2_E
    return shift, slope


@triton.jit
def _weights(products, factor, shift, slope, i, j, ahead, offset, CAUSAL: tl.constexpr, FORM: tl.constexpr):
    """Returns the weights p of products of queries i and keys j, and 1 - p; p is 0 where CAUSAL hides a key."""
    t = products * factor + shift
    if FORM.has_slopes:
        t += slope * tl.abs(i + ahead - j).to(tl.float32)
    if CAUSAL:
        seen = i + offset >= j
        t = tl.where(seen, t, 0.0)  # or a NaN that is hidden would spread over a group
        p, rest = weights(t, FORM.grouped)
        return tl.where(seen, p, 0.0), rest
    else:
        return weights(t, FORM.grouped)


@triton.jit
def _forward_part(
    total, q, k_ptr, v_ptr, start, stop, i, k_stride, v_stride, keys, factor, shift, slope, ahead, offset,
    CAUSAL: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the values of keys from start to stop, by their weights."""
    for n in steps(start, stop, BLOCK.keys):
        j = n + tl.arange(0, BLOCK.keys)
        k = _load(k_ptr, n, k_stride, keys, BLOCK.keys, FORM.d, BLOCK.d, FORM.full_keys)
        products = dot(q, k.T, None, FORM.tf32)
        p, _ = _weights(products, factor, shift, slope, i[:, None], j[None, :], ahead, offset, CAUSAL, FORM)
        v = _load(v_ptr, n, v_stride, keys, BLOCK.keys, FORM.dv, BLOCK.dv, FORM.full_keys)
        total = product_of_weights(p, v, total, FORM.tf32)
    return total


@triton.jit(do_not_specialize=["blocks", "heads", "queries", "keys"])
def _forward_kernel(
    inputs, outputs, strides, blocks, heads, queries, keys, FORM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    q_ptr, k_ptr, v_ptr, bias_ptr, slopes_ptr, cu_q_ptr, cu_k_ptr, scale, number = inputs
    out_ptr = outputs[0]
    qb, qh, qs, kb, kh, ks, vb, vh, vs, ob, oh, os = strides
    batch, head = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    QUERIES: tl.constexpr = BLOCK.queries
    WIDTH: tl.constexpr = BLOCK.dv
    m = tl.program_id(0) % blocks * QUERIES
    first_q, first_k, queries, keys = _sequence(cu_q_ptr, cu_k_ptr, batch, queries, keys, FORM)
    if m < queries:
        shift, slope = _shift_and_slope(number, bias_ptr, slopes_ptr, head, keys, FORM)
        q_ptr = _at_head(q_ptr, batch, head, first_q, qb, qh, qs)
        k_ptr = _at_head(k_ptr, batch, head // FORM.group, first_k, kb, kh, ks)
        v_ptr = _at_head(v_ptr, batch, head // FORM.group, first_k, vb, vh, vs)
        out_ptr = _at_head(out_ptr, batch, head, first_q, ob, oh, os)
        i = m + tl.arange(0, BLOCK.queries)
        ahead = keys - queries
        offset = ahead if FORM.packed else 0
        factor = scale * -LOG2_E
        q = _load(q_ptr, m, qs, queries, BLOCK.queries, FORM.d, BLOCK.d, FORM.full_queries)
        total = tl.zeros([QUERIES, WIDTH], tl.float32)
        all_see, some_see = _seen_keys(m, offset, keys, FORM, BLOCK)
        total = _forward_part(
            total, q, k_ptr, v_ptr, 0, all_see, i, ks, vs, keys, factor, shift, slope, ahead, offset, False, FORM, BLOCK
        )
        if FORM.causal:
            total = _forward_part(
                total, q, k_ptr, v_ptr, all_see, some_see, i, ks, vs, keys, factor, shift, slope, ahead, offset, True,
                FORM, BLOCK,
            )  # fmt: skip
        _store(out_ptr, total, m, os, queries, BLOCK.queries, FORM.dv, BLOCK.dv, FORM.full_queries)


@triton.jit
def _queries_part(
    grad_q, grad_bias, q, grad, k_ptr, v_ptr, start, stop, i, k_stride, v_stride, keys, factor, shift, slope, ahead,
    offset, CAUSAL: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the gradients of a block of queries, and of the bias by query, over keys from start to stop."""
    for n in steps(start, stop, BLOCK.keys):
        j = n + tl.arange(0, BLOCK.keys)
        k = _load(k_ptr, n, k_stride, keys, BLOCK.keys, FORM.d, BLOCK.d, FORM.full_keys)
        v = _load(v_ptr, n, v_stride, keys, BLOCK.keys, FORM.dv, BLOCK.dv, FORM.full_keys)
        products = dot(q, k.T, None, FORM.tf32)
        slope_of_weight = dot(grad, v.T, None, FORM.tf32)
        p, rest = _weights(products, factor, shift, slope, i[:, None], j[None, :], ahead, offset, CAUSAL, FORM)
        slopes = slopes_of_scores(p, rest, slope_of_weight, FORM.grouped)
        if FORM.has_bias:
            grad_bias += tl.sum(slopes, 1)
        grad_q = product_of_weights(slopes, k, grad_q, FORM.tf32)
    return grad_q, grad_bias


@triton.jit(do_not_specialize=["blocks", "heads", "queries", "keys"])
def _queries_kernel(
    inputs, outputs, strides, blocks, heads, queries, keys, FORM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Writes the gradient of queries, and a part of the bias' gradient for each program, 0 where it has no query."""
    grad_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, slopes_ptr, cu_q_ptr, cu_k_ptr, scale, number = inputs
    grad_q_ptr, parts_ptr = outputs
    gb, gh, gs, qb, qh, qs, kb, kh, ks, vb, vh, vs, ob, oh, os = strides
    batch, head = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    QUERIES: tl.constexpr = BLOCK.queries
    WIDTH: tl.constexpr = BLOCK.d
    m = tl.program_id(0) % blocks * QUERIES
    first_q, first_k, queries, keys = _sequence(cu_q_ptr, cu_k_ptr, batch, queries, keys, FORM)
    part = 0.0
    if m < queries:
        shift, slope = _shift_and_slope(number, bias_ptr, slopes_ptr, head, keys, FORM)
        q_ptr = _at_head(q_ptr, batch, head, first_q, qb, qh, qs)
        grad_ptr = _at_head(grad_ptr, batch, head, first_q, gb, gh, gs)
        k_ptr = _at_head(k_ptr, batch, head // FORM.group, first_k, kb, kh, ks)
        v_ptr = _at_head(v_ptr, batch, head // FORM.group, first_k, vb, vh, vs)
        grad_q_ptr = _at_head(grad_q_ptr, batch, head, first_q, ob, oh, os)
        i = m + tl.arange(0, BLOCK.queries)
        ahead = keys - queries
        offset = ahead if FORM.packed else 0
        factor = scale * -LOG2_E
        q = _load(q_ptr, m, qs, queries, BLOCK.queries, FORM.d, BLOCK.d, FORM.full_queries)
        grad = _load(grad_ptr, m, gs, queries, BLOCK.queries, FORM.dv, BLOCK.dv, FORM.full_queries)
        grad_q = tl.zeros([QUERIES, WIDTH], tl.float32)
        grad_bias = tl.zeros([QUERIES], tl.float32)
        all_see, some_see = _seen_keys(m, offset, keys, FORM, BLOCK)
        grad_q, grad_bias = _queries_part(
            grad_q, grad_bias, q, grad, k_ptr, v_ptr, 0, all_see, i, ks, vs, keys, factor, shift, slope, ahead, offset,
            False, FORM, BLOCK,
        )  # fmt: skip
        if FORM.causal:
            grad_q, grad_bias = _queries_part(
                grad_q, grad_bias, q, grad, k_ptr, v_ptr, all_see, some_see, i, ks, vs, keys, factor, shift, slope,
                ahead, offset, True, FORM, BLOCK,
            )  # fmt: skip
        _store(grad_q_ptr, grad_q * scale, m, os, queries, BLOCK.queries, FORM.d, BLOCK.d, FORM.full_queries)
        if FORM.has_bias:
            part = tl.sum(grad_bias, 0)
    if FORM.has_bias:
        tl.store(parts_ptr + tl.program_id(0), part)


@triton.jit
def _keys_part(
    grad_k, grad_v, k, v, q_ptr, grad_ptr, start, stop, j, q_stride, grad_stride, queries, factor, shift, slope, ahead,
    offset, CAUSAL: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the gradients of a block of keys and values over queries from start to stop."""
    for m in steps(start, stop, BLOCK.queries):
        i = m + tl.arange(0, BLOCK.queries)
        q = _load(q_ptr, m, q_stride, queries, BLOCK.queries, FORM.d, BLOCK.d, FORM.full_queries)
        grad = _load(grad_ptr, m, grad_stride, queries, BLOCK.queries, FORM.dv, BLOCK.dv, FORM.full_queries)
        products = dot(k, q.T, None, FORM.tf32)
        p, rest = _weights(products, factor, shift, slope, i[None, :], j[:, None], ahead, offset, CAUSAL, FORM)
        grad_v = product_of_weights(p, grad, grad_v, FORM.tf32)
        slope_of_weight = dot(v, grad.T, None, FORM.tf32)
        slopes = slopes_of_scores(p, rest, slope_of_weight, FORM.grouped)
        grad_k = product_of_weights(slopes, q, grad_k, FORM.tf32)
    return grad_k, grad_v


@triton.jit(do_not_specialize=["blocks", "heads", "queries", "keys"])
def _keys_kernel(
    inputs, outputs, strides, blocks, heads, queries, keys, FORM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Writes the gradients of keys and values, each summed over the heads of queries that share it."""
    grad_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, slopes_ptr, cu_q_ptr, cu_k_ptr, scale, number = inputs
    grad_k_ptr, grad_v_ptr = outputs
    gb, gh, gs, qb, qh, qs, kb, kh, ks, vb, vh, vs, ob, oh, os, pb, ph, ps = strides
    batch, key_head = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    KEYS: tl.constexpr = BLOCK.keys
    WIDTH: tl.constexpr = BLOCK.d
    WIDTH_OF_VALUES: tl.constexpr = BLOCK.dv
    n = tl.program_id(0) % blocks * KEYS
    first_q, first_k, queries, keys = _sequence(cu_q_ptr, cu_k_ptr, batch, queries, keys, FORM)
    if n < keys:
        k_ptr = _at_head(k_ptr, batch, key_head, first_k, kb, kh, ks)
        v_ptr = _at_head(v_ptr, batch, key_head, first_k, vb, vh, vs)
        grad_k_ptr = _at_head(grad_k_ptr, batch, key_head, first_k, ob, oh, os)
        grad_v_ptr = _at_head(grad_v_ptr, batch, key_head, first_k, pb, ph, ps)
        j = n + tl.arange(0, BLOCK.keys)
        ahead = keys - queries
        offset = ahead if FORM.packed else 0
        factor = scale * -LOG2_E
        k = _load(k_ptr, n, ks, keys, BLOCK.keys, FORM.d, BLOCK.d, FORM.full_keys)
        v = _load(v_ptr, n, vs, keys, BLOCK.keys, FORM.dv, BLOCK.dv, FORM.full_keys)
        grad_k = tl.zeros([KEYS, WIDTH], tl.float32)
        grad_v = tl.zeros([KEYS, WIDTH_OF_VALUES], tl.float32)
        # Queries from here on see some of the block's keys, and all of them.
        some_see, all_see = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
        if FORM.causal:
            some_see = tl.maximum(0, n - offset) // BLOCK.queries * BLOCK.queries
            all_see = tl.cdiv(tl.maximum(0, n + BLOCK.keys - 1 - offset), BLOCK.queries) * BLOCK.queries
        for number_in_group in range(FORM.group):
            head = key_head * FORM.group + number_in_group
            shift, slope = _shift_and_slope(number, bias_ptr, slopes_ptr, head, keys, FORM)
            q_at = _at_head(q_ptr, batch, head, first_q, qb, qh, qs)
            grad_at = _at_head(grad_ptr, batch, head, first_q, gb, gh, gs)
            if FORM.causal:
                grad_k, grad_v = _keys_part(
                    grad_k, grad_v, k, v, q_at, grad_at, some_see, tl.minimum(all_see, queries), j, qs, gs, queries,
                    factor, shift, slope, ahead, offset, True, FORM, BLOCK,
                )  # fmt: skip
            grad_k, grad_v = _keys_part(
                grad_k, grad_v, k, v, q_at, grad_at, all_see, queries, j, qs, gs, queries, factor, shift, slope, ahead,
                offset, False, FORM, BLOCK,
            )  # fmt: skip
        _store(grad_k_ptr, grad_k * scale, n, os, keys, BLOCK.keys, FORM.d, BLOCK.d, FORM.full_keys)
        _store(grad_v_ptr, grad_v, n, ps, keys, BLOCK.keys, FORM.dv, BLOCK.dv, FORM.full_keys)
