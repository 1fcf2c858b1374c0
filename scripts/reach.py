"""Count what ``sigtorch.patch`` reaches in small models of other libraries: their own code, random weights.

A site is a product σ(g)·x or silu(g)·u of two tensors that one evaluation of a small model computes. The plain model's sites
are counted by watching its operators; those fused are the products that the patched model hands to sigtorch in a shape that
a kernel takes. The same run checks that the patched model's output is the plain one's, to the last bit.

Needs models: ``pip install ".[scripts,models]"`` brings timm, torchvision and transformers, the extra ``reach`` brings the
others. No download of weights, no GPU.

Example: ``python scripts/reach.py --libraries timm torchvision``
"""

import _start  # isort: skip
import argparse
import importlib.util
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import _folder
import torch
from _models import EXTRAS, LIBRARIES, Example
from _options import folder
from _output import progress, write_csv
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sigtorch
from sigtorch.ops import gates
from sigtorch.plugin import products
from sigtorch.plugin.recognise import SIGMOID

ACTIVATIONS = {torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_, torch.ops.aten.silu, torch.ops.aten.silu_}
PRODUCTS = {torch.ops.aten.mul, torch.ops.aten.mul_}
NO_KERNEL = "no method, or operands that no kernel takes"  # of which the patch says nothing


class Watch(TorchDispatchMode):
    """Finds products of two tensors of which one is what a sigmoid or silu returned, maybe cast or as a view, for just that."""

    def __init__(self) -> None:
        super().__init__()
        self.activated: dict[int, torch.Tensor] = {}  # by storage, each kept alive so that no other takes its place
        self.uses: Counter[int] = Counter()  # of such a storage, by what is no view of it
        self.products: list[tuple[str, set[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        used = {storage(t) for t in tree_leaves(args) if isinstance(t, torch.Tensor)} & self.activated.keys()
        packet = func.overloadpacket
        if packet in ACTIVATIONS or (used and packet is torch.ops.aten._to_copy):
            self.activated[storage(out)] = out
        if isinstance(out, torch.Tensor) and storage(out) not in used:
            self.uses.update(used)
        if used and packet in PRODUCTS and all(isinstance(t, torch.Tensor) and t.dim() for t in args[:2]):
            self.products.append((line(), used))
        return out

    def sites(self) -> Counter[str]:
        """Counts the products at each line of code."""
        return Counter(site for site, used in self.products if any(self.uses[s] == 1 for s in used))


def storage(t: torch.Tensor) -> int:
    """The storage of a tensor; a sparse one has none."""
    return t.untyped_storage()._cdata if t.layout == torch.strided else 0  # type: ignore[no-any-return]


def line() -> str:
    """Find whose code multiplies: the first file on the stack that is neither PyTorch's, nor the plug-in's, nor this."""
    passed = (Path(torch.__file__).parent, Path(products.__file__).parent, Path(__file__))
    for frame, number in traceback.walk_stack(sys._getframe()):
        path = Path(frame.f_code.co_filename)
        if not {path, *path.parents} & {*passed}:
            return f"{path.parent.name}/{path.name}:{number}"
    return "?"


def outputs(model: torch.nn.Module, example: Example) -> list[torch.Tensor]:
    """The tensors of one evaluation."""
    torch.manual_seed(0)
    with torch.no_grad():
        out = model(**example.inputs())
    leaves = tree_leaves(dict(out) if isinstance(out, dict) else out)
    return [t for t in leaves if isinstance(t, torch.Tensor)]


def by_operators(kind: str, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """A product that sigtorch is handed, by PyTorch's operators."""
    return gates.sigmoid_gate(x, gate) if kind == SIGMOID else gates.swiglu(gate, x)


def row(name: str, example: Example) -> dict[str, Any]:
    """The row of a table for a model."""
    torch.manual_seed(0)
    model = example.build().eval()
    with Watch() as before:
        plain = outputs(model, example)
    with sigtorch.patch(model) as patch:
        reasons = dict(row.split(": ", 1) for rows in patch.left.values() for row in rows.splitlines() if ": " in row)
        same = all(torch.equal(a, b) for a, b in zip(plain, outputs(model, example), strict=True))
        # CPU tensors pass for those of a device with kernels; PyTorch's operators compute what is handed over.
        operators = {"runs_kernel": lambda *tensors: True, "fused_product": by_operators}
        with mock.patch.multiple(products, **operators), Watch() as after:
            outputs(model, example)
    left = {site: n for site, n in after.sites().items() if site.split(":")[0] != "ops/gates.py"}
    sites = before.sites().total()
    return {
        "model": name,
        "sites": sites,
        "fused": sites - sum(left.values()),
        "output": "same" if same else "OTHER",
        "left": "; ".join(f"{n} at {site}, {reasons.get(site.split('/')[-1], NO_KERNEL)}" for site, n in left.items()),
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
    if not options.libraries and missing:
        print(not_installed(missing))
    chosen = options.libraries or [library for library in LIBRARIES if library not in missing]
    try:
        models = {library: LIBRARIES[library]() for library in chosen}
    except ImportError as error:
        parser.error(f"argument --libraries: {error}")
    with _folder.for_results(options.out, "runs/reach", ("reach.csv",)) as out:
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
