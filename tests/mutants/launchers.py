"""Slips in layouts, launches and allocations: the rest of kernels/."""

from mutants.slip import Slip

LAUNCH = "tests/kernels/test_launch.py"
KERNELS = "tests/kernels/test_kernels.py"
BROADCASTS = "tests/kernels/test_broadcasts.py"
STRIDES = f"{KERNELS} -k 'any_strides and (gate-token or glu-first or lerp)'"
PROMOTE = f"{KERNELS} -k 'promote and (gate-residual or lerp)'"
CHUNKS = "tests/kernels/test_chunked_losses.py -m kernels"
IMAGES = "tests/ops/test_loss_masks.py -k 'classes_may_be and triton'"
SHAPES = "tests/ops/test_losses.py -m kernels -k 'any_strides or classes_keep or more_images'"
FOCAL = "tests/ops/test_losses.py -m kernels -k 'torchvisions_own_grid or (matches_float64 and focal)'"

LAYOUT = [
    Slip(
        "kernels/_layout.py",
        "for n in (*sizes, *strides)) else 1",
        "for n in sizes) else 1",
        LAUNCH,
        "strides that are no multiples of a vector",
    ),
    Slip(
        "kernels/_layout.py",
        "return PER_COLUMN if index_kind == ROW_INDEX and not strides[-1] else PER_ELEMENT",
        "return PER_COLUMN if index_kind == ROW_INDEX else PER_ELEMENT",
        IMAGES,
        "logits read as if they were indices",
    ),
    Slip(
        "kernels/_layout.py",
        "key=lambda i: (like.stride(i - len(shape)), -i)",
        "key=lambda i: (like.stride(i), -i)",
        "tests/kernels/test_layout.py",
        "the axes of a smaller tensor counted from the front",
    ),
    Slip(
        "kernels/_layout.py",
        "alone not in (inner.strides[-1], axes[-1].strides[-1])",
        "alone != inner.strides[-1]",
        IMAGES,
        "the axis of classes merges with the next one",
    ),
    Slip(
        "kernels/_layout.py",
        "if not axes or axes[-1].strides[-1] != 1:",
        "if not axes:",
        f"{KERNELS} -k 'oracle or any_strides'",
        "outputs of one column a row",
    ),
    Slip(
        "kernels/_layout.py",
        "if batches >= MAX_GRID:",
        "if batches > MAX_GRID:",
        f"{KERNELS} -k reaches_its_end",
        "more batches than a grid has programs for",
    ),
    Slip(
        "kernels/_layout.py",
        "return (COLUMN_INDEX, ROW_INDEX, BATCH_INDEX)[inwards.index(like.stride(-1))]",
        "return (COLUMN_INDEX, ROW_INDEX, BATCH_INDEX)[min(1, inwards.index(like.stride(-1)))]",
        IMAGES,
        "classes that are a batch's axis taken for rows",
    ),
]

LAYOUT += [
    Slip(
        "kernels/_layout.py",
        "own, parts = parts * size, parts * axis.size",
        "own, parts = size, parts * axis.size",
        f"{BROADCASTS} -k five_axes",
        "sums of two axes of batches in one place",
    ),
    Slip(
        "kernels/_layout.py",
        "rows = max(fit, key=lambda axis: axis.size) if",
        "rows = max(outer, key=lambda axis: axis.size) if",
        f"{BROADCASTS} -k 'few_programs or other_orders'",
        "rows that are not the axis to sum, or not the one of a transposed operand",
    ),
]

LAUNCHING = [
    Slip(
        "kernels/_layout.py",
        "number // 2 if INTERPRETED else number >> 1",
        "number >> 1",
        f"{KERNELS} -k far_apart",
        "the interpreter reads a stride of 2^30 as a negative one",
    ),
    Slip(
        "kernels/_direct.py",
        "        elif current_device() == device:",
        "        elif True:",
        LAUNCH,
        "a direct launch on whatever device is current",
    ),
    Slip(
        "kernels/_plan.py",
        "parts += (t.dtype, t.shape, t.stride(), t.data_ptr() & 15)",
        "parts += (t.dtype, t.shape, t.stride(), t.data_ptr() & 7)",
        LAUNCH,
        "a plan for 16-byte accesses serves a tensor aligned to 8 bytes",
    ),
    Slip(
        "kernels/_plan.py",
        "if len(_plans) >= MAX_PLANS:",
        "if len(_plans) > MAX_PLANS:",
        LAUNCH,
        "a plan too many is kept",
    ),
    Slip(
        "kernels/_layout.py",
        "    if like.dtype != torch.float64:\n        return inputs",
        "    if like.dtype == torch.float64:\n        return inputs",
        FOCAL,
        "a float64 loss' numbers in float32",
    ),
    Slip(
        "kernels/_layout.py",
        "precise = not ROUNDING_DTYPES.issuperset(dtypes)",
        "precise = not ROUNDING_DTYPES.intersection(dtypes)",
        f"{KERNELS} -k beside_a_half",
        "half precision where one of the results is a half",
    ),
    Slip(
        "kernels/_direct.py",
        "RUNTIME.launch_enter_hook.calls or RUNTIME.launch_exit_hook.calls",
        "RUNTIME.launch_enter_hook.calls",
        LAUNCH,
        "a profiler that hooks a launch's end sees none",
    ),
    Slip(
        "kernels/_direct.py",
        "            with torch.cuda.device(device):\n                launch(x, y, z, current_stream(device), ",
        "            with torch.cuda.device(device):\n                launch(x, y, z, current_stream(0), ",
        LAUNCH,
        "the stream of another device",
    ),
    Slip(
        "kernels/_direct.py",
        "    calls.clear()  # the copy may be kept, and must not keep tensors\n",
        "",
        LAUNCH,
        "a plan keeps the first tensors alive",
    ),
    Slip(
        "kernels/_direct.py",
        "(x, y, z) != grid or given_stream is not stream or",
        "(x, y, z) != grid or",
        LAUNCH,
        "a launcher that takes the stream elsewhere",
    ),
    Slip(
        "kernels/_direct.py",
        '    if any(hasattr(b, "data_ptr") for b in between):\n        raise ValueError("scratch memory of one launch")\n',
        "",
        LAUNCH,
        "a launch's scratch memory used by later ones",
    ),
    Slip(
        "kernels/_direct.py",
        "(launch if packed else functools.partial(_unpacked, launch)), between",
        "launch, between",
        LAUNCH,
        "older launchers get their arguments in one",
    ),
    Slip(
        "kernels/_plan.py",
        "        inputs = (*inputs[:at], 1, *inputs[at + 1 :])",
        "        inputs = (*inputs[:at], 1, *inputs[at:])",
        "TRITON_INTERPRET=0 tests/host/test_every_loss.py -k 'index and plain and float32'",
        "an operand too many",
    ),
]

FAMILIES = [
    Slip(
        "kernels/_probe.py",
        "grid=(1,), enable_fp_fusion=True).run  # noqa: B018, loads the binary",
        "grid=(1,), enable_fp_fusion=True)",
        f"{LAUNCH} -k probe",
        "a probe compiles, and does not load",
    ),
    Slip(
        "kernels/gates.py",
        "dtype = torch.promote_types(dtype, t.dtype)",
        "dtype = t.dtype",
        PROMOTE,
        "the last operand's dtype for all",
    ),
    Slip("kernels/gates.py", "_result(x, gate, residual)", "_result(x, gate)", PROMOTE, "a residual's dtype left out"),
    Slip(
        "kernels/gates.py",
        "    if not grad.numel():",
        "    if False:",
        f"{BROADCASTS} -k nothing",
        "a sum of nothing is launched",
    ),
    Slip(
        "sigtorch/ops/losses/focal.py",
        "(1, 1) if self.alpha < 0 else",
        "(1, 1) if self.alpha <= 0 else",
        FOCAL,
        "an alpha of 0 weighs nothing",
    ),
    Slip(
        "kernels/losses.py",
        "divisor = None if loss.counts else",
        "divisor = None if loss.ignore_index is not None else",
        "tests/ops/test_loss_masks.py -m kernels -k 'cannot or no_target or numbers_to_ignore'",
        "a sum that ignores is divided",
    ),
    Slip(
        "kernels/losses.py",
        "is_straight(axes_of((out,), out, True), True):",
        "is_straight(axes_of((out,), out), True):",
        SHAPES,
        "axes that merge only where classes are none of them",
    ),
    Slip(
        "kernels/losses.py",
        'if loss.reduction == "mean" and normalizer is None:',
        'if loss.reduction == "mean":',
        "tests/ops/test_losses.py -k 'matches_float64 and triton and ignoring'",
        "a second pass divides by all, forward by those not ignored",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "return max(_splits_of_tile(rows, min(cols, SHORT_ROW), NARROW), _splits_of_tile(rows, cols, tile))",
        "return _tiling(rows, cols, tile)[1][1]",
        f"{CHUNKS} -k 'remainder or no_block'",
        "a narrower chunk writes behind the sums of rows",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "t.stride(0) if has and t.dim() else 0",
        "1",
        CHUNKS,
        "one bias for all rows read as one a row",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "return m + ahead.to(tl.int32) == n",
        "return m == n",
        CHUNKS,
        "every chunk starts on the diagonal",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "ahead = tl.minimum(tl.maximum(row - col, -FAR), FAR)",
        "ahead = row - col",
        CHUNKS,
        "a diagonal 2^32 columns away",
        "no chunk has so many columns: its logits would take 16 GiB a row",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "tuple(place >= LARGE for place in places)",
        "(top >= LARGE // 2, left >= LARGE // 2)",
        f"{CHUNKS} -k 64_bits",
        "a direct launch gives the kernel an integer of another size",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "below = some & (tl.load(keys_ptr + middle, mask=some, other=0) < key)",
        "below = some & (tl.load(keys_ptr + middle, mask=some, other=0) <= key)",
        CHUNKS,
        "the positive in a tile's first column is lost",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "tl.store(ptr, tl.load(ptr, mask=inside) + tl.sum(slopes, 1, keep_dims=True), mask=inside)",
        "tl.store(ptr, tl.sum(slopes, 1, keep_dims=True), mask=inside)",
        CHUNKS,
        "the bias' gradient of a part's last chunk alone",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "tl.store(ptr, tl.load(ptr) + _total(losses))",
        "tl.store(ptr, _total(losses))",
        CHUNKS,
        "the loss of the last chunk alone",
    ),
    Slip(
        "kernels/chunked_losses.py",
        "tl.where(exponent == 2 * BIAS + 1, BIAS + 14, tl.maximum(exponent, BIAS - 101))",
        "tl.maximum(exponent, BIAS - 101)",
        CHUNKS,
        "infinity over its unit",
    ),
]

SLIPS = LAYOUT + LAUNCHING + FAMILIES
