"""The loss of a chunk of logits, its gradient in place and what is summed beside, by kernels and by PyTorch's operators."""

import importlib
import itertools
import random
from typing import NamedTuple

import pytest
import torch
from support.chunked_cases import close
from torch.testing import assert_close

from sigtorch.kernels import chunked_losses

every_step = pytest.mark.parametrize("step", ["cpu", pytest.param("kernels", marks=pytest.mark.kernels)])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
RTOL = {torch.bfloat16: 4e-3, torch.float32: 2e-6, torch.float64: 1e-13}
SHAPES = [(1, 2), (1, 1025), (33, 7), (70, 64), (17, 256), (1, 1), (2100, 1)]
TOP, LEFT, ROWS, COLS = 3, 5, 7, 11  # where a chunk starts, and how many rows and columns there are behind it


class Chunk(NamedTuple):
    """Logits, what is applied to them, and which pairs of all are positives."""

    logits: torch.Tensor
    positives: torch.Tensor
    scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    top: int = TOP
    left: int = LEFT

    def oracle(self):
        """Losses and gradients of the logits, in float64."""
        (rows, cols), top, left = self.logits.shape, self.top, self.left
        of_rows = [
            None if t is None else t.double().expand(len(self.positives))[top : top + rows, None]
            for t in (self.bias, self.weights)
        ]
        bias, weights = of_rows
        z = self.logits.double() * (1 if self.scale is None else self.scale.double()) + (0 if bias is None else bias)
        positive = self.positives[top : top + rows, left : left + cols]
        y = torch.where(positive, -z, z)
        sign = torch.where(positive, -1.0 if weights is None else -weights, 1.0)
        return sign.abs() * (y.clamp_min(0) + torch.log1p(torch.exp(-y.abs()))), sign * torch.sigmoid(y)


def module(step):
    return importlib.import_module(f"sigtorch.{step}.chunked_losses")


def diagonal(step, positives):
    return step.on_diagonal()


def listed(step, positives):
    return step.listed(positives.flatten().nonzero().flatten(), *positives.shape)


def in_matrix(step, positives):
    """With columns and rows that are not dense."""
    spread = positives.new_zeros(2 * positives.shape[1], 3 * positives.shape[0])[::2, ::3]
    return step.in_matrix(spread.copy_(positives.t()))


KINDS = (diagonal, listed, in_matrix)
FACTOR = -0.375


def some_positives(kind, shape, device):
    rows, cols = TOP + shape[0] + ROWS, LEFT + shape[1] + COLS
    if kind is diagonal:
        return torch.eye(rows, cols, dtype=torch.bool, device=device)
    positives = torch.rand(rows, cols, device=device) < 0.02
    positives[TOP, : LEFT + 40] = True
    positives[TOP + 1 :: 2] = False
    return positives


def chunks_of(kind, shape, dtype, device):
    """Chunks with numbers of every shape, and without."""
    logits, positives = (torch.randn(shape) * 3).to(device, dtype), some_positives(kind, shape, device)
    number = lambda value: torch.tensor(value, device=device, dtype=dtype)  # noqa: E731
    each = torch.rand(len(positives)).to(device, dtype) + 0.5
    yield Chunk(logits, positives)
    yield Chunk(logits, positives, number(-1.75), number(-2.5))
    yield Chunk(logits, positives, None, each - 2, number(2.0).expand(len(each)))
    yield Chunk(logits, positives, number(0.5), (each - 2).repeat_interleave(2)[::2], each)


def run(step, kind, chunk, out, sums_scale=True, sums_of_rows=True):
    """Returns the loss, the gradients of the logits, of the scale and of the bias in each row."""
    steps, logits = module(step), chunk.logits.clone()
    factor = torch.full_like(logits[0, 0], FACTOR)
    numbers = chunk.scale, chunk.bias, chunk.weights, factor
    ran = steps.Step(logits[0, 0], kind(steps, chunk.positives), *numbers, sums_scale)
    sums = ran.sums_of_rows(*logits.shape) if sums_of_rows else None
    grad = ran.add(logits, chunk.top, chunk.left, sums, out)
    assert (grad is None) == (out is None)
    assert grad is None or (grad.data_ptr() == logits.data_ptr()) == (out == logits.dtype)
    if grad is not None and steps.LEAVES_FACTOR:
        grad = grad.double() * FACTOR
    loss, grad_scale = ran.totals()
    return loss, grad, grad_scale, None if sums is None else sums.sum(0)


@every_step
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(step, dtype, shape, kind, device):
    for chunk in chunks_of(kind, shape, dtype, device):
        losses, slopes = chunk.oracle()
        rtol = RTOL[dtype]
        loss, grad, grad_scale, of_rows = run(step, kind, chunk, dtype)
        assert_close(loss, losses.sum(), rtol=rtol, atol=0)
        assert_close(grad.double(), slopes * FACTOR, rtol=8 * rtol, atol=0)
        close(of_rows, slopes.sum(1), dtype)
        if grad_scale is not None:
            largest = (slopes * chunk.logits.double()).abs().sum().item()
            assert_close(grad_scale, (slopes * chunk.logits.double()).sum(), rtol=0, atol=rtol * largest)
        if dtype == torch.float64 or chunk.weights is None:  # the first is never beside bfloat16
            continue
        _, grad, *_ = run(step, kind, chunk, torch.bfloat16)
        assert_close(grad.double(), slopes * FACTOR, rtol=RTOL[torch.bfloat16], atol=0)


@every_step
@pytest.mark.parametrize("kind", KINDS)
def test_any_part_may_be_all_that_is_wanted(step, kind, device):
    chunk = [*chunks_of(kind, (9, 70), torch.float32, device)][1]
    whole = run(step, kind, chunk, torch.float32)
    for out, sums_scale, sums_of_rows in itertools.product((None, torch.float32), (False, True), (False, True)):
        parts = run(step, kind, chunk, out, sums_scale, sums_of_rows)
        assert (parts[1] is None, parts[3] is None) == (out is None, not sums_of_rows)
        assert (parts[2] is None) == (whole[2] is None or not sums_scale)
        for part, other in zip(parts, whole):
            assert part is None or torch.equal(part, other)


@every_step
def test_chunks_add_up(step, device):
    """Also where none of a chunk's pairs is a positive, to the left or the right of the diagonal."""
    for kind, (top, left) in itertools.product(KINDS, ((2, 2), (0, 30), (30, 0), (2**31, 2**31), (2**31, 2**31 + 4))):
        if kind is not diagonal and top > 100:
            continue
        logits = torch.randn(20, 25, dtype=torch.float64, device=device)
        positives = torch.ones(20, 25, dtype=torch.bool, device=device).triu(top - left).tril(top - left)
        everywhere = positives.new_zeros(min(top, 100) + 20, min(left, 100) + 25)
        everywhere[-20:, -25:] = positives
        at = (min(top, 100), min(left, 100))
        losses, slopes = Chunk(logits, everywhere, top=at[0], left=at[1]).oracle()
        steps = module(step)
        ran = steps.Step(logits[0, 0], kind(steps, everywhere), None, None, None, torch.ones_like(logits[0, 0]), True)
        sums = ran.sums_of_rows(20, 25)
        for start, stop in ((0, 13), (13, 25)):
            ran.add(logits[:, start:stop].contiguous(), top, left + start, sums, None)
        loss, grad_scale = ran.totals()
        assert_close(loss, losses.sum())
        assert_close(sums.sum(0), slopes.sum(1))
        assert grad_scale is None or torch.isclose(grad_scale, (slopes * logits).sum())


@every_step
@every_dtype
def test_every_element_is_right_relative_to_itself(step, dtype, device):
    """From logits whose loss is almost 0 to those whose loss is the logit; a sum of one element shows each of them."""
    z = torch.linspace(-80, 80, 23, dtype=torch.float64).to(device, dtype)
    z = torch.cat([z, torch.tensor([0.0, 700.0, -torch.inf, torch.inf], dtype=dtype, device=device)])
    for positive, x in itertools.product((False, True), z):
        positives = torch.tensor([[positive]], device=device)
        chunk = Chunk(x.view(1, 1), positives, top=0, left=0)
        loss, slope = chunk.oracle()
        found, grad, *_ = run(step, listed, chunk, dtype, sums_scale=False)
        assert_close(found, loss.sum(), rtol=4e-6, atol=torch.finfo(dtype).tiny)
        assert_close(grad.double(), slope * FACTOR, rtol=4e-6, atol=torch.finfo(dtype).tiny)
    nan = Chunk(torch.full((1, 2), torch.nan, dtype=dtype, device=device), torch.ones(9, 9, dtype=torch.bool))
    found, grad, _, of_rows = run(step, diagonal, nan, dtype)
    assert found.isnan()
    assert grad.isnan().all()
    assert of_rows.isnan().all()


@pytest.mark.kernels
@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_few_programs_add_many_tiles(programs, kind, device, plans, monkeypatch):
    monkeypatch.setattr(chunked_losses, "PROGRAMS", programs)
    test_loss_and_gradients("kernels", torch.float32, (20, 300), kind, device)


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("programs", "rows", "width", "rest"),
    [(4, 32, 200, 50), (3, 8, 392, 264)],
    ids=["a remainder of short rows", "a remainder of fewer tiles"],
)
def test_a_narrower_remainder_adds_to_the_same_sums(programs, rows, width, rest, device, plans, monkeypatch):
    """It may have more splits than the blocks before it, and there must be rows for all of them."""
    monkeypatch.setattr(chunked_losses, "PROGRAMS", programs)
    cols = width + rest
    logits, positives = torch.randn(rows, cols, device=device), torch.eye(rows, cols, dtype=torch.bool, device=device)
    step = chunked_losses.Step(
        logits, chunked_losses.on_diagonal(), None, None, None, torch.ones((), device=device), False
    )
    splits = len(step.sums_of_rows(rows, width))
    guarded = torch.zeros(splits + 8, rows, device=device)
    for left, block in ((0, logits[:, :width]), (width, logits[:, width:])):
        step.add(block.contiguous(), 0, left, guarded[:splits], None)
    losses, slopes = Chunk(logits, positives, top=0, left=0).oracle()
    assert not guarded[splits:].any()
    close(guarded[:splits].sum(0), slopes.sum(1), torch.float32)
    assert_close(step.totals()[0], losses.sum(), rtol=RTOL[torch.float32], atol=0)


@pytest.mark.kernels
def test_no_block_has_more_splits_than_sums(monkeypatch):
    """For any rows and widths; at SigLIP's defaults, 7838 float32 pairs are blocks of 6423 columns and 1415."""
    tiles = (chunked_losses.WIDE, chunked_losses.in_matrix(torch.zeros(1, 1, dtype=torch.bool)).tile)
    assert tiles[0] != tiles[1]
    default, draw = chunked_losses.PROGRAMS, random.Random(0)
    some = [(default, 2612, 6423, 1415), (default, 4096, 64, 1)]
    some += [(2 ** draw.randint(0, 12), *(int(2 ** draw.uniform(0, n)) for n in (14, 17)), 0) for _ in range(300)]
    for programs, rows, width, rest in some:
        monkeypatch.setattr(chunked_losses, "PROGRAMS", programs)
        rests = [rest] if rest else {1, 16, 64, 65, width, *(draw.randint(1, width) for _ in range(30))}
        for tile, cols in itertools.product(tiles, rests):
            most = chunked_losses._most_splits(rows, width, tile)
            _, (down, splits, _), across = chunked_losses._tiling(rows, min(cols, width), tile)
            assert splits <= most, (programs, rows, width, cols, tile)
            assert down * splits <= programs
            assert across * splits >= 1


@pytest.mark.kernels
@pytest.mark.parametrize("axis", [0, 1], ids=["top", "left"])
def test_a_place_of_64_bits_has_another_plan(axis, device, plans):
    """A direct launch gives the kernel integers of one size, and a place is encoded as 2 * (place + 1) + 1."""
    step = chunked_losses.Step(
        torch.zeros((), device=device),
        chunked_losses.on_diagonal(),
        None,
        None,
        None,
        torch.ones((), device=device),
        False,
    )
    for place, expected in ((0, 1), (2**30 - 2, 1), (2**30 - 1, 2), (2**30, 2), (2**31, 2)):
        at = [0, 0]
        at[axis] = place
        step.add(torch.zeros(8, 8, device=device), *at, None, None)
        assert len(plans) == expected, place


@pytest.mark.kernels
def test_two_runs_agree_bit_for_bit(device):
    for kind in KINDS:
        chunk = [*chunks_of(kind, (70, 300), torch.float32, device)][-1]
        for one, other in zip(*(run("kernels", kind, chunk, torch.float32) for _ in range(2))):
            assert torch.equal(one, other)


@every_step
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cols", [1, 6, 200])
def test_units(step, dtype, cols, device):
    """The largest element of a row has 15 bits before the point; rows that are no numbers keep what they are."""
    grad = torch.randn(40, cols, dtype=dtype, device=device) * 2.0 ** torch.arange(-60, 60, 3, device=device)[:, None]
    grad[3] = 0
    for row, value in ((5, torch.inf), (6, torch.nan), (7, -torch.inf), (8, 2.0**-120), (9, 2.0**-127)):
        grad[row, -1] = value
    out, units = (
        torch.empty(41, cols, dtype=torch.float16, device=device)[1:],
        torch.empty(41, 1, dtype=dtype, device=device)[1:],
    )
    module(step).write_in_units(grad.clone(), out, units)
    assert (units.frexp().mantissa == 0.5).all()
    finite = grad.isfinite().all(1)
    assert not out[~finite].isfinite().all(1).any()
    assert (units[~finite] == 1).all()
    largest = out[finite].abs().amax(1)
    assert (largest < 2**15 + 1).all()
    usual = grad[finite].abs().amax(1) > 2.0**-86
    assert (largest[usual] >= 2**14).all()
    error = (out.double() * units - grad.double()).abs()
    assert (error <= grad.double().abs() * 2.0**-11 + units * 2.0**-25)[finite].all()  # half of float16's smallest
