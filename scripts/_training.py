"""What the training scripts share: options, seeding, a progress bar, and where the numbers go."""

import argparse
import csv
import math
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import sigtorch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
Row = dict[str, Any]


def positive_int(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"wants a whole number of at least 1, not {text!r}")
    return number


def positive_float(text: str) -> float:
    """An argparse type: a finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"wants a finite number above 0, not {text!r}")
    return number


def seed(text: str) -> int:
    """An argparse type: what torch, numpy and random all take as a seed."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"wants a whole number from 0 to 2**32 - 1, not {text!r}")
    return number


def device(text: str) -> torch.device:
    """An argparse type: a device that is there and holds numbers; "auto" takes a GPU where there is one."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing driver warns first and then raises
            found = torch.ones(1, device=name).cpu().to(name).device
        there = torch.device(name).index in (None, found.index)  # torch takes "cpu:1" for "cpu"
    except (RuntimeError, AssertionError, ValueError):  # torch raises any of them, on several lines
        there = False
    if not there:
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here")
    return found


def folder(text: str) -> Path:
    """An argparse type: a folder that is there, or that can be made."""
    path = Path(text)
    try:
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        fits = bool(text) and there.is_dir() and os.access(there, os.W_OK)
    except OSError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"cannot write into a folder {text!r}")
    return path


def add_options(
    parser: argparse.ArgumentParser, *, out: str, save: bool = False, dtypes: Iterable[str] = DTYPES
) -> None:
    """Add the options that mean the same in every training script; save only where there are sigmoids to choose it for."""
    add = parser.add_argument
    add("--seed", type=seed, default=0, help="start of every random number (%(default)s)")
    add("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--dtype", choices=dtypes, default="float32", help="of weights and activations (%(default)s)")
    backend = os.environ.get("SIGTORCH_BACKEND") or "auto"
    add("--backend", choices=("auto", "triton", "aten"), default=backend, help="what computes (%(default)s)")
    if save:
        saves = {"choices": ("output", "input"), "default": "output"}
        add("--save", **saves, help="what a sigmoid keeps for backward (%(default)s)")
    else:
        parser.set_defaults(save="output")
    add("--out", type=folder, default=out, help="folder for metrics, curves and checkpoint (%(default)s)")
    add("--compare", action="store_true", help="train with PyTorch's own operators too, and show both")


def check_backend(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Try the chosen backend, device and dtype on one number, and end in one line if they don't go together."""
    try:
        with sigtorch.use_backend(args.backend):
            x = torch.ones(1, 1, device=args.device, dtype=DTYPES[args.dtype], requires_grad=True)
            sigtorch.sigmoid(x @ x, save=args.save).sum().backward()
    except (RuntimeError, TypeError, ValueError) as error:
        parser.error(str(error).splitlines()[0])


def seed_everything(number: int) -> None:
    """Start every random number generator at the same place."""
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[..., None]]:
    """A live bar over total steps; what it yields takes one step and shows the metrics given by name."""
    # Short enough for the metrics to fit beside it on 80 columns.
    columns = (TextColumn("{task.description}"), BarColumn(10), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[metrics]}")) as bar:
        task = bar.add_task(name, total=total, metrics="")

        def step(**metrics: float) -> None:
            shown = "  ".join(
                f"{key} {value:,.0f}" if value >= 1e4 else f"{key} {value:.4g}" for key, value in metrics.items()
            )
            bar.update(task, advance=1, metrics=shown)

        yield step


def give_up(loss: float, when: str) -> NoReturn:
    """End a training run whose loss is no number any more."""
    raise SystemExit(f"error: the loss is {loss} after {when}; a smaller --lr may help")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a row; the first row names the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def plot_curves(path: Path, rows: Sequence[Row], *, x: str, panels: dict[str, Sequence[str]]) -> None:
    """Draw a panel for each label, its columns over column x; rows of different runs differ in colour."""
    figure = Figure(figsize=(5 * len(panels), 3.8), dpi=120, layout="constrained")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    for axes, (label, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, run in enumerate(runs):
            mine = [row for row in rows if row["run"] == run]
            # The first run is drawn broad and the second thin, so that both are seen where they coincide.
            broad = {"linewidth": 5, "alpha": 0.4} if number == 0 and len(runs) > 1 else {"linewidth": 1.5}
            for column, style in zip(columns, ("-", ":"), strict=False):
                curve = [row[column] for row in mine]
                name = f"{run}: {column.replace('_', ' ')}"
                axes.plot([row[x] for row in mine], curve, style, color=f"C{number}", label=name, **broad)
        axes.set(xlabel=x, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def save_checkpoint(path: Path, model: torch.nn.Module, config: Row) -> None:
    """Weights and plain values only: torch.load(path) opens it without running anybody's code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "config": config}, path)


def show_table(title: str, rows: Iterable[Row]) -> None:
    """Print rows as a table; the first one names the columns."""
    table = Table(title=title)
    for number, row in enumerate(rows):
        if number == 0:
            for name in row:
                table.add_column(name)
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
