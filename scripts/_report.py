"""Records of figures, and what is made of them: tables on the screen, CSV, JSON and pictures.

A report measures or models, and says of every figure which. Example, the figures of an earlier run as tables again:
python scripts/_report.py runs/benchmark/benchmark.json
"""

import _start  # isort: skip
import argparse
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import torch
from _output import console, replacing, write_csv
from matplotlib.figure import Figure
from rich.table import Table


@dataclass(frozen=True)
class Record:
    """One figure. ``pass_`` is "pass" in files: Python keeps that word for itself."""

    op: str
    pass_: str  # "forward", "backward" or "both"
    dtype: str
    shape: str  # "4096x1024"
    implementation: str
    device: str
    metric: str
    value: float
    unit: str
    kind: str  # "measured" or "modelled"

    @property
    def elements(self) -> int:
        return prod(map(int, self.shape.split("x")))


COLUMNS = tuple(field.name.rstrip("_") for field in fields(Record))
SUBJECT = ("op", "pass", "dtype", "shape", "device", "implementation")  # what a row of a table is about


def header(device: torch.device | None = None) -> dict[str, Any]:
    """The versions, hardware (the GPU that ``device`` is), threads and date that the figures depend on."""
    return {
        "sigtorch": _version("sigtorch"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def as_row(record: Record) -> dict[str, Any]:
    """The record as the columns of a file."""
    return {column: getattr(record, field.name) for column, field in zip(COLUMNS, fields(Record), strict=True)}


def write(folder: Path, name: str, head: dict[str, Any], records: Iterable[Record]) -> None:
    """Write the figures, one a line, into name.csv, and the header and the figures into name.json."""
    rows = [as_row(record) for record in records]
    write_csv(folder / f"{name}.csv", rows, COLUMNS)
    with replacing(folder / f"{name}.json") as aside:
        aside.write_text(json.dumps({"header": head, "records": rows}, indent=1) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The header and the figures of a JSON file that ``write`` has written."""
    content = json.loads(path.read_text())
    return content["header"], [Record(*(row[column] for column in COLUMNS)) for row in content["records"]]


def show(head: dict[str, Any], records: Sequence[Record]) -> None:
    """Print the header and a table for each kind of figures."""
    screen = console()
    conditions = ", ".join(f"{key} {value}" for key, value in head.items() if value is not None)
    screen.print(conditions, highlight=False, soft_wrap=True)  # one line, that grep finds it whole
    for kind in dict.fromkeys(record.kind for record in records):
        screen.print(table(kind, [record for record in records if record.kind == kind]))


def table(title: str, records: Sequence[Record]) -> Table:
    """A row for each subject and a column for each metric; what all rows have in common goes into the title."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for record in records:
        row = as_row(record)
        metric = f"{record.metric}\n{record.unit}".strip()
        lines.setdefault(tuple(row[name] for name in SUBJECT), {})[metric] = _short(record.value)
    columns = list(zip(*lines, strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    common = [columns[i][0] for i in range(len(columns)) if i not in varying]
    metrics = list(dict.fromkeys(metric for line in lines.values() for metric in line))
    made = Table(title=" · ".join([title, *common]), title_justify="left")
    for i in varying:
        made.add_column(SUBJECT[i], no_wrap=True)
    for metric in metrics:
        made.add_column(metric, justify="right")
    group = None
    for subject, line in lines.items():
        if group not in (None, subject[:4]):
            made.add_section()  # implementations and devices of one thing stand together
        group = subject[:4]
        made.add_row(*(subject[i] for i in varying), *(line.get(metric, "") for metric in metrics))
    return made


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def picture(path: Path, records: Iterable[Record], metric: str, title: str) -> None:
    """Draw a metric over the number of elements: a row of panels for each dtype, a column for each pass."""
    records = [record for record in records if record.metric == metric]
    dtypes, passes, implementations = (
        list(dict.fromkeys(getattr(record, name) for record in records))
        for name in ("dtype", "pass_", "implementation")
    )
    size = (1.5 + 3.4 * len(passes), 1 + 2.6 * len(dtypes))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = figure.subplots(len(dtypes), len(passes), squeeze=False, sharex=True, sharey="row")
    for i, dtype in enumerate(dtypes):
        for j, pass_ in enumerate(passes):
            for number, name in enumerate(implementations):
                found = [r for r in records if (r.dtype, r.pass_, r.implementation) == (dtype, pass_, name)]
                points = sorted((record.elements, record.value) for record in found)
                style = {"color": "0.6", "linestyle": "--"} if name == "copy" else {"color": f"C{number}"}
                panels[i, j].plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **style)
            panels[i, j].set(yscale="log", title=f"{pass_}, {dtype}")  # or a copy leaves no room for a loss
            panels[i, j].set_xscale("log", base=2)
            panels[i, j].grid(alpha=0.3, which="both")
        panels[i, 0].set_ylabel(f"{metric}, {records[0].unit}")
        panels[i, 0].yaxis.set_major_formatter("{x:g}")
    for panel in panels[-1]:
        panel.set_xlabel("elements")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(implementations))
    figure.suptitle(title)
    with replacing(path) as aside:
        figure.savefig(aside)


def overview(path: Path, records: Iterable[Record], title: str) -> None:
    """Draw how many times as fast as eager PyTorch each operation is, forward and backward, at the largest size measured."""
    records = [record for record in records if (record.metric, record.pass_) == ("speed", "both")]
    largest = {op: max(r.elements for r in records if r.op == op) for op in dict.fromkeys(r.op for r in records)}
    records = [r for r in records if r.elements == largest[r.op] and r.implementation != "eager"]
    dtypes, ops, names = (
        list(dict.fromkeys(getattr(r, k) for r in records)) for k in ("dtype", "op", "implementation")
    )
    height = max(0.45, 0.2 * len(names))  # an operation's, in inches
    figure = Figure(figsize=(1.5 + 4.5 * len(dtypes), max(3, 1.2 + height * len(ops))), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    share = min(0.38, 0.8 / len(names))  # a bar's
    for panel, dtype in zip(panels, dtypes, strict=True):
        for number, name in enumerate(names):
            speeds = {r.op: r.value for r in records if (r.dtype, r.implementation) == (dtype, name)}
            places = [ops.index(op) + (number - (len(names) - 1) / 2) * share for op in speeds]
            beyond = [speed - 1 for speed in speeds.values()]
            bars = panel.barh(places, beyond, share - 0.02, left=1, color=f"C{number + 1}", label=name)
            panel.bar_label(bars, [f"{speed:.2f}" for speed in speeds.values()], padding=3, fontsize="small")
        panel.axvline(1, color="C0", label="eager")
        if missing := [
            name for name in names if not any((r.dtype, r.implementation) == (dtype, name) for r in records)
        ]:
            panel.text(
                0.98, 0.98, f"not measured: {', '.join(missing)}", ha="right", va="top", transform=panel.transAxes
            )
        panel.set(xscale="log", title=dtype, xlabel="times as fast as eager PyTorch", yticks=range(len(ops)))
        panel.set_yticklabels(ops)
        ticks = [2.0**power for power in range(-3, 6)]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xlim(min(0.8, *(r.value for r in records)) * 0.9, max(r.value for r in records) * 1.5)
        panel.xaxis.set_minor_formatter("")
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names) + 1)
    figure.suptitle(title, fontsize="medium")
    with replacing(path) as aside:
        figure.savefig(aside)


def main() -> None:
    """Print the figures of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "report", type=Path, help="a file that benchmark.py has written: benchmark.json or chunked.json"
    )
    try:
        head, records = read_json(parser.parse_args().report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"argument report: {error}")
    show(head, records)


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
