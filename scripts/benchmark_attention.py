"""Time sigmoid attention against the plain formula, FlexAttention's way to it, and PyTorch's softmax attention.

The plain formula holds all scores. FlexAttention computes a softmax of log-sigmoids, times the sum that it divided by. It has
no backward pass on a CPU, and is left out there. scaled_dot_product_attention computes something else, a softmax: it shows
what a model would take with that. Implementations take turns, and the median of the rounds counts. Peak extra memory is
that of one call, results included.

Example: python scripts/benchmark_attention.py --contexts 512 1024 --causal
"""

import _start  # isort: skip
import argparse
import math
import os
from collections.abc import Callable, Sequence
from functools import cache, partial

import _folder
import _report
import torch
import torch.nn.functional as F
from _measure import peak_extra_bytes
from _options import DTYPES, device, folder, positive_int
from _output import progress
from _report import Record
from _timing import interleaved, passes_of
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import sigtorch

PASSES = ("forward", "both")
CONTEXTS = {"cpu": [256, 512, 1024, 2048], "cuda": [1024, 4096, 16384]}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The formula with all scores at once."""
    weights = torch.sigmoid(q @ k.mT / math.sqrt(q.shape[-1]) - math.log(k.shape[-2]))
    return (weights.tril() if causal else weights) @ v


def flex(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """FlexAttention: a softmax of log-sigmoids, times the sum of sigmoids that it divided by."""
    shift = math.log(k.shape[-2])
    compiled = _compiled(flex_attention) if q.is_cuda else flex_attention
    mask = _causal_mask(q.shape[-2], k.shape[-2], q.device.type) if causal else None
    out, log_sum = compiled(
        q, k, v, score_mod=lambda z, b, h, i, j: F.logsigmoid(z - shift), block_mask=mask, return_lse=True
    )
    return out * log_sum.exp().unsqueeze(-1).to(out.dtype)


@cache
def _causal_mask(queries: int, keys: int, kind: str) -> BlockMask:
    return create_block_mask(lambda b, h, i, j: i >= j, None, None, queries, keys, device=kind)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)


def ways(causal: bool, kind: str) -> dict[str, Attention]:
    """Every implementation that runs forward and backward on a type of device."""
    made: dict[str, Attention] = {
        "plain": partial(plain, causal=causal),
        "flex": partial(flex, causal=causal),
        "sigtorch": partial(sigtorch.sigmoid_attention, is_causal=causal),
        "softmax": partial(F.scaled_dot_product_attention, is_causal=causal),
    }
    return made if kind == "cuda" else {name: way for name, way in made.items() if name != "flex"}


def measure(context: int, dtype: str, args: argparse.Namespace) -> list[Record]:
    """Times, speed and memory of every implementation at one length."""
    shape = (args.batch, args.heads, context, args.dim)
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=DTYPES[dtype], device=args.device, requires_grad=True) for _ in range(3)]
    records = []
    steps = {name: passes_of(way, inputs) for name, way in ways(args.causal, args.device.type).items()}
    for pass_ in PASSES:
        chosen = {name: passes[pass_] for name, passes in steps.items()}
        times, _ = interleaved(chosen, args.rounds, args.device)
        for name, step in chosen.items():
            seconds = times[name].median
            figures = [
                ("time", seconds * 1e3, "ms"),
                ("spread", 100 * times[name].iqr / seconds, "%"),
                ("speed", times["plain"].median / seconds, "× plain"),
                ("peak extra memory", peak_extra_bytes(step, args.device) / 2**20, "MiB"),
            ]
            subject = ("sigmoid_attention", pass_, dtype, "x".join(map(str, shape)), name, args.device.type)
            records += [Record(*subject, metric, value, unit, "measured") for metric, value, unit in figures]
    return records


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, or one line on what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--contexts", type=positive_int, nargs="+", help="queries, and keys (256 to 2048; on a GPU 1024 to 16384)")
    add("--batch", type=positive_int, default=1, help="(%(default)s)")
    add("--heads", type=positive_int, default=8, help="(%(default)s)")
    add("--dim", type=positive_int, default=64, help="features of a head (%(default)s)")
    add("--dtypes", choices=("float32", "bfloat16", "float16"), nargs="+", help="(float32; on a GPU bfloat16)")
    add("--causal", action="store_true", help="each query sees the keys up to its own")
    add("--rounds", type=positive_int, default=10, help="times each is timed; the median counts (%(default)s)")
    add("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--out", type=folder, help="new folder for CSV and JSON (runs/attention, runs/attention-2, ...)")
    args = parser.parse_args(arguments)
    args.contexts = args.contexts or CONTEXTS.get(args.device.type, CONTEXTS["cpu"])
    args.dtypes = args.dtypes or ["bfloat16" if args.device.type == "cuda" else "float32"]
    return args


def main() -> None:
    """Measure what the options ask for."""
    args = parse()
    with _folder.for_results(args.out, "runs/attention", ("attention.csv", "attention.json")) as out:
        records: list[Record] = []
        with progress("attention", len(args.contexts) * len(args.dtypes)) as done:
            for dtype in args.dtypes:
                for context in args.contexts:
                    try:
                        records += measure(context, dtype, args)
                    except torch.OutOfMemoryError:
                        torch.cuda.empty_cache()
                        print(f"{context} in {dtype} is left out: out of memory on {args.device}")
                    done()
        head = _report.header(args.device if args.device.type == "cuda" else None) | {"causal": args.causal}
        _report.show(head, records)
        _report.write(out, "attention", head, records)
        print(f"written: {out}{os.sep}attention.csv, attention.json")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
