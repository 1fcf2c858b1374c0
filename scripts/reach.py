"""Count what sigtorch.patch reaches in small models of other libraries: their own code, random weights.

A site is a product of a sigmoid or silu that one evaluation of a small model computes, as Patch.report counts them: without
those whose sigmoid or silu other code takes, too, and without those in a library's own autograd.Function, which stay as
they are. The same run checks that the patched model's output is the plain one's, to the last bit. So are the outputs and
gradients of a training step, where the model can train on its example.

Needs models: pip install ".[scripts,models]" brings timm, torchvision and transformers, the extra reach brings the
others. No download of weights, no GPU.

Example: python scripts/reach.py --libraries timm torchvision
"""

import _start  # isort: skip
import argparse
import contextlib
import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import _folder
import torch
from _models import EXTRAS, LIBRARIES, Example
from _options import folder
from _output import progress, write_csv
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_leaves

import sigtorch
from sigtorch.plugin.report import AUTOGRAD_REASON


def tensors(out: Any) -> list[torch.Tensor]:
    """The tensors among what a model returns."""
    return [t for t in tree_leaves(dict(out) if isinstance(out, dict) else out) if isinstance(t, torch.Tensor)]


def evaluated(model: torch.nn.Module, example: Example) -> list[torch.Tensor]:
    """Returns the results of one evaluation."""
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors(model(**example.inputs()))


def trained(model: torch.nn.Module, example: Example) -> list[torch.Tensor | None]:
    """Returns the outputs of a training step, and the gradients of all parameters."""
    torch.manual_seed(0)
    out = tensors(model.train()(**example.inputs()))
    if wanted := [t.square().mean() for t in out if t.requires_grad]:
        torch.stack(wanted).sum().backward()
    return [*out, *(p.grad for p in model.parameters())]


def built(example: Example) -> torch.nn.Module:
    """The example's model, with the same weights each time."""
    torch.manual_seed(0)
    return example.build()


def are_same(found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None]) -> str:
    """Compares to the last bit."""
    pairs = zip(found, expected, strict=True)
    same = all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)
    return "same" if same else "OTHER"


def training_of(example: Example) -> str:
    """Compares a step of a patched model with one of the plain model."""
    try:
        expected = trained(built(example), example)
    except Exception:  # as a norm of batches raises, of a single value
        return "cannot"
    model = built(example)
    with sigtorch.patch(model):
        return are_same(trained(model, example), expected)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Computes in one thread, for the same bits in each run: several add a convolution's gradients in any order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def row(name: str, example: Example) -> dict[str, Any]:
    """The row of a table for a model."""
    model = built(example).eval()
    plain = evaluated(model, example)
    with sigtorch.patch(model) as patch:
        same = are_same(evaluated(model, example), plain)
        report = patch.report(**example.inputs())
    left, own = Counter[str](), 0
    for product in report.products:
        if not (product.fused or product.shared):
            left[f"{product.place}, {product.why}"] += product.count
            own += product.count if product.why == AUTOGRAD_REASON else 0
    return {
        "model": name,
        "sites": report.total - own,
        "fused": report.fused,
        "output": same,
        "training": training_of(example),
        "left": "; ".join(f"{n} at {site}" for site, n in left.items()),
    }


def table(library: str, rows: list[dict[str, Any]]) -> Table:
    """One library's models, and their sum."""
    sites, reached = (sum(r[name] for r in rows) for name in ("sites", "fused"))
    made = Table(title=f"{library}: {reached} of {sites} sites ({reached / max(sites, 1):.0%})")
    for name in rows[0]:
        made.add_column(name, justify="right" if name in ("sites", "fused") else "left")
    for r in rows:
        made.add_row(*map(str, r.values()))
    return made


def not_installed(missing: set[str]) -> str:
    """Tell which extra brings each library that is missing."""
    rows = {extra: ", ".join(sorted(missing.intersection(libraries))) for extra, libraries in EXTRAS.items()}
    return "; ".join(
        f"not installed: {names}; the extra sigtorch[{extra}] brings them" for extra, names in rows.items() if names
    )


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, help="(default: those that are installed)")
    parser.add_argument("--out", type=folder, help="new folder for reach.csv (default: runs/reach, runs/reach-2, ...)")
    options = parser.parse_args()
    missing = {library for library in LIBRARIES if importlib.util.find_spec(library) is None}
    if unmet := missing.intersection(options.libraries or []):
        parser.error(f"argument --libraries: {not_installed(unmet)}")
    chosen = options.libraries or [library for library in LIBRARIES if library not in missing]
    try:
        models = {library: LIBRARIES[library]() for library in chosen}
    except ImportError as error:
        parser.error(f"argument --libraries: {error}")
    with _folder.for_results(options.out, "runs/reach", ("reach.csv",)) as out:
        if not options.libraries and missing:
            print(not_installed(missing))
        write_csv(out / "reach.csv", counted(models))
        print(f"written: {out / 'reach.csv'}")


def counted(models: dict[str, dict[str, Example]]) -> list[dict[str, Any]]:
    """A row a model; prints a table a library."""
    console, found = Console(), []
    for library, examples in models.items():
        rows: list[dict[str, Any]] = []
        with progress(library, len(examples)) as step, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old models' own code
            for name, example in examples.items():
                rows.append(row(name, example))
                step(sites=rows[-1]["sites"], fused=rows[-1]["fused"])
        console.print(table(library, rows))
        found += [{"library": library, **r} for r in rows]
    return found


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
