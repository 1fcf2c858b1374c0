"""Time sigtorch's operations against eager PyTorch and torch.compile, and a plain copy, all in the same run.

Forward (recording for backward, as in training), backward, and both. Implementations take turns, so that drift hits all
alike; the median of the rounds counts, and the spread is the middle half of them: ratios closer to 1 than the spreads
are noise. Bandwidth is useful bandwidth: the bytes that the operation cannot do without, over the time; who moves more
shows a lower one. Peak extra memory is that of one call, results included.
``--machine-code`` adds what the kernels compile to for NVIDIA architectures, and ``--bytes`` what eager operators and
kernels have to move: counted, not run, no GPU needed.

Example: ``python scripts/benchmark.py --ops sigmoid --sizes 1048576 4194304 --dtypes float32 --machine-code``
"""

import argparse
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import _report
import _stdout
import torch
import torch._functorch.config
import torch.nn.functional as F
from _measure import peak_extra_bytes
from _options import DTYPES, device, folder, positive_int
from _output import progress
from _report import Record
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Measurement, Timer

import sigtorch

Step = Callable[[], Any]
PASSES = ("forward", "backward", "both")
IMPLEMENTATIONS = ("eager", "compile", "sigtorch")
SIZES = [2**16, 2**20, 2**22]
SECONDS_A_ROUND = 0.05  # for each implementation: a few calls and the allocator decides who looks fast
MODELLED_ELEMENTS = 2**20  # full blocks only, whatever the block


@dataclass(frozen=True)
class Case:
    """One operation. ``inputs(n, dtype, device)`` makes the arguments of both callables, for n elements of output.

    Gradients are taken for the inputs that require them. ``moved(itemsize)`` are the bytes an element that forward and
    backward cannot do without moving.
    """

    inputs: Callable[[int, torch.dtype, torch.device], tuple[Any, ...]]
    eager: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    moved: Callable[[int], tuple[float, float]]


def normal(count: int) -> Callable[[int, torch.dtype, torch.device], tuple[Tensor, ...]]:
    """Inputs of a Case: this number of normally distributed vectors, all of them differentiable."""
    return lambda n, dtype, device: tuple(
        torch.randn(n, dtype=dtype, device=device, requires_grad=True) for _ in range(count)
    )


def token_gates(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Rows of 1,024 features, a gate for each."""
    rows = torch.randn(max(1, n // 1024), 1024, dtype=dtype, device=device)
    return rows.requires_grad_(), torch.randn(len(rows), 1, dtype=dtype, device=device, requires_grad=True)


def packed(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Rows of 1,024 features, two halves each."""
    return (torch.randn(max(1, n // 1024), 2048, dtype=dtype, device=device, requires_grad=True),)


def logits(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Logits, and targets that are 1 for one in ten."""
    return torch.randn(n, dtype=dtype, device=device, requires_grad=True), (torch.rand(n, device=device) < 0.1).to(
        dtype
    )


def eager_lerp(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """One sigmoid, as people write it."""
    s = torch.sigmoid(gate)
    return s * x + (1 - s) * y


def eager_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As in Llama."""
    return F.silu(gate) * up


def eager_focal(x: Tensor, t: Tensor) -> Tensor:
    """The mean focal loss in the operators that detection libraries write it with."""
    p = torch.sigmoid(x)
    missed = p * (1 - t) + (1 - p) * t
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * missed**2
    return ((0.25 * t + 0.75 * (1 - t)) * loss).mean()


CASES = {
    "sigmoid": Case(normal(1), torch.sigmoid, sigtorch.sigmoid, lambda size: (2 * size, 3 * size)),
    "sigmoid-save-input": Case(
        normal(1), torch.sigmoid, lambda x: sigtorch.sigmoid(x, save="input"), lambda size: (2 * size, 3 * size)
    ),
    "sigmoid_gate": Case(
        normal(2), lambda x, g: torch.sigmoid(g) * x, sigtorch.sigmoid_gate, lambda size: (3 * size, 5 * size)
    ),
    "sigmoid_gate-residual": Case(
        normal(3), lambda x, g, r: torch.sigmoid(g) * x + r, sigtorch.sigmoid_gate, lambda size: (4 * size, 5 * size)
    ),
    "sigmoid_gate-token": Case(
        token_gates, lambda x, g: torch.sigmoid(g) * x, sigtorch.sigmoid_gate, lambda size: (2 * size, 3 * size)
    ),
    "sigmoid_lerp": Case(
        normal(3),
        eager_lerp,
        sigtorch.sigmoid_lerp,
        lambda size: (4 * size, 7 * size),
    ),
    "glu": Case(packed, F.glu, sigtorch.glu, lambda size: (3 * size, 5 * size)),
    "swiglu": Case(normal(2), eager_swiglu, sigtorch.swiglu, lambda size: (3 * size, 5 * size)),
    "swiglu-packed": Case(
        packed,
        lambda x: eager_swiglu(*x.chunk(2, -1)),
        sigtorch.swiglu,
        lambda size: (3 * size, 5 * size),
    ),
    "bce": Case(
        logits,
        F.binary_cross_entropy_with_logits,
        sigtorch.binary_cross_entropy_with_logits,
        lambda size: (2 * size, 3 * size),
    ),
    "focal": Case(
        logits,
        eager_focal,
        lambda x, t: sigtorch.sigmoid_focal_loss(x, t, reduction="mean"),
        lambda size: (2 * size, 3 * size),
    ),
}


def passes_of(function: Callable[..., Tensor], inputs: Sequence[Any]) -> dict[str, Step]:
    """The three things to time; backward runs over and over on one graph."""
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    out = function(*inputs)
    grad = torch.randn_like(out)
    return {
        "forward": lambda: function(*inputs),
        "backward": lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True),
        "both": lambda: torch.autograd.grad(function(*inputs), wanted, grad),
    }


def implementations(case: Case, names: Sequence[str], inputs: Sequence[Any]) -> dict[str, dict[str, Step]]:
    """Every implementation's passes, compiled and warm."""
    torch._dynamo.reset()  # or the next size is compiled with dynamic shapes
    functions = {"eager": case.eager, "sigtorch": case.ours, "compile": torch.compile(case.eager, fullgraph=True)}
    torch.atanh(torch.zeros(2**20))  # until its threads have, torch 2.14's F.logsigmoid is several times slower
    made = {name: passes_of(functions[name], inputs) for name in IMPLEMENTATIONS if name in names}
    for steps in made.values():
        for step in steps.values():
            step()
    return made


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, Measurement]:
    """Each step's times; every round times all of them, in an order of its own."""
    threads = torch.get_num_threads()
    timers = {name: Timer("step()", globals={"step": step}, num_threads=threads) for name, step in steps.items()}
    numbers = {name: max(1, math.ceil(SECONDS_A_ROUND / timer.timeit(2).median)) for name, timer in timers.items()}
    times: dict[str, list[Measurement]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(steps), len(steps)):
            times[name].append(timers[name].timeit(numbers[name]))
    return {name: Measurement.merge(turns)[0] for name, turns in times.items()}


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
    """What forward and backward have to move, as eager operators and as sigtorch's kernels."""
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
    inputs = case.inputs(n, DTYPES[dtype], args.device)
    made = implementations(case, args.backends, inputs)
    source, target = torch.ones(2, n, dtype=DTYPES[dtype], device=args.device)
    size = source.element_size()
    forward, backward = case.moved(size)
    moved = {"forward": forward, "backward": backward, "both": forward + backward}
    shape = "x".join(map(str, inputs[0].shape))
    for pass_ in args.passes:
        steps = {name: steps[pass_] for name, steps in made.items()} | {"copy": lambda: target.copy_(source)}
        times = interleaved(steps, args.rounds)
        seconds = {name: time.median for name, time in times.items()}
        for name, step in steps.items():
            rate = (2 * size if name == "copy" else moved[pass_]) * n / seconds[name]
            figures = [
                ("time", seconds[name] * 1e3, "ms"),
                ("spread", 100 * times[name].iqr / seconds[name], "%"),
                ("bandwidth", rate / 1e9, "GB/s"),
            ]
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
    """What forward and backward compile to, for every architecture."""
    import _machine_code

    case, records, n = CASES[op], [], MODELLED_ELEMENTS
    inputs = case.inputs(n, DTYPES[dtype], torch.device("cpu"))
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    for arch in _machine_code.ARCHITECTURES:
        with sigtorch.use_backend("triton"):
            with _machine_code.compiled(arch) as forward:
                out = case.ours(*inputs)
            with _machine_code.compiled(arch) as backward:
                torch.autograd.grad(out, wanted, torch.empty_like(out))
        for pass_, launches in {"forward": forward, "backward": backward, "both": forward + backward}.items():
            counts = [(_machine_code.count(launch), launch.threads / n) for launch in launches if pass_ in passes]
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
    """Whether torch.compile finds the compiler it needs for the device."""
    try:
        torch.compile(torch.sigmoid)(torch.ones(1, device=device))
    except TorchDynamoException as error:
        print(f"torch.compile is left out, it does not work here: {str(error).splitlines()[0]}")
        return False
    return True


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, or one line on what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several: dict[str, Any] = {"nargs": "+", "metavar": ("NAME", "NAME")}
    add = parser.add_argument
    add("--ops", choices=CASES, default=list(CASES), help=f"of {', '.join(CASES)} (all)", **several)
    add("--sizes", type=positive_int, nargs="+", default=SIZES, metavar="N", help="elements %(default)s")
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
    add("--machine-code", action="store_true", help="count instructions of the kernels too")
    add("--bytes", action="store_true", help="count the bytes that have to be moved too")
    add("--out", type=folder, default="runs/benchmark", help="folder for CSV, JSON and pictures (%(default)s)")
    args = parser.parse_args(arguments)
    if args.machine_code:
        if os.environ.get("TRITON_INTERPRET", "0") != "0":
            parser.error("--machine-code: TRITON_INTERPRET is set, and the interpreter makes no machine code")
        try:
            import _machine_code  # noqa: F401
        except ImportError as error:
            parser.error(f"--machine-code needs Triton: {error}")
    return args


def main() -> None:
    args = parse()
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)  # the one that timers wait for
    torch._functorch.config.donated_buffer = False  # or a compiled backward refuses a second run
    if "compile" in args.backends and not can_compile(args.device):
        args.backends = [name for name in args.backends if name != "compile"]
    records: list[Record] = []
    work = [(op, dtype) for op in args.ops for dtype in args.dtypes]
    with progress("benchmark", len(work) * len(args.sizes) * len(args.passes)) as done:
        for op, dtype in work:
            for n in args.sizes:
                records += measure(op, dtype, n, args, done)
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
    _report.write_csv(args.out / "benchmark.csv", records)
    _report.write_json(args.out / "benchmark.json", head, records)
    hardware = head["gpu"] if args.device.type == "cuda" else f"{head['cpu']}, {head['threads']} threads"
    for op in args.ops:
        mine = [record for record in records if record.op == op]
        _report.picture(args.out / f"{op}.png", mine, "bandwidth", f"{op}: useful bandwidth on {hardware}")
    print(f"written: {args.out}{os.sep}benchmark.csv, benchmark.json, {', '.join(f'{op}.png' for op in args.ops)}")


if __name__ == "__main__":
    _stdout.escape_what_it_lacks()
    main()
