"""The cost of a call on the host, which launches kernels while a GPU computes: CPU time forward and backward, tensors small.

Without a GPU, Triton's own launcher works over a driver that does nothing (``without_gpu.standin``), and eager operators are
PyTorch's on the CPU: on a GPU each of their launches takes some 2 to 3 us more.
"operator" is the same work by ``torch.ops.sigtorch``, with the operator's own autograd. "patched" is a model that calls the
eager function, after ``sigtorch.patch``.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import _report
import torch
from _cases import CASES
from _measure import Step
from _output import progress
from _report import Record
from _timing import passes_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sigtorch

ELEMENTS = 2048
ROUNDS, CALLS = 40, 100


class Nothing(torch.autograd.Function):
    """The floor: what every autograd.Function costs that saves two tensors and allocates its results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(y)


class Calls(TorchDispatchMode):
    """Keeps the calls of sigtorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Callable[..., Any], Sequence[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sigtorch":
            self.kept.append((func, args))
        return func(*args, **(kwargs or {}))


def by_operator(function: Callable[..., Tensor], inputs: Sequence[Any]) -> Callable[..., Tensor]:
    """A function of the same inputs that only calls the operator which this one calls under a dispatch mode."""
    with Calls() as calls:
        function(*inputs)
    ((operator, args),) = calls.kept

    def call(*_: Any) -> Tensor:
        out = operator(*args)
        return out if isinstance(out, Tensor) else out[0]  # a loss returns more

    return call


class Model(torch.nn.Module):
    """A model that calls one function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        """Call it."""
        return self.function(*inputs)


def by_patch(function: Callable[..., Tensor]) -> Model | None:
    """A patched model of a function; None if nothing in it is fused."""
    model = Model(function)
    return model if sigtorch.patch(model).swapped else None


def measured(ops: Sequence[str], device: torch.device) -> tuple[dict[str, Any], list[Record]]:
    """A header, and each operation's host time forward and backward, in all ways."""
    torch.set_num_threads(1)
    head = _report.header(device if device.type == "cuda" else None)
    if device.type != "cuda":
        _stand_in()
        head["driver"] = "a stand-in that does nothing"
    with sigtorch.use_backend("triton"):
        steps = _steps(ops, device)
        times = _best(steps, device)
    floor = times.pop(("floor", "autograd.Function"))
    records = []
    for (op, name), microseconds in {("floor", "autograd.Function"): floor, **times}.items():
        figures = [("host time", microseconds, "us"), ("floors", microseconds / floor, "")]
        records += [
            Record(op, "both", "bfloat16", str(ELEMENTS), name, device.type, metric, value, unit, "measured")
            for metric, value, unit in figures
        ]
    return head, records


def _steps(ops: Sequence[str], device: torch.device) -> dict[tuple[str, str], Step]:
    x, y, grad = (torch.ones(ELEMENTS, dtype=torch.bfloat16, device=device, requires_grad=n < 2) for n in range(3))
    nothing = partial(lambda x, y: torch.autograd.grad(Nothing.apply(x, y), (x, y), grad), x, y)
    steps: dict[tuple[str, str], Step] = {("floor", "autograd.Function"): nothing}
    for op in ops:
        inputs = CASES[op].inputs(ELEMENTS, torch.bfloat16, device)
        eager, ours = CASES[op].eager, CASES[op].ours
        ways = {"eager": eager, "sigtorch": ours, "operator": by_operator(ours, inputs), "patched": by_patch(eager)}
        for name, function in ways.items():
            if function is not None:
                steps[op, name] = passes_of(function, inputs)["both"]
    for step in steps.values():
        for _ in range(3):  # compiles
            step()
    return steps


def _best(steps: dict[tuple[str, str], Step], device: torch.device) -> dict[tuple[str, str], float]:
    """Microseconds of this thread's CPU time, the best of rounds in which all take turns."""
    best = dict.fromkeys(steps, float("inf"))
    with progress("host time", ROUNDS) as done:
        for _ in range(ROUNDS):
            for name, step in steps.items():
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                started = time.thread_time_ns()
                for _ in range(CALLS):
                    step()
                best[name] = min(best[name], (time.thread_time_ns() - started) / CALLS / 1e3)
            done()
    return best


def _stand_in() -> None:
    from without_gpu import standin

    warnings.filterwarnings("ignore", "CUDA initialization")  # PyTorch sees the stand-in, too
    standin.install()
