"""Times of steps that take turns, so that drift hits all alike: on a CPU by the clock, on a GPU by its own events."""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _measure import Step
from torch import Tensor
from torch.utils.benchmark import Measurement, Timer
from torch.utils.benchmark.utils.common import TaskSpec

SECONDS_A_ROUND = 0.05  # for each implementation: a few calls and the allocator decides who looks fast
CALLS_A_ROUND = 20  # on a GPU, launched while it is kept busy
BUSY_CYCLES = 50_000_000  # some 25 ms, in which the host gets ahead


def passes_of(function: Callable[..., Tensor], inputs: Sequence[Any]) -> dict[str, Step]:
    """The three things to time; backward runs over and over on one graph.

    A summed loss of sigtorch computes its gradient in forward, and for each later backward pass anew: only forward and
    backward together show what a training step takes.
    """
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    out = function(*inputs)
    grad = torch.randn_like(out) if out.dim() else torch.ones_like(out)
    return {
        "forward": lambda: function(*inputs),
        "backward": lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True),
        "both": lambda: torch.autograd.grad(function(*inputs), wanted, grad),
    }


def rotation(t: Tensor) -> int:
    """Counts the tensors like this one that fill the device's cache twice: reads from the cache are too fast."""
    if t.device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(t.device).L2_cache_size
    return math.ceil(2 * cache / (t.numel() * t.element_size()))


def in_turn(steps: Sequence[Step]) -> Step:
    """One step that is each of these in turn."""
    turn = 0

    def step() -> Any:
        nonlocal turn
        turn += 1
        return steps[turn % len(steps)]()

    return step


def interleaved(
    steps: dict[str, Step], rounds: int, device: torch.device
) -> tuple[dict[str, Measurement], dict[str, float]]:
    """Each step's times, and on a GPU the seconds that a call keeps the host; every round times all, in an order of its own."""
    threads = torch.get_num_threads()
    timers = {name: Timer("step()", globals={"step": step}, num_threads=threads) for name, step in steps.items()}
    numbers = {name: max(1, math.ceil(SECONDS_A_ROUND / timer.timeit(2).median)) for name, timer in timers.items()}
    times: dict[str, list[Measurement]] = {name: [] for name in steps}
    host: dict[str, float] = {}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(steps), len(steps)):
            if device.type == "cuda":
                seconds, launching = on_device(steps[name], min(numbers[name], CALLS_A_ROUND))
                times[name].append(Measurement(1, [seconds], TaskSpec("step()", "", num_threads=threads)))
                host[name] = min(launching, host.get(name, math.inf))
            else:
                times[name].append(timers[name].timeit(numbers[name]))
    return {name: Measurement.merge(turns)[0] for name, turns in times.items()}, host


def on_device(step: Step, number: int) -> tuple[float, float]:
    """Seconds that a call keeps the GPU, and the host: launched behind a kernel that sleeps, so that neither waits."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    started = time.perf_counter()
    for _ in range(number):
        step()
    host = time.perf_counter() - started
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / number, host / number
