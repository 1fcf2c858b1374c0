"""Measurements of a training or a benchmark beside time: memory, and what a step waits for."""

import gc
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _distributed import gather
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]


def peak_extra_bytes(step: Step, device: torch.device) -> int:
    """The most memory that one call holds above what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # what a cycle of objects holds would be freed during the step
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would report its start and a missing GPU
    with warnings.catch_warnings():
        # torch 2.11 warns that it drops events after a cycle. acc_events=True would keep them, but parses each twice.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_memory(device: torch.device) -> int:
    """The most bytes that one of the processes has held: of a GPU's memory, or on a CPU of all it is."""
    on_gpu = device.type == "cuda"
    held = (
        torch.cuda.max_memory_allocated(device) if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return max(gather(held))


def bound_by(step: Step, device: torch.device) -> str:
    """Find what a step waits for: the "host", which launches kernels, or the "device", which runs them; or the "CPU", both."""
    if device.type != "cuda":
        return "CPU"
    shares = []
    for _ in range(5):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        step()
        launched = time.perf_counter()
        torch.cuda.synchronize(device)
        shares.append((launched - started) / (time.perf_counter() - started))
    return "host" if statistics.median(shares) > 0.9 else "device"
