"""Slips in the kernels: kernels/_tile.py, _map.py and _reduce.py."""

from mutants.slip import Slip

PTX = "-p without_gpu.ptx.plugin --ptx-arch 90 -m kernels"
KERNELS = "tests/kernels/test_kernels.py"
ONE_PASS = "tests/ops/test_one_pass.py"
STRIDES = f"{KERNELS} -k 'any_strides and (gate-token or glu-first or lerp)'"
SUMS = f"{KERNELS} -k 'no_kernel_sums or ((oracle or few_programs) and (token or feature or channel))'"
PROMOTE = f"{KERNELS} -k 'promote and (gate-residual or lerp)'"
PROGRAMS = "tests/ops/test_losses.py tests/ops/test_loss_masks.py -m kernels -k 'programs or two_runs'"
IMAGES = "tests/ops/test_loss_masks.py -k 'classes_may_be and triton'"
BLOCKS = "tests/ops/test_losses.py -k 'full_and_part'"
IGNORED = "tests/ops/test_loss_masks.py -m kernels -k 'anything or nothing_but'"
PRECISE = "tests/ops/test_losses.py -m kernels -k 'small or finite or mean_holds or normalizer'"

TILE = [
    Slip(
        "kernels/_tile.py",
        "unit: tl.constexpr = 1 if KIND == PER_ROW else VECTOR",
        "unit: tl.constexpr = VECTOR",
        STRIDES,
        "a gate's stride in vectors that it is not read in",
    ),
    Slip(
        "kernels/_tile.py",
        "return (tile.col + tile.n).to(tl.float32)",
        "return tile.n.to(tl.float32)",
        BLOCKS,
        "a class index counts from its tile",
    ),
    Slip(
        "kernels/_tile.py",
        "return (tile.row + tile.m).to(tl.float32)",
        "return tile.m.to(tl.float32)",
        IMAGES,
        "the same where classes are rows",
    ),
    Slip(
        "kernels/_tile.py",
        "value = tl.load(ptr, mask=masks.rows)",
        "value = tl.load(ptr)",
        f"{PTX} {KERNELS} -k 'oracle and gate-token'",
        "a read behind the last row",
    ),
    Slip(
        "kernels/_tile.py",
        "(tile.row + tile.m.shape[0] <= tile.rows) & (tile.col + tile.n.shape[1] <= tile.cols)",
        "(tile.col + tile.n.shape[1] <= tile.cols)",
        f"{KERNELS} -k 'oracle or long_axis'",
        "the last rows are not masked",
    ),
    Slip(
        "kernels/_tile.py",
        "return value if mask is None else tl.where(mask, value, 0.0)",
        "return value if mask is None else value * mask.to(tl.float32)",
        IGNORED,
        "ignored elements times 0, of which some are infinite",
    ),
    Slip(
        "kernels/_tile.py",
        "_only(masks.elements, _only(taken, last) * SCALE)",
        "_only(taken, last) * SCALE",
        BLOCKS,
        "lanes behind the end are summed",
    ),
]

SCALE = [
    Slip("kernels/_scale.py", "if factor != 1.0:", "if factor > 1.0:", ONE_PASS, "a factor below 1 changes nothing"),
    Slip(
        "kernels/_scale.py",
        "offsets < size - start",
        "offsets <= size - start",
        f"{PTX} {ONE_PASS} -k every_program",
        "a write behind the end",
    ),
    Slip(
        "kernels/_scale.py",
        "start += tl.num_programs(0).to(tl.int64) * BLOCK",
        "start += size",
        f"{ONE_PASS} -k every_program",
        "a program's second block is left",
    ),
]

MAP = [
    Slip(
        "kernels/_map.py",
        "row = tl.program_id(AXES.rows)",
        "row = tl.program_id(2)",
        f"{KERNELS} -k long_axis",
        "rows that lead a grid are taken from its end",
    ),
    Slip(
        "kernels/_map.py",
        "    if outputs[0].numel():\n        ready",
        "    if True:\n        ready",
        f"{KERNELS} -k 'for_nothing'",
        "a launch for nothing",
    ),
]

REDUCE = [
    Slip(
        "kernels/_reduce.py",
        "part = chunk * tl.num_programs(AXES.cols) + block if",
        "part = chunk * tl.num_programs(AXES.cols) if",
        "tests/kernels/test_broadcasts.py -k few_programs",
        "of a sum over rows and columns, one block of columns is kept",
    ),
    Slip(
        "kernels/_reduce.py",
        "totals = totals + (tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if FORM.double else tl.float32),)",
        "totals = totals + (tl.zeros([BLOCK_M, BLOCK_N], tl.float32),)",
        f"{PTX} {KERNELS} -k 'oracle and gate-token and float64'",
        "float64's sums in float32",
    ),
    Slip(
        "kernels/_reduce.py",
        "mask = n < cols - col",
        "mask = n < cols",
        SUMS,
        "sums of columns that are not there",
    ),
    Slip(
        "kernels/_reduce.py",
        "(part + parts * i)",
        "(part + i)",
        "tests/ops/test_dice.py -k 'many_tiles and triton'",
        "one result's sums among another's",
    ),
    Slip(
        "kernels/_reduce.py",
        ".as_strided(small.shape, strides)",
        ".view(small.shape)",
        "tests/kernels/test_broadcasts.py -k any_gradient",
        "sums in another order than the gate's elements",
    ),
    Slip(
        "kernels/_reduce.py",
        "wide = torch.float64 if small.dtype == torch.float64 else torch.float32\n        partials",
        "wide = small.dtype\n        partials",
        SUMS,
        "parts of a sum in half precision",
    ),
    Slip(
        "kernels/_reduce.py",
        "chunks = triton.cdiv(tiles, chunk_tiles)",
        "chunks = tiles // chunk_tiles",
        SUMS,
        "the last tiles of a sum left out",
    ),
    Slip(
        "kernels/_reduce.py",
        "row = number // across % down * BLOCK_M",
        "row = number // across * BLOCK_M",
        IMAGES,
        "a batch's rows counted on from the batch before",
    ),
    Slip(
        "kernels/_reduce.py",
        "divisor = tl.maximum(_sum_of_parts(partials + count, count, BLOCK), 1.0)",
        "divisor = _sum_of_parts(partials + count, count, BLOCK)",
        IGNORED,
        "a mean of nothing is 0 / 0",
    ),
    Slip(
        "kernels/_reduce.py",
        "tiles = layout.batches * triton.cdiv(layout.rows, block_m)",
        "tiles = layout.batches * (layout.rows // block_m)",
        "tests/ops/test_losses.py -k 'matches_float64 and triton and index'",
        "no program for a few rows",
    ),
    Slip(
        "kernels/_reduce.py",
        "partials = programs if target_input is None else 2 * programs",
        "partials = programs if target_input is None else programs + 1",
        PROGRAMS,
        "room for one count",
    ),
    Slip(
        "kernels/_reduce.py",
        "tl.sum(tl.reshape(block, [SIZE // 4, 4]), 1).to(tl.float64), 0)",
        "tl.sum(tl.reshape(block, [SIZE // 4, 4]), 1), 0).to(tl.float64)",
        PROGRAMS,
        "threads' sums in float32",
    ),
    Slip(
        "kernels/_reduce.py",
        "        inverse *= 2.0 - tl.cast(divisor, tl.float64) * inverse\n",
        "",
        "tests/ops/test_losses.py -k equal_losses",
        "a mean divided in float32",
    ),
]

SLIPS = TILE + SCALE + MAP + REDUCE
