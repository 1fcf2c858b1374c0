"""The loop that every training script runs: steps, measurements, checkpoints, and when to stop.

A script says in a ``Job`` what it learns from and how, makes a ``Run`` of each model, and calls ``train``.
"""

import argparse
import functools
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _checkpoint
import _data
import _distributed
import _options
import _shares
import torch
from _measure import peak_memory
from _output import Row, give_up, logging, progress, save_weights, warn, write_csv
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

SHOWN_STEPS = 50  # whose speed stands beside the progress
COMPARED_STEPS = 300  # whose losses are kept, of the first: rounding adds up with every step
KEPT = ("rows", "losses", "all", "since")  # of a run, by a checkpoint, as plain values
SMALLEST_SCALE = 1.0  # of a loss in float16: if its gradients overflow even so, the scale is not to blame


@dataclass(frozen=True)
class Job:
    """The task that a model is trained for, whatever the model.

    ``batch_of(step)`` gives the numbers of the step's samples, those of all processes; ``place_of`` says where they are.
    ``loss(model, samples)`` is their mean loss. ``measure(model, step, loss)`` makes a row, given the mean loss of the
    steps since the last one, and ``measured(step)`` says whether it is time. ``factor(n)`` is the share of the learning
    rate after n steps.
    """

    steps: int
    batch_of: Callable[[int], Tensor]
    place_of: Callable[[Tensor], str]
    loss: Callable[[nn.Module, Tensor], Tensor]
    measure: Callable[[nn.Module, int, float], Row]
    measured: Callable[[int], bool]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    factor: Callable[[int], float]
    unit: str  # what there are so many of in a second
    units: int  # of them in a step
    progress_figure: tuple[str, str]  # beside the progress: a name, and a column of the rows


class Run:
    """A model in training, with what was measured on the way.

    ``parts`` are those of its modules that are compiled, and gathered from shards, one at a time; without any, the
    whole model is.
    """

    def __init__(
        self, name: str, model: nn.Module, job: Job, args: argparse.Namespace, parts: Sequence[nn.Module] = ()
    ):
        self.name, self.model, self.job, self.args, self.device = name, model, job, args, args.device
        if args.compile:
            for part in parts or [model]:
                part.forward = torch.compile(part.forward)
        self.shared = _shares.names(model)
        self.called = _distributed.spread(model, parts, args.parallel, args.device, self.shared)
        self.optimizer = job.optimizer(model.parameters())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, job.factor)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.dtype == "float16")
        self.log: Callable[[str, Row, int], None] = lambda run, row, step: None
        self.times: deque[float] = deque(maxlen=SHOWN_STEPS)  # of the last steps of this process
        self.pending: tuple[Any, ...] | None = None
        self.stopping = False
        self.loss = math.nan  # known a step later
        # What a checkpoint keeps of it: rows, the first losses, and sums over all steps and over those since the last row.
        self.rows: list[Row] = []
        self.losses: list[float] = []
        self.all = {"steps": 0, "units": 0, "seconds": 0.0}
        self.since = {"loss": 0.0, "steps": 0, "units": 0, "seconds": 0.0}

    def autocast(self) -> torch.autocast:
        """The context in which the model computes."""
        half = self.args.dtype in ("bfloat16", "float16")
        return torch.autocast(self.device.type, _options.DTYPES[self.args.dtype] if half else None, enabled=half)

    def backward(self, parts: Sequence[Tensor]) -> Tensor:
        """Add the gradients of a batch that comes in parts, and return the mean loss of this process's samples."""
        loss = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, 1):
            with _distributed.accumulating(self.called, number == len(parts)):
                with self.autocast():
                    share = self.job.loss(self.called, part) / len(parts)
                self.scaler.scale(share).backward()
            loss += share.detach()
        return loss

    def warm_up(self) -> None:
        """Compile and load what a step needs, and leave everything as it was."""
        self.backward(_data.share(self.job.batch_of(1), self.args.accumulate, self.args.parallel))
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self, number: int, parts: Sequence[Tensor], stop: bool) -> None:
        """One step down the slope; ``stop`` is whether this process was told to end."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.backward(parts)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else too large a scale has overflowed, and the step was left out
            self.schedule.step()
        # The host reads these figures a step later, so that a GPU needn't wait for it.
        figures = torch.full((3,), float(stop), device=self.device)
        figures[0] = loss / _distributed.size()
        _distributed.total(figures[:2])
        figures[2] = norm
        self.settle(timed=False)
        self.pending = (number, scale, figures.to("cpu", non_blocking=True), self._event())
        self._add_time(started)

    def _clip(self) -> Tensor:
        """Scale the gradients down where --clip says so, and return their norm before."""
        gradients = {name: t.grad for name, t in self.model.named_parameters() if t.grad is not None}
        norm = _shares.norm(gradients, self.shared)
        if self.args.clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.args.clip, norm)
        return _distributed.whole(norm)

    def _event(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _add_time(self, started: float, *, step: bool = True) -> None:
        taken = time.perf_counter() - started
        for sums in (self.all, self.since):
            sums["seconds"] += taken
        if step:
            self.times.append(taken)
        else:
            self.times[-1] += taken

    def settle(self, *, timed: bool = True) -> None:
        """Wait for the last step, and end the training if its loss or gradient is no number."""
        if self.pending is None:
            return
        started = time.perf_counter()
        (number, scale, figures, event), self.pending = self.pending, None
        if event is not None:
            event.synchronize()
        self.loss, stop, norm = figures.tolist()
        if timed:
            self._add_time(started, step=False)
        overflowed = self.scaler.is_enabled() and scale > SMALLEST_SCALE and not math.isfinite(norm)
        if not math.isfinite(self.loss) or not (math.isfinite(norm) or overflowed):
            figure = f"the loss is {self.loss:g} and its gradient's norm {norm:g}"
            raise FloatingPointError(f"{figure} in step {number}, of {self.job.place_of(self.job.batch_of(number))}")
        self.stopping = stop > 0
        if len(self.losses) < COMPARED_STEPS:
            self.losses.append(self.loss)
        self.since["loss"] += self.loss
        for sums in (self.all, self.since):
            sums["steps"] += 1
            sums["units"] += self.job.units
        self.log(self.name, {"loss": self.loss, "gradient_norm": norm}, number)

    def measure(self, step: int) -> None:
        """Add a row about the steps since the last one."""
        self.settle()
        since = self.since
        with self.autocast():
            row = {"run": self.name} | self.job.measure(self.called, step, since["loss"] / since["steps"])
        row[f"{self.job.unit}_per_second"] = round(since["units"] / since["seconds"])
        row["peak_memory_mib"] = round(peak_memory(self.device) / 2**20, 1)
        row["seconds"] = round(self.all["seconds"], 3)
        self.rows.append(row)
        self.since = dict.fromkeys(since, 0)
        self.log(self.name, row, step)

    def tensors(self) -> Row:
        """The tensors that a checkpoint keeps: the same for any number of processes."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return _shares.wholes({"model": model, "optimizer": optimizer}, self.shared)

    def values(self) -> Row:
        """The plain values that a checkpoint keeps."""
        kept = {name: getattr(self, name) for name in KEPT}
        return kept | {"schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Row, values: Row) -> None:
        """Restore what ``tensors`` and ``values`` returned; a learning rate that was given anew holds."""
        rates, tensors = self.schedule.base_lrs, _shares.own(tensors, self.shared)
        set_state_dict(
            self.model, self.optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"]
        )
        self.schedule.load_state_dict(values["schedule"])
        self.schedule.base_lrs = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group |= {"initial_lr": rate, "lr": rate * self.job.factor(self.schedule.last_epoch)}
        if self.scaler.is_enabled() and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        for name in KEPT:
            setattr(self, name, values[name])

    def weights(self) -> dict[str, Tensor]:
        """All weights, on the CPU; in the first process alone."""
        if self.shared:
            whole = {name: _distributed.whole(t).cpu() for name, t in self.tensors()["model"].items()}
            return whole if _distributed.rank() == 0 else {}
        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def summary(self) -> Row:
        """The row of a table: time and speed of all steps, including those before the training was resumed."""
        seconds = self.all["seconds"]
        row = {"seconds": f"{seconds:.2f}", "ms a step": f"{1000 * seconds / self.all['steps']:.2f}"}
        row[f"{self.job.unit} a second"] = f"{self.all['units'] / seconds:,.0f}"
        peak = f"{self.rows[-1]['peak_memory_mib']:,.0f} MiB"
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        processes = f"{_distributed.size()} × " if _distributed.size() > 1 else ""
        return row | {
            "peak memory": peak,
            "device": f"{processes}{self.device.type if processes else self.device}{name}",
        }


def train(runs: Sequence[Run], job: Job, args: argparse.Namespace) -> None:
    """Train the runs on the same batches, taking turns, so that a busy machine slows all of them alike."""
    if args.checkpoint and (after := _checkpoint.values_of(args.checkpoint)["step"]) > job.steps:
        give_up(f"{args.checkpoint} comes after step {after}, and the training ends after {job.steps}", 2)
    for run in runs:
        run.warm_up()
    start = resume(runs, args)
    title = runs[0].name if len(runs) == 1 else "both"
    folder = args.out / "tensorboard" if args.tensorboard else None
    with (
        _checkpoint.noting_signals() as caught,
        logging(folder, start) as log,
        progress(title, job.steps, start) as show,
    ):
        for run in runs:
            run.log = log
        saved = args.checkpoint
        for number in range(start + 1, job.steps + 1):
            try:
                for run in runs if number % 2 else reversed(runs):
                    run.step(number, _data.share(job.batch_of(number), args.accumulate, args.parallel), bool(caught))
                    if len(runs) > 1:
                        run.settle()
                for run in runs if job.measured(number) else ():
                    run.measure(number)
                stopping = runs[0].stopping
                every = args.checkpoint_every
                if stopping or number == job.steps or (every and number % every == 0):
                    saved = save(runs, number, args, saved)
            except FloatingPointError as error:
                give_up(f"{error}; the last good checkpoint is {saved or 'none'}; a smaller --lr may help")
            show(**progress_figures(runs[0]))
            if stopping:
                heard = _distributed.gather(caught[0] if caught else None)
                end = signal.Signals(next(number for number in heard if number is not None))
                after = f"--resume goes on from {saved}" if saved else "there is no checkpoint to go on from"
                give_up(f"{end.name} came, stopped after step {number}; {after}", 128 + end)
        for run in runs:
            if run.since["steps"]:
                run.measure(job.steps)


def names(args: argparse.Namespace) -> list[str]:
    """Names the runs that the options ask for."""
    return ["patched" if args.patch else "sigtorch", "torch"][: 1 + args.compare]


def print_difference(runs: Sequence[Run]) -> None:
    """Print how far the losses of two runs are apart, where there are two."""
    if len(runs) > 1:
        ours, theirs = (run.losses for run in runs)
        apart = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
        print(f"Largest relative difference between the two losses in the first {len(ours)} steps: {apart:.2g}")


def progress_figures(run: Run) -> dict[str, float]:
    """The figures beside a progress bar."""
    figures = {f"{run.job.unit}/s": run.job.units * len(run.times) / sum(run.times)}
    name, column = run.job.progress_figure
    figures |= {name: run.rows[-1][column]} if run.rows else {}
    return figures if math.isnan(run.loss) else figures | {"loss": run.loss}


def save(runs: Sequence[Run], number: int, args: argparse.Namespace, former: Path | None) -> Path | None:
    """Write a checkpoint of finite weights and the metrics so far, and return the last good checkpoint."""
    for run in runs:
        run.settle()
        norm = _shares.norm(
            {name: weight.detach() for name, weight in _distributed.weights_of(run.model).items()}, run.shared
        )
        if not _distributed.whole(norm).isfinite():
            raise FloatingPointError(f"the weights are no numbers after step {number}")
    tensors = {str(place): run.tensors() for place, run in enumerate(runs)}
    values = {"config": _options.config(args), "runs": [run.values() for run in runs]}
    try:
        path = _checkpoint.save(args.out / "checkpoints", number, tensors, values)
        if rows := [row for run in runs for row in run.rows]:
            write_metrics = functools.partial(write_csv, args.out / "metrics.csv", rows)
            _distributed.together(lambda: write_metrics() if _distributed.rank() == 0 else None)
    except OSError as error:
        warn(f"the checkpoint of step {number} could not be written: {error}; the last good one is {former or 'none'}")
        return former
    return path


def resume(runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Restore the runs from the checkpoint, and return the number of steps that they have taken."""
    if args.checkpoint is None:
        return 0
    values = _checkpoint.values_of(args.checkpoint)
    tensors = {str(place): run.tensors() for place, run in enumerate(runs)}
    try:
        _checkpoint.load(args.checkpoint, tensors)
    except OSError as error:
        give_up(f"{args.checkpoint} cannot be read: {error}", 2)
    for place, run in enumerate(runs):
        try:
            run.restore(tensors[str(place)], values["runs"][place])
        except KeyError as missing:
            give_up(f"{args.checkpoint} was written by another version of this script: it lacks {missing}", 2)
    changed = f", with {', '.join(args.changed)}" if args.changed else ""
    print(f"Goes on after step {values['step']}, from {args.checkpoint}{changed}", flush=True)
    return values["step"]


def write(
    runs: Sequence[Run], args: argparse.Namespace, draw_curves: Callable[[Path, Sequence[Row]], None]
) -> dict[str, Tensor]:
    """Leave metrics, the first run's weights and the curves, which ``draw_curves`` draws into a file, in --out.

    Returns:
        These weights, in the first process.
    """
    rows, weights = [row for run in runs for row in run.rows], runs[0].weights()

    def write_results() -> None:
        write_csv(args.out / "metrics.csv", rows)
        save_weights(args.out / "model.pt", weights, _options.config(args))
        draw_curves(args.out / "curves.png", rows)

    try:
        _distributed.together(lambda: write_results() if _distributed.rank() == 0 else None)
    except OSError as error:
        give_up(f"cannot write into {args.out}: {error}")
    return weights
