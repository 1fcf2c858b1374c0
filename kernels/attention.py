"""Forward and backward passes of sigmoid attention. Views with neighbours along their last dimension are read in place."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from sigtorch.kernels._attention import Block, Form, _forward_kernel, _keys_kernel, _queries_kernel
from sigtorch.kernels._plan import Call, plan

# A weight of a group of four is no smaller than 2^-30, and 1 - p is a difference, which loses its digits where p is nearly 1.
LEAST_BIAS, LARGEST_BIAS = -12.0, 3.0
GROUPED_SCORES = 8  # of a thread at least: fewer would be grouped with what is undefined
SMALLEST_TILE = 16  # of what tensor cores multiply
ROOMY = 200 * 2**10  # bytes of a program's shared memory, for large tiles


class Tile(NamedTuple):
    """The shape of a program's tile of scores, and how it is compiled."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the kernels."""

    forward: Tile
    of_queries: Tile
    of_keys: Tile


# By the largest head dimension that they serve. Chosen by machine code: few instructions a score, no spills where none are
# needed, few seconds to compile. The large ones take the shared memory of an H100, the others less than 99 KiB.
LARGE_TILES = {
    64: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    256: Tiles(Tile(128, 64, 8, 2), Tile(128, 32, 8, 1), Tile(64, 64, 8, 1)),
}
SMALL_TILES = {
    64: Tiles(Tile(128, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    128: Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 1), Tile(64, 64, 8, 1)),
    256: Tiles(Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
}
TF32_TILES = {
    64: Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1)),
    128: Tiles(Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    256: Tiles(Tile(32, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}
FLOAT_TILES = {  # without tensor cores
    64: Tiles(Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    128: Tiles(Tile(32, 16, 8, 1), Tile(32, 16, 8, 1), Tile(16, 32, 8, 1)),
    256: Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
}


class Sizes(NamedTuple):
    """The sizes of a call."""

    batches: int  # or packed sequences
    heads: int
    key_heads: int
    queries: int  # of a sequence, or of the longest
    keys: int
    d: int
    dv: int


class Options(NamedTuple):
    """The tensors that a call may have beside q, k and v, as kernels read them: a number by head, and without gaps."""

    bias: torch.Tensor | None
    slopes: torch.Tensor | None
    cu_q: torch.Tensor | None
    cu_k: torch.Tensor | None


def _sizes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor | None, longest: tuple[int, int]
) -> Sizes:
    if cu_q is not None:
        return Sizes(cu_q.shape[0] - 1, q.shape[1], k.shape[1], *longest, q.shape[2], v.shape[2])
    return Sizes(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])


def _tiles(q: torch.Tensor, sizes: Sizes) -> Tiles:
    if q.dtype == torch.float32:
        of_dtype = TF32_TILES if _multiplies_in_tf32() else FLOAT_TILES
    else:
        of_dtype = LARGE_TILES if not q.is_cuda or _is_roomy(q.get_device()) else SMALL_TILES
    return next(tiles for largest, tiles in of_dtype.items() if max(sizes.d, sizes.dv) <= largest)


@cache
def _is_roomy(index: int) -> bool:
    """Tells whether large tiles fit into the shared memory of a CUDA device: from H100 on in data centres."""
    return torch.cuda.get_device_properties(index).shared_memory_per_block_optin >= ROOMY


def _multiplies_in_tf32() -> bool:
    """Tells whether PyTorch's settings let float32 products be rounded to tf32."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # where it is there, the old name may refuse to be read
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"


def _form(sizes: Sizes, tile: Tile, q: torch.Tensor, options: Options, causal: bool, number: float | None) -> Form:
    has_bias, has_slopes = options.bias is not None, options.slopes is not None
    is_float, is_packed = q.dtype == torch.float32, options.cu_q is not None
    level = -math.log(max(sizes.keys, 1)) if number is None else number
    is_usual = not (has_bias or has_slopes) and LEAST_BIAS <= level <= LARGEST_BIAS
    holds_groups = tile.queries * tile.keys >= GROUPED_SCORES * 32 * tile.warps
    return Form(
        sizes.d, sizes.dv, sizes.heads // sizes.key_heads, is_packed, causal, number is not None, has_bias,
        has_slopes, not is_packed and sizes.queries % tile.queries == 0,
        not is_packed and sizes.keys % tile.keys == 0, is_usual and holds_groups and not is_float,
        is_float and _multiplies_in_tf32(),
    )  # fmt: skip


def _dense(t: torch.Tensor) -> torch.Tensor:
    """Returns the tensor, copied if numbers of its last dimension are no neighbours."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _empty_like(t: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns an empty tensor with the strides of t where they suit."""
    if t.shape == shape:
        made = torch.empty_like(t)
        if made.stride(-1) == 1:
            return made
    return torch.empty(shape, dtype=t.dtype, device=t.device)


def _options(
    bias: torch.Tensor | None,
    slopes: torch.Tensor | None,
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
    heads: int,
) -> Options:
    by_head = (t if t is None else t.float().expand(heads).contiguous() for t in (bias, slopes))
    return Options(*by_head, *(t if t is None else t.contiguous() for t in (cu_q, cu_k)))


def _launch(
    kernel: Any, blocks_of: int, heads: int, tile: Tile, sizes: Sizes, form: Form, tensors: tuple[torch.Tensor, ...],
    options: Options, scale: float, number: float | None, outputs: tuple[torch.Tensor, ...],
) -> None:  # fmt: skip
    """Launches a program for each of so many blocks, of each head and batch."""
    programs = blocks_of * heads * sizes.batches
    if programs:
        # A 1 is not read.
        inputs = (*tensors, *(1 if t is None else t for t in options), scale, 0.0 if number is None else number)
        ready, operands = plan(_call, kernel, inputs, outputs, (blocks_of, heads, tile, sizes, form))
        ready.launch(operands, outputs)


def _call(
    kernel: Any, inputs: tuple[Any, ...], outputs: tuple[torch.Tensor, ...], blocks: int, heads: int, tile: Tile,
    sizes: Sizes, form: Form,
) -> Call:  # fmt: skip
    block = Block(tile.queries, tile.keys, _power_of_2(sizes.d), _power_of_2(sizes.dv))
    matrices = [t for t in (*inputs, *outputs) if isinstance(t, torch.Tensor) and t.dim() >= 3]
    strides = tuple(s for t in matrices for s in (t.stride() if t.dim() == 4 else (0, t.stride(1), t.stride(0)))[:3])
    arguments = strides, blocks, heads, sizes.queries, sizes.keys, form, block
    grid = (blocks * heads * sizes.batches, 1, 1)
    return Call(kernel, grid, arguments, warps=tile.warps, options=(("num_stages", tile.stages),))


def _power_of_2(size: int) -> int:
    return max(SMALLEST_TILE, triton.next_power_of_2(size))  # type: ignore[no-any-return]


def sigmoid_attention_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None, bias: torch.Tensor | None,
    slopes: torch.Tensor | None, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None, longest_q: int, longest_k: int,
    causal: bool, scale: float, number: float | None,
) -> torch.Tensor:  # fmt: skip
    q, k, v = _dense(q), _dense(k), _dense(v)
    out = _empty_like(q, (*q.shape[:-1], v.shape[-1]))
    sizes = _sizes(q, k, v, cu_q, (longest_q, longest_k))
    options = _options(bias, slopes, cu_q, cu_k, sizes.heads)
    tile = _tiles(q, sizes).forward
    form = _form(sizes, tile, q, options, causal, number)
    blocks = triton.cdiv(sizes.queries, tile.queries)
    _launch(_forward_kernel, blocks, sizes.heads, tile, sizes, form, (q, k, v), options, scale, number, (out,))
    return out


def sigmoid_attention_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None, bias: torch.Tensor | None,
    slopes: torch.Tensor | None, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None, longest_q: int, longest_k: int,
    causal: bool, scale: float, number: float | None, wanted: tuple[bool, ...],
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    """Returns the gradients of q, k, v, the mask, the bias and the slopes; None for the mask and the slopes."""
    tensors = _dense(grad), _dense(q), _dense(k), _dense(v)
    sizes = _sizes(q, k, v, cu_q, (longest_q, longest_k))
    options = _options(bias, slopes, cu_q, cu_k, sizes.heads)
    tiles = _tiles(q, sizes)
    wants_q, wants_k, wants_v, _, wants_bias, _ = wanted
    grad_q = grad_k = grad_v = grad_bias = None
    if wants_q or wants_bias:
        tile = tiles.of_queries
        form = _form(sizes, tile, q, options, causal, number)
        blocks = triton.cdiv(sizes.queries, tile.queries)
        grad_q = _empty_like(q, tuple(q.shape))
        parts = q.new_empty((sizes.batches, sizes.heads, blocks), dtype=torch.float32)
        outputs = grad_q, parts.view(-1)
        _launch(_queries_kernel, blocks, sizes.heads, tile, sizes, form, tensors, options, scale, number, outputs)
        grad_bias = None if bias is None else parts.sum((0, 2)).sum_to_size(bias.shape).to(bias.dtype)
    if wants_k or wants_v:
        tile = tiles.of_keys
        form = _form(sizes, tile, q, options, causal, number)
        blocks = triton.cdiv(sizes.keys, tile.keys)
        outputs = grad_k, grad_v = _empty_like(k, tuple(k.shape)), _empty_like(v, tuple(v.shape))
        _launch(_keys_kernel, blocks, sizes.key_heads, tile, sizes, form, tensors, options, scale, number, outputs)
    return grad_q, grad_k, grad_v, None, grad_bias, None
