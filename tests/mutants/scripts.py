"""Slips in what scripts compute: data, measurements, models and reports."""

from mutants.slip import Slip

BENCHMARK = "tests/scripts/test_benchmark.py -k 'not host and not chunks'"
CHUNKED = "tests/scripts/test_benchmark.py -k 'ways_to_a_loss or not_tried or losses_in_chunks'"
DERIVATION = "tests/ops/test_derivation.py -k 'derive or numbers or from_scratch'"
ORDER = "tests/scripts/test_distributed.py -k 'order or epoch or shares'"
TEXT = "tests/scripts/test_text.py -k 'text and not library or attention or held_out'"
IMBALANCED = "tests/scripts/test_text.py -k imbalanced"
LEARNT = "tests/scripts/test_chunked.py"

SLIPS = [
    Slip(
        "scripts/_data.py",
        "numpy.random.default_rng((seed, step)).integers(",
        "numpy.random.default_rng(seed).integers(",
        ORDER,
        "each step draws the same samples",
    ),
    Slip(
        "scripts/_data.py",
        "default_rng((seed, epoch)).permutation",
        "default_rng(seed).permutation",
        ORDER,
        "each epoch has the same order",
    ),
    Slip(
        "scripts/_measure.py",
        "peak = max(peak, held)",
        "peak = held",
        "tests/scripts/test_benchmark.py tests/scripts/test_options.py -k 'memory or agree'",
        "what is held in the end for what was held at most",
    ),
    Slip(
        "scripts/_measure.py",
        "return max(gather(held))",
        "return held",
        "tests/scripts/test_options.py -k with_most",
        "the first process's memory for the largest",
    ),
    Slip(
        "scripts/_chunked.py",
        "labels.diagonal(start).fill_(1)",
        "labels.diagonal().fill_(1)",
        CHUNKED,
        "a chunk's positives counted from the first image",
    ),
    Slip(
        "scripts/derive.py",
        'f"{(output == 1).double().mean():.1%}"',
        'f"{(output >= 0.5).double().mean():.1%}"',
        DERIVATION,
        "half a gradient counted as none",
    ),
    Slip(
        "scripts/train_text.py",
        "sum(map(len, files[:held])) < wanted:",
        "sum(map(len, files[:held])) <= wanted:",
        "tests/scripts/test_text.py -k held_out",
        "a file too many is held out",
    ),
]
