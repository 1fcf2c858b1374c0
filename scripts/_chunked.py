"""Memory and time of the losses over a product that is never whole, beside eager PyTorch and chunks with checkpointing.

Memory is what one step holds at its peak beyond inputs and gradients, which all need: of a CPU the process's own peak, as
the kernel counts it, of a GPU PyTorch's. Each figure comes from a process of its own.
"""

import _start  # isort: skip
import json
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _measure import Step, peak_extra_bytes
from _output import progress, replacing
from _report import Record
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sigtorch

FEATURES, POSITIVES = 256, 5
CHUNK = 1024  # of the checkpointed
SHARE = 0.5  # of the memory that is free, at most: more could end other people's processes
LEAST = 0.25  # MiB: a process' memory is counted in pages, by batches of them, and steps of less are noise
NAMES = {"eager": "eager PyTorch", "checkpointed": "chunks, checkpointed", "sigtorch": "sigtorch"}
Inputs = tuple[list[Tensor], Any]  # what gradients are taken of, and targets


# Inputs are made without anything larger on the way, which an allocator might keep, and a step then take for nothing.


def siglip_inputs(n: int, device: torch.device) -> Inputs:
    """Features of n pairs, scale and bias."""
    features = [torch.randn(n, FEATURES, device=device) for _ in range(2)]
    for t in features:
        t /= t.norm(dim=-1, keepdim=True)
    numbers = [torch.tensor(value, device=device) for value in (10.0, -10.0)]
    return [t.requires_grad_() for t in features + numbers], None


def siglip_part(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, start: int) -> Tensor:
    """The summed loss of the images from start on, as open_clip has it."""
    logits = scale * image @ text.t() + bias
    labels = -torch.ones_like(logits)
    labels.diagonal(start).fill_(1)
    return -F.logsigmoid(labels * logits).sum()


def siglip_eager(given: list[Tensor], _: None) -> Tensor:
    """Computes all pairs at once."""
    return siglip_part(*given, 0) / len(given[0])


def siglip_checkpointed(given: list[Tensor], _: None) -> Tensor:
    """Chunks of images, whose logits backward computes again."""
    image, *others = given
    starts = range(0, len(image), CHUNK)
    parts = [checkpoint(siglip_part, image[at : at + CHUNK], *others, at, use_reentrant=False) for at in starts]
    return torch.stack(parts).sum() / len(image)


def linear_inputs(samples: int, labels: int, hidden: int, device: torch.device) -> Inputs:
    """Hidden features, weight and bias; targets of a few labels a sample, as row pointers and columns."""
    given = [torch.randn(n, hidden, device=device) for n in (samples, labels)]
    given[1] /= hidden**0.5
    share = labels // POSITIVES  # one label from each
    columns = torch.randint(share, (samples, POSITIVES)) + share * torch.arange(POSITIVES)
    targets = torch.arange(0, samples * POSITIVES + 1, POSITIVES), columns.flatten()
    return [t.requires_grad_() for t in (*given, torch.zeros(labels, device=device))], tuple(
        t.to(device) for t in targets
    )


def linear_part(x: Tensor, weight: Tensor, bias: Tensor, columns: Tensor, start: int) -> Tensor:
    """The summed loss of some labels."""
    targets = x.new_zeros(len(x), len(weight))
    rows = torch.arange(len(x), device=x.device).repeat_interleave(POSITIVES)
    inside = (columns >= start) & (columns < start + len(weight))
    targets[rows[inside], columns[inside] - start] = 1
    return F.binary_cross_entropy_with_logits(F.linear(x, weight, bias), targets, reduction="sum")


def linear_eager(given: list[Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Computes all labels at once."""
    x, weight, bias = given
    return linear_part(x, weight, bias, targets[1], 0) / (len(x) * len(weight))


def linear_checkpointed(given: list[Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Chunks of labels, whose logits backward computes again."""
    x, weight, bias = given
    size = 16 * CHUNK
    parts = [
        checkpoint(linear_part, x, weight[at : at + size], bias[at : at + size], targets[1], at, use_reentrant=False)
        for at in range(0, len(weight), size)
    ]
    return torch.stack(parts).sum() / (len(x) * len(weight))


def linear_sigtorch(given: list[Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Computes the loss in chunks of labels, without a checkpoint."""
    x, weight, bias = given
    return sigtorch.linear_binary_cross_entropy(x, weight, targets, linear_bias=bias)


class Loss(NamedTuple):
    """A loss to measure over one size, by each of NAMES."""

    title: str
    size: str
    inputs: Callable[[int, torch.device], Inputs]
    features: int
    logits: Callable[[int], int]
    sizes: list[int]
    timed: int  # up to this size: beyond, eager code takes minutes
    ways: dict[str, Callable[..., Tensor]]


LINEAR = {
    "eager": linear_eager,
    "checkpointed": linear_checkpointed,
    "sigtorch": linear_sigtorch,
}
LOSSES = {
    "siglip": Loss(
        "SigLIP's loss",
        f"pairs n, of {FEATURES} features",
        siglip_inputs,
        FEATURES,
        lambda n: n * n,
        [2048, 4096, 8192, 16384, 32768],
        8192,
        {
            "eager": siglip_eager,
            "checkpointed": siglip_checkpointed,
            "sigtorch": lambda given, _: sigtorch.siglip_loss(*given),
        },
    ),
    "linear_bce": Loss(
        "Linear layer with a BCE",
        "labels L, 256 samples of 128 features",
        lambda labels, device: linear_inputs(256, labels, 128, device),
        128,
        lambda labels: 256 * labels,
        [50_000, 100_000, 200_000],
        200_000,
        LINEAR,
    ),
    "linear_bce_batch": Loss(
        "The same, over the batch",
        "samples N of 512 features, 10,000 labels",
        lambda samples, device: linear_inputs(samples, 10_000, 512, device),
        512,
        lambda samples: samples * 10_000,
        [1, 4, 16, 64, 256, 1024, 4096],
        256,
        LINEAR,
    ),
}


def step_of(op: str, name: str, inputs: Inputs) -> Step:
    """Loss and gradients, which the inputs then have."""
    loss, (given, targets) = LOSSES[op].ways[name], inputs

    def step() -> None:
        for t in given:
            t.grad = None
        loss(given, targets).backward()

    return step


def _status(name: str) -> int:
    """Bytes, of what the kernel counts of this process."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def extra_memory(op: str, name: str, size: int, device: torch.device) -> int:
    """Bytes that one step holds at its peak in this process, beyond inputs and gradients."""
    torch.manual_seed(0)
    step_of(op, name, LOSSES[op].inputs(64, device))()  # what libraries set up for themselves
    inputs = LOSSES[op].inputs(size, device)
    step = step_of(op, name, inputs)
    if device.type == "cuda":
        extra = peak_extra_bytes(step, device)
    else:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        step()
        extra = _status("VmHWM") - before
    return extra - sum(t.numel() * t.element_size() for t in inputs[0])


def in_its_own_process(op: str, name: str, size: int, device: torch.device) -> int:
    """The same, asked of a new process."""
    command = [sys.executable, __file__, op, name, str(size), str(device)]
    # In a session of its own, so that Ctrl-C ends this process alone, which then ends that one.
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, start_new_session=True)
    return json.loads(done.stdout.splitlines()[-1])


def fits(op: str, name: str, size: int, device: torch.device) -> bool:
    """Check whether a step can be tried: eager code holds at most six matrices of all logits at once."""
    if name != "eager" or device.type == "cuda":
        return True
    free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    return 24 * LOSSES[op].logits(size) < SHARE * free


def measured(args: Namespace) -> list[Record]:
    """Memory and times of both losses, of all three ways to compute them."""
    from _timing import interleaved  # what it imports has no place in a process whose memory is measured

    runs = [(op, size) for op, loss in LOSSES.items() for size in (args.sizes or loss.sizes)]
    records = []
    with progress("losses in chunks", len(runs)) as done:
        for op, size in runs:
            names = [name for name in NAMES if fits(op, name, size, args.device)]
            shape = f"{size}x{LOSSES[op].features}"
            held = {name: in_its_own_process(op, name, size, args.device) for name in names}
            figures = {name: [("extra memory", bytes_ / 2**20, "MiB")] for name, bytes_ in held.items()}
            if size <= LOSSES[op].timed:
                inputs = LOSSES[op].inputs(size, args.device)
                times, _ = interleaved({name: step_of(op, name, inputs) for name in names}, args.rounds, args.device)
                for name, time in times.items():
                    figures[name] += [("time", time.median * 1e3, "ms"), ("spread", 100 * time.iqr / time.median, "%")]
                    if "eager" in times:
                        figures[name].append(("of eager's time", time.median / times["eager"].median, "×"))
            if "eager" in held:
                for name in names:
                    figures[name].insert(1, ("of eager's memory", 100 * held[name] / held["eager"], "%"))
            records += [
                Record(op, "both", "float32", shape, name, args.device.type, *figure, "measured")
                for name in names
                for figure in figures[name]
            ]
            done()
    return records


def picture(path: Path, records: list[Record], hardware: str) -> None:
    """Extra memory over the number of pairs, of labels and of samples."""
    figure = Figure(figsize=(13, 4), dpi=130, layout="constrained")
    for axes, (op, loss) in zip(figure.subplots(1, len(LOSSES)), LOSSES.items(), strict=True):
        for number, (name, label) in enumerate(NAMES.items()):
            found = [r for r in records if (r.op, r.implementation, r.metric) == (op, name, "extra memory")]
            points = sorted((int(r.shape.split("x")[0]), max(r.value, LEAST)) for r in found)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=f"C{number}", label=label)
        axes.set(title=loss.title, xlabel=loss.size, ylabel="peak extra memory, MiB", yscale="log")
        axes.set_xscale("log", base=2)
        ticks = sorted({int(r.shape.split("x")[0]) for r in records if r.op == op})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize="small")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    title = f"A training step beyond inputs and gradients, float32, {hardware}; less than {LEAST} MiB drawn as that"
    figure.suptitle(title, fontsize="medium")
    with replacing(path) as aside:
        figure.savefig(aside)


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    loss, implementation, size, device_name = sys.argv[1:]
    print(extra_memory(loss, implementation, int(size), torch.device(device_name)))
