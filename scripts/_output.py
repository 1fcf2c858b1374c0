"""Writes the numbers of a training: a progress bar or lines, tables, CSV, curves, weights, TensorBoard."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from _distributed import rank
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

LINES = 20  # that a pipe gets of a training, where a terminal gets a bar
FAILED_WRITE = ("file write failed", "unexpected pos")  # in the text of PyTorch's writer, which may hide the cause
Row = dict[str, Any]


def warn(text: str) -> None:
    """Print one line on the error stream, from the first process."""
    if rank() == 0:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def give_up(text: str, status: int = 1) -> NoReturn:
    """Print one line, and end all processes, which call this together."""
    if rank() == 0:
        print(f"error: {text}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A live bar over total steps, or plain lines in a pipe.

    The function that it yields counts one step and shows the metrics given by name.
    """

    def text(metrics: dict[str, float]) -> str:
        return "  ".join(
            f"{key} {value:,.0f}" if value >= 1e4 else f"{key} {value:.4g}" for key, value in metrics.items()
        )

    if not Console().is_terminal:

        def line(**metrics: float) -> None:
            nonlocal done
            done += 1
            if done == total or done * LINES // total > (done - 1) * LINES // total:
                print(f"{name} {done}/{total}  {text(metrics)}", flush=True)

        yield line
        return
    # Short enough for the metrics to fit beside it on 80 columns.
    columns = (TextColumn("{task.description}"), BarColumn(10), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[metrics]}")) as bar:
        task = bar.add_task(name, total=total, completed=done, metrics="")
        yield lambda **metrics: bar.update(task, advance=1, metrics=text(metrics))


def console() -> Console:
    """The terminal at its own width, or a file or a pipe at 160 columns."""
    found = Console()
    return found if found.is_terminal else Console(width=160)


def show_table(title: str, rows: Iterable[Row]) -> None:
    """Print rows as a table; the first one names the columns."""
    table = Table(title=title)
    for number, row in enumerate(rows):
        if number == 0:
            for name in row:
                table.add_column(name)
        table.add_row(*(str(value) for value in row.values()))
    console().print(table)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write, and rename it to ``path`` once it is complete: a full disk leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Write one line a row; the columns are those given, or else those of the first row."""
    with replacing(path) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or rows[0])
        writer.writeheader()
        writer.writerows(rows)


def plot_curves(path: Path, rows: Sequence[Row], *, x: str, panels: dict[str, Sequence[str]]) -> None:
    """Draw a panel for each label, its columns over column x; rows of different runs differ in colour.

    The first two columns are lines with a name, and further ones thin lines behind these.
    """
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
            for column in columns[2:]:
                curve = [row[column] for row in mine]
                axes.plot([row[x] for row in mine], curve, color=f"C{number}", linewidth=0.6, alpha=0.5)
        axes.set(xlabel=x, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with replacing(path) as aside:
        figure.savefig(aside)


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise the operating system's own error, a full disk's for one, where PyTorch's writer makes another one of it.

    A RuntimeError that comes from no failed write stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise OSError(*cause.args[:2]) from None
        if any(text in str(error) for text in FAILED_WRITE):
            raise OSError(first_line(error)) from None
        raise


def save_weights(path: Path, weights: dict[str, torch.Tensor], config: Row) -> None:
    """Write weights and plain values alone: torch.load(path) opens them without running code of the file."""
    # Given a path, PyTorch's writer would not say what the operating system said.
    with replacing(path) as aside, aside.open("wb") as file, os_errors():
        torch.save({"model": weights, "config": config}, file)


@contextmanager
def logging(folder: Path | None, start: int) -> Iterator[Callable[[str, Row, int], None]]:
    """A function that logs a row's numbers of a run at a step for TensorBoard; without a folder it does nothing.

    What an earlier run logged after the step ``start`` is left out of the pictures.
    """
    if folder is None or rank() > 0:
        yield lambda run, row, step: None
        return
    from torch.utils.tensorboard import SummaryWriter  # an extra

    with SummaryWriter(str(folder), purge_step=start + 1) as writer:

        def log(run: str, row: Row, step: int) -> None:
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{name}/{run}", value, step)

        yield log
