"""Compiles what sigtorch would launch for an NVIDIA architecture, no GPU needed, and counts in the machine code.

Inside ``compiled(arch)`` every Triton launch of this thread is compiled exactly as it would be for such a GPU, with the
specialisation and the options of the real call, and not run: tensors on the CPU stand for those of the GPU, and results
are uninitialised memory. ``count`` then disassembles a launch with the tools in Triton's own package.

    with use_backend("triton"), compiled(90) as launches:
        sigtorch.sigmoid(torch.empty(2**20, dtype=torch.bfloat16))
    print(count(launches[0]).instructions * launches[0].threads / 2**20)  # an element

Example, a table of every architecture: ``python scripts/benchmark.py --ops sigmoid --machine-code``
"""

import contextlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)
_LABEL = re.compile(r"^(\.L_x_\w+):")
_INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/)?\s*[{]?\s*(@!?U?P\w+)?\s*([A-Z][A-Z0-9_.]+)\b(.*)")
_JUMP = re.compile(r"\s*(!?U?P\d+,)?\s*(?:`\((\.L_x_\w+)\))?")
_WIDTH = re.compile(r"\.(?:ENL2\.)?[US]?(8|16|64|128|256)\b")


Block = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Launch:
    """One kernel as compiled for a launch, and its grid."""

    kernel: Any
    grid: tuple[int, ...]

    @property
    def threads(self) -> int:
        return prod(self.grid) * self.kernel.metadata.num_warps * 32

    @property
    def ptx(self) -> str:
        return self.kernel.asm["ptx"]

    @property
    def signature(self) -> dict[str, Any]:
        """Triton's types of the arguments, by name."""
        return self.kernel.src.signature

    @property
    def alignment(self) -> dict[tuple[int, ...], Any]:
        """Name what Triton assumed of the arguments, by their place in the signature."""
        return self.kernel.src.attrs


@dataclass(frozen=True)
class Held:
    """The storage that a thread of a kernel holds: registers, and bytes on its stack for what exceeds them."""

    registers: int
    stack: int


@dataclass(frozen=True)
class Counts(Held):
    """The instructions that a thread executes on the way of full blocks, and the storage that it holds.

    ``accesses`` are that way's reads and writes of global memory by kind and bits: ``{"load 128": 2, "store 128": 2}``.
    A loop counts as one turn.
    """

    name: str
    instructions: int
    mufu: int
    accesses: dict[str, int]
    spills: int
    atomics: int


class _Driver:
    """The part of a driver that compiling asks for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return -self.arch  # Triton keeps kernels by device: a number that no GPU has

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiled(arch: int) -> Iterator[list[Launch]]:
    """Compile every launch for ``arch`` (90 for sm_90) in place of running it; yields the list of them, in order."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: the interpreter makes no machine code")
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if callable(grid):
            grid = grid(dict(zip(self.arg_names, args, strict=False)) | options)
        launches.append(Launch(kernel, grid))
        return kernel

    state = dict(vars(driver))
    driver.set_active(_Driver(arch))
    try:
        with mock.patch.object(JITFunction, "run", compile_only):
            yield launches
    finally:
        vars(driver).update(state)  # `reset_active` would look for a GPU


def disassemble(kernel: Any) -> str:
    """A compiled kernel's machine code as text."""
    return _tool("nvdisasm", kernel, "-c", "-ndf")  # no analysis of jumps to computed places, which takes half the time


def held(launch: Launch) -> Held:
    """Ask what a launch's kernel holds, which takes no disassembling."""
    used = {k: int(v) for k, v in re.findall(r"(REG|STACK):(\d+)", _tool("cuobjdump", launch.kernel, "-res-usage"))}
    return Held(registers=used["REG"], stack=used["STACK"])


def count(launch: Launch) -> Counts:
    """Disassemble a launch's kernel and count."""
    kernel = launch.kernel
    sass = disassemble(kernel)
    path = _full_blocks(_basic_blocks(sass))
    return Counts(
        **vars(held(launch)),
        name=kernel.metadata.name,
        instructions=len(path),
        mufu=sum("MUFU" in op for op in path),
        accesses=dict(Counter(filter(None, map(_access, path)))),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        atomics=len(re.findall(r"\b(?:atom|red)\.", kernel.asm["ptx"])),
    )


def busiest_loop(launch: Launch) -> list[str]:
    """Return the instructions of the loop with the most of ``MUFU``: a turn of attention's loop over keys or queries."""
    ops: list[str] = []
    starts: dict[str, int] = {}
    loops: list[list[str]] = [[]]
    for line in disassemble(launch.kernel).splitlines():
        if label := _LABEL.match(line):
            starts[label.group(1)] = len(ops)
        instruction = _INSTRUCTION.match(line)
        if not instruction or instruction.group(2) == "NOP":
            continue
        _, op, operands = instruction.groups()
        ops.append(op)
        target = _JUMP.match(operands).group(2)
        if op.startswith("BRA") and target in starts:
            loops.append(ops[starts[target] :])
    return max(loops, key=lambda loop: sum("MUFU" in op for op in loop))


def _tool(name: str, kernel: Any, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([TOOLS / name, *options, file.name], capture_output=True, text=True, check=True).stdout


def _access(op: str) -> str | None:
    kind = {"LDG": "load", "STG": "store"}.get(re.search(r"\w+(?=\.|$)", op).group())
    width = _WIDTH.search(op)
    return kind and f"{kind} {width.group(1) if width else 32}"


def _basic_blocks(sass: str) -> dict[str, Block]:
    """SASS as {label: (its instructions, the labels that may follow)}, the entry first."""
    ops: list[str] = []
    following: list[str] = []
    blocks = {"entry": (ops, following)}
    ended = False  # by a jump that is always taken: nothing runs on into what is written next

    def begin(label: str) -> None:
        nonlocal ops, following, ended
        if not ended:
            following.append(label)
        ops, following = blocks[label] = ([], [])
        ended = False

    for line in sass.splitlines():
        if label := _LABEL.match(line):
            begin(label.group(1))
        instruction = _INSTRUCTION.match(line)
        if not instruction or instruction.group(2) == "NOP":
            continue
        guard, op, operands = instruction.groups()
        ops.append(f"{guard} {op}" if guard else op)
        condition, target = _JUMP.match(operands).groups()
        # A call of a label is a jump, which some compilers leave loops by; one of a function comes back.
        if op.split(".")[0] in ("BRA", "EXIT") or (op.startswith("CALL") and target):
            following.extend([target] if target else [])
            ended = not (guard or condition)
            begin(f"after {len(blocks)}")
    return blocks


def _full_blocks(blocks: dict[str, Block]) -> list[str]:
    """The way from entry to an exit with the widest accesses that no mask guards, in sum; of these, the shortest."""
    ways: dict[str, list[str] | None] = {}

    def best(label: str) -> list[str] | None:
        if label not in ways:
            ways[label] = None  # met again on the way to itself: a loop, and no way out
            ops, following = blocks[label]
            rest = [way for way in map(best, following) if way is not None]
            if rest or "EXIT" in "".join(ops[-1:]):
                ways[label] = ops + max(rest, key=_unmasked_width, default=[])
        return ways[label]

    return best("entry")


def _unmasked_width(way: list[str]) -> tuple[int, int]:
    return sum(int(_access(op).split()[1]) for op in way if op.startswith(("LDG", "STG"))), -len(way)
