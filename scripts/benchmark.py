"""Time sigtorch's operations, as they are and compiled, against eager PyTorch, torch.compile and a plain copy, in one run.

Forward (recording for backward, as in training), backward, and both. Implementations take turns, so that drift hits all
alike; the median of the rounds counts, and the spread is the middle half of them: ratios closer to 1 than the spreads
are noise. On a GPU the time is the device's, the host's stands beside it, and inputs rotate so that its cache holds none
of them. Bandwidth is useful bandwidth: the bytes that the operation cannot do without, over the time; who moves more
shows a lower one. Peak extra memory is that of one call, results included.
--host measures instead what a call costs the host, forward and backward, without a GPU by Triton's real launcher over
a driver that does nothing. The operators of torch.ops.sigtorch, which compiled code calls, stand beside,
and patched models.
--chunked measures instead the losses over a product that is never whole: SigLIP's of so many pairs, and a linear layer's
BCE of so many labels, with memory read from a process of its own each time.
--machine-code adds what the kernels compile to for NVIDIA architectures, and --bytes what eager operators and
kernels have to move: counted, not run, no GPU needed.

Example: python scripts/benchmark.py --ops sigmoid --sizes 1048576 4194304 --dtypes float32 --machine-code
"""

import _start  # isort: skip
import argparse
import math
import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import _folder
import _report
import torch
import torch._functorch.config
from _cases import CASES, Case
from _measure import Step, peak_extra_bytes
from _options import DTYPES, device, folder, positive_int
from _output import first_line, progress
from _report import Record
from _timing import in_turn, interleaved, passes_of, rotation
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sigtorch

PASSES = ("forward", "backward", "both")
COMPILED = ("compile", "sigtorch-compiled")
IMPLEMENTATIONS = ("eager", "compile", "sigtorch", "sigtorch-compiled")
SIZES = {"cpu": [2**16, 2**20, 2**22], "cuda": [2**22, 2**24, 2**26, 2**27]}
MODELLED_ELEMENTS = 2**20  # full blocks only, whatever the block


def implementations(case: Case, names: Sequence[str], sets: Sequence[Sequence[Any]]) -> dict[str, dict[str, Step]]:
    """Every implementation's passes, compiled and warm, over these sets of inputs in turn."""
    torch._dynamo.reset()  # or the next size is compiled with dynamic shapes
    functions = {
        "eager": case.eager,
        "compile": torch.compile(case.eager, fullgraph=True),
        "sigtorch": case.ours,
        "sigtorch-compiled": torch.compile(case.ours, fullgraph=True),
    }
    torch.atanh(torch.zeros(2**20))  # until its threads have, torch 2.14's F.logsigmoid is several times slower
    made = {}
    for name in [name for name in IMPLEMENTATIONS if name in names]:
        every = [passes_of(functions[name], inputs) for inputs in sets]
        for steps in every:
            for step in steps.values():
                step()
        made[name] = {pass_: in_turn([steps[pass_] for steps in every]) for pass_ in PASSES}
    return made


def addressed(t: Tensor) -> int:
    """Bytes that it covers; what is expanded is read once."""
    return t.element_size() * math.prod(n for n, step in zip(t.shape, t.stride(), strict=True) if step)


class Traffic(TorchDispatchMode):
    """Counts the operators that move data, and the bytes they read and write: every tensor once, views for free.

    An operator of several kernels, as ``binary_cross_entropy_with_logits`` is, counts as one: it may move more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = ([t for t in tree_leaves(of) if isinstance(t, Tensor)] for of in ((args, kwargs), out))
        held = {t.untyped_storage().data_ptr() for t in read}
        view = not func._schema.is_mutable and all(t.untyped_storage().data_ptr() in held for t in written)
        if not view and "empty" not in func.__name__:
            self.operators += 1
            self.bytes += sum({t.data_ptr(): addressed(t) for t in read}.values()) + sum(map(addressed, written))
        return out


def traffic(op: str, dtype: str, n: int) -> list[Record]:
    """Count what forward and backward have to move, as eager operators and as sigtorch's kernels."""
    case = CASES[op]
    inputs = case.inputs(n, DTYPES[dtype], torch.device("cpu"))
    forward, backward = case.moved(inputs[0].element_size())
    steps = passes_of(case.eager, inputs)
    with Traffic() as eager:
        steps["both"]()
    figures = [
        ("eager", "bytes per element", eager.bytes / n),
        ("eager", "operators", eager.operators),
        ("sigtorch", "bytes per element", forward + backward),
    ]
    return [Record(op, "both", dtype, str(n), name, "any", m, float(v), "", "modelled") for name, m, v in figures]


def measure(op: str, dtype: str, n: int, args: argparse.Namespace, done: Step) -> list[Record]:
    """All figures of one operation at one dtype and size."""
    case, records = CASES[op], []
    source = torch.ones(n, dtype=DTYPES[dtype], device=args.device)
    size, copies = source.element_size(), rotation(source)
    sets = [case.inputs(n, DTYPES[dtype], args.device) for _ in range(copies)]
    made = implementations(case, args.backends, sets)
    copy = in_turn([partial(torch.empty_like(source).copy_, source.clone()) for _ in range(copies)])
    forward, backward = case.moved(size)
    moved = {"forward": forward, "backward": backward, "both": forward + backward}
    shape = "x".join(map(str, sets[0][0].shape))
    for pass_ in args.passes:
        steps = {name: steps[pass_] for name, steps in made.items()} | {"copy": copy}
        times, host = interleaved(steps, args.rounds, args.device)
        seconds = {name: time.median for name, time in times.items()}
        for name, step in steps.items():
            rate = (2 * size if name == "copy" else moved[pass_]) * n / seconds[name]
            figures = [
                ("time", seconds[name] * 1e3, "ms"),
                ("spread", 100 * times[name].iqr / seconds[name], "%"),
                ("bandwidth", rate / 1e9, "GB/s"),
            ]
            if name in host:
                figures.append(("host time", host[name] * 1e3, "ms"))
            if name != "copy":
                copy_rate = 2 * size * n / seconds["copy"]
                figures.append(("share of copy", 100 * rate / copy_rate, "%"))
                figures.append(("peak extra memory", peak_extra_bytes(step, args.device) / 2**20, "MiB"))
                if "eager" in seconds:
                    figures.append(("speed", seconds["eager"] / seconds[name], "× eager"))
            records += [
                Record(op, pass_, dtype, shape, name, args.device.type, metric, value, unit, "measured")
                for metric, value, unit in figures
            ]
        done()
    return records


def machine_code(op: str, dtype: str, passes: Sequence[str]) -> list[Record]:
    """Count what forward and backward compile to, for every architecture."""
    from without_gpu.machine_code import ARCHITECTURES, compiled, count

    case, records, n = CASES[op], [], MODELLED_ELEMENTS
    inputs = case.inputs(n, DTYPES[dtype], torch.device("cpu"))
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    for arch in ARCHITECTURES:
        with sigtorch.use_backend("triton"):
            with compiled(arch) as forward:
                out = case.ours(*inputs)
            with compiled(arch) as backward:
                torch.autograd.grad(out, wanted, torch.empty_like(out))
        counts_of = cache(count)  # for a launch belongs to two of the passes
        for pass_, launches in {"forward": forward, "backward": backward, "both": forward + backward}.items():
            counts = [(counts_of(launch), launch.threads / n) for launch in launches if pass_ in passes]
            if not counts:
                continue
            figures = [
                ("instructions per element", sum(c.instructions * share for c, share in counts), ""),
                ("MUFU per element", sum(c.mufu * share for c, share in counts), ""),
                ("narrowest access", min(int(access.split()[1]) for c, _ in counts for access in c.accesses), "bit"),
                ("registers", max(c.registers for c, _ in counts), ""),
                ("stack and spills", max(c.stack + c.spills for c, _ in counts), ""),
                ("atomics", sum(c.atomics for c, _ in counts), ""),
            ]
            records += [
                Record(op, pass_, dtype, str(n), "sigtorch", f"sm_{arch}", metric, float(value), unit, "modelled")
                for metric, value, unit in figures
            ]
    return sorted(records, key=lambda record: PASSES.index(record.pass_))


def can_compile(device: torch.device) -> bool:
    """Check whether torch.compile finds the compiler it needs for the device."""
    try:
        torch.compile(torch.sigmoid)(torch.ones(1, device=device))
    except TorchDynamoException as error:
        print(f"torch.compile is left out, it does not work here: {first_line(error)}")
        return False
    return True


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, or one line on what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several: dict[str, Any] = {"nargs": "+", "metavar": ("NAME", "NAME")}
    add = parser.add_argument
    add("--ops", choices=CASES, default=list(CASES), help=f"of {', '.join(CASES)} (all)", **several)
    add("--sizes", type=positive_int, nargs="+", metavar="N", help="elements (2^16 to 2^22; on a GPU 2^22 to 2^27)")
    add(
        "--dtypes",
        choices=DTYPES,
        default=["float32", "bfloat16"],
        help=f"of {', '.join(DTYPES)} (float32 and bfloat16)",
        **several,
    )
    add("--passes", choices=PASSES, default=PASSES, help=f"of {', '.join(PASSES)} (all)", **several)
    add(
        "--backends",
        choices=IMPLEMENTATIONS,
        default=IMPLEMENTATIONS,
        help=f"of {', '.join(IMPLEMENTATIONS)} (all)",
        **several,
    )
    add("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--rounds", type=positive_int, default=15, help="times each step is timed; the median counts (%(default)s)")
    add("--host", action="store_true", help="in place of times: what a call costs the host, on a GPU or without one")
    add("--chunked", action="store_true", help="in place of these: memory and time of the losses in chunks")
    add("--machine-code", action="store_true", help="count instructions of the kernels too")
    add("--bytes", action="store_true", help="count the bytes that have to be moved too")
    add("--out", type=folder, help="new folder for CSV, JSON and pictures (runs/benchmark, runs/benchmark-2, ...)")
    args = parser.parse_args(arguments)
    if not args.chunked:
        args.sizes = args.sizes or SIZES.get(args.device.type, SIZES["cpu"])
    beside = [f"--{name.replace('_', '-')}" for name in ("chunked", "machine_code", "bytes") if getattr(args, name)]
    if args.host and beside:
        parser.error(f"--host: it measures the host and nothing else; leave out {' and '.join(beside)}")
    if args.chunked and beside != ["--chunked"]:
        parser.error(f"--chunked: it measures losses in chunks and nothing else; leave out {' and '.join(beside[1:])}")
    if args.host and args.dtypes != parser.get_default("dtypes"):
        parser.error("--host: it measures bfloat16; leave out --dtypes")
    if args.host and os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("--host: TRITON_INTERPRET is set, and the interpreter launches nothing")
    if args.host and args.device.type == "cpu" and torch.cuda.is_available():
        parser.error("--host --device cpu: there is a GPU, and nothing stands in for its driver; leave out --device")
    if args.machine_code:
        if os.environ.get("TRITON_INTERPRET", "0") != "0":
            parser.error("--machine-code: TRITON_INTERPRET is set, and the interpreter makes no machine code")
        try:
            import without_gpu.machine_code  # noqa: F401
        except ImportError as error:
            parser.error(f"--machine-code needs Triton: {error}")
    return args


def host(args: argparse.Namespace) -> None:
    """Measure what calls cost the host, and write what came out."""
    import _host

    head, records = _host.measured(args.ops, args.device)
    _report.show(head, records)
    _report.write(args.out, "host", head, records)
    print(f"written: {args.out}{os.sep}host.csv, host.json")


def chunked(args: argparse.Namespace) -> None:
    """Measure the losses in chunks, and write what came out."""
    import _chunked

    head, records = _report.header(args.device if args.device.type == "cuda" else None), _chunked.measured(args)
    _report.show(head, records)
    _report.write(args.out, "chunked", head, records)
    hardware = head["gpu"] if args.device.type == "cuda" else f"{head['cpu']}, {head['threads']} threads"
    _chunked.picture(args.out / "chunked.png", records, hardware)
    print(f"written: {args.out}{os.sep}chunked.csv, chunked.json, chunked.png")


def draw_pictures(args: argparse.Namespace, records: Sequence[Record], hardware: str) -> list[str]:
    """Pictures of each operation's bandwidth, and of all operations' speed; of what was left out there is none."""
    drawn = []
    for op in args.ops:
        mine = [record for record in records if (record.op, record.metric) == (op, "bandwidth")]
        if mine:
            _report.picture(args.out / f"{op}.png", mine, "bandwidth", f"{op}: useful bandwidth on {hardware}")
            drawn.append(f"{op}.png")
    if any((r.metric, r.pass_) == ("speed", "both") and r.implementation != "eager" for r in records):
        _report.overview(args.out / "speed.png", records, f"Forward and backward, {hardware}")
        drawn.append("speed.png")
    return drawn


def main() -> None:
    """Measure what the options ask for."""
    args = parse()
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)  # the one that timers wait for
    name = "host" if args.host else "chunked" if args.chunked else "benchmark"
    with _folder.for_results(args.out, "runs/benchmark", (f"{name}.csv", f"{name}.json")) as args.out:
        if args.host:
            host(args)
        elif args.chunked:
            chunked(args)
        else:
            elementwise(args)


def elementwise(args: argparse.Namespace) -> None:
    """Measure operations, count what is asked for beside, and write what came out."""
    torch._functorch.config.donated_buffer = False  # or a compiled backward refuses a second run
    if not set(COMPILED).isdisjoint(args.backends) and not can_compile(args.device):
        args.backends = [name for name in args.backends if name not in COMPILED]
    records: list[Record] = []
    work = [(op, dtype) for op in args.ops for dtype in args.dtypes]
    with progress("benchmark", len(work) * len(args.sizes) * len(args.passes)) as done:
        for op, dtype in work:
            for n in args.sizes:
                try:
                    records += measure(op, dtype, n, args, done)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    print(f"{op} of {n} elements in {dtype} is left out: out of memory on {args.device}")
    if args.machine_code:
        with progress("machine code", len(work)) as done:
            for op, dtype in work:
                records += machine_code(op, dtype, args.passes)
                done()
    if args.bytes:
        records += [record for op, dtype in work for record in traffic(op, dtype, MODELLED_ELEMENTS)]
    head = _report.header(args.device if args.device.type == "cuda" else None) | {
        "backend": sigtorch.backend_of(torch.ones(1, device=args.device))
    }
    _report.show(head, records)
    _report.write(args.out, "benchmark", head, records)
    hardware = head["gpu"] if args.device.type == "cuda" else f"{head['cpu']}, {head['threads']} threads"
    print(
        f"written: {args.out}{os.sep}{', '.join(['benchmark.csv', 'benchmark.json', *draw_pictures(args, records, hardware)])}"
    )


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
