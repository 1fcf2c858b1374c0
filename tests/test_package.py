"""The files that are installed, the direction of imports, and names that must not be shadowed."""

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.forking import forks

import sigtorch

ROOT = Path(__file__).parent.parent
MODULES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("sigtorch/**/*.py") if "kernels" not in p.parts)
KERNELS = sorted(p.stem for p in (ROOT / "kernels").glob("*.py"))
# Downwards only: a file may import what stands in a line below its own; within a folder, what stands beside it.
FLOORS = ["__main__", "commands", "__init__", "plugin", "nn", "ops", "cpu", "_elementwise", "_autograd", "_operators"]
FLOORS += ["_backend", "_eligible", "_checks", "_once"]


def imported(path, everywhere=True):
    """The modules of ours that a file imports, at its top or everywhere."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names = (a.name for a in node.names if a.name.startswith("sigtorch"))
            yield from (name if "." in name else f"{name}.__init__" for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sigtorch"):
            yield from (node.module if node.module != "sigtorch" else f"sigtorch.{a.name}" for a in node.names)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    floor = Path(name).with_suffix("").parts[1]
    at_the_top = {module.split(".")[1] for module in imported(ROOT / name, everywhere=False)}
    assert "kernels" not in at_the_top, "kernels are imported in functions, when the first tensor needs them"
    for module in imported(ROOT / name):
        below = module.split(".")[1]
        if below == "kernels":
            assert floor == "ops", f"{name} imports {module}"
            continue
        beside = below == floor and "/" in name.removeprefix("sigtorch/")
        assert beside or FLOORS.index(below) > FLOORS.index(floor), f"{name} imports {module}"


def test_a_family_has_the_same_name_on_every_floor():
    families = {p.stem for p in (ROOT / "sigtorch" / "ops").iterdir()} - {"__init__", "__pycache__"}
    assert {name for name in KERNELS if not name.startswith("_")} == families
    assert {p.stem for p in (ROOT / "sigtorch" / "cpu").glob("*.py")} - {"__init__"} <= families


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_import_only_their_own(name):
    path = ROOT / "kernels" / f"{name}.py"
    assert all(m.startswith("sigtorch.kernels._") or m == "sigtorch.kernels" for m in imported(path))
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            top = {n.split(".")[0] for n in names}
            assert top <= {"torch", "triton", "sigtorch"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda p: p.name)
def test_scripts_import_nothing_from_tests(path):
    """Tests import scripts, never the other way round."""
    tests = {p.stem for p in (ROOT / "tests").iterdir()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert tests.isdisjoint(a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] not in tests
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path"


def test_every_public_name_is_documented():
    for name in sigtorch.__all__:
        thing = getattr(sigtorch, name)
        doc = inspect.getdoc(thing)
        assert doc, name
        if inspect.isfunction(thing) and not name.startswith(("use_", "patched_")):  # context managers return nothing
            assert all(word in doc for word in ("Returns:", "Raises:")), name
    for name in sigtorch.nn.__all__:
        module = getattr(sigtorch.nn, name)
        assert module.__doc__, name
        assert module.forward.__doc__, name


def test_version_is_one():
    assert f'version = "{sigtorch.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive, and the wheel that is built from it."""
    source = tmp_path_factory.mktemp("built") / "source"  # a copy, for a build may leave something behind
    kept = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=kept)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", source.parent, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,), (wheel,) = source.parent.glob("*.tar.gz"), source.parent.glob("*.whl")
    return archive, wheel


def test_wheel_contents(built):
    with zipfile.ZipFile(built[1]) as z:
        names = {n for n in z.namelist() if ".dist-info/" not in n}
        metadata = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
    expected = {*MODULES} | {f"sigtorch/kernels/{m}.py" for m in KERNELS}
    assert names == expected | {"sigtorch/py.typed"}
    assert [r for r in metadata.splitlines() if r.startswith("Requires-Dist") and "extra" not in r] == [
        "Requires-Dist: torch>=2.8"
    ]
    targets = re.findall(r"\]\(([^)]*)\)", metadata)
    assert len(targets) > 10
    assert [t for t in targets if not t.startswith("https://")] == [], "the page of a package has no files beside it"


def test_source_archive_contents(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"} <= names
    for folder in ("kernels", "tests", "scripts", "docs"):
        files = {
            p.relative_to(ROOT).as_posix()
            for p in (ROOT / folder).rglob("*")
            if p.suffix in (".py", ".md", ".c", ".png")
        }
        assert files <= names


def import_transformers_in_the_root():
    """Imports it first in the process, and from the folder in which Python looks first."""
    assert "transformers" not in sys.modules
    os.chdir(ROOT)
    sys.path.insert(0, "")
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401


def test_transformers_imports_in_the_root():
    """Its `kernels` is another package: a folder of that name must not pass for it."""
    pytest.importorskip("transformers")
    with forks().Pool(1) as pool:
        pool.apply_async(import_transformers_in_the_root).get(60)  # raises what the import raises
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert importlib.import_module("sigtorch.kernels.sigmoid").sigmoid_forward


def test_names_and_order_are_pytorchs():
    """Each positional call, and each keyword, that PyTorch's or torchvision's function takes."""
    focal = ["inputs", "targets", "alpha", "gamma", "reduction"]
    for ours, theirs in (
        (sigtorch.sigmoid, ["input"]),
        (sigtorch.glu, inspect.signature(F.glu).parameters),
        (sigtorch.binary_cross_entropy_with_logits, inspect.signature(F.binary_cross_entropy_with_logits).parameters),
        (sigtorch.sigmoid_focal_loss, focal),
        (sigtorch.nn.BCEWithLogitsLoss, inspect.signature(torch.nn.BCEWithLogitsLoss).parameters),
        (sigtorch.nn.SigmoidFocalLoss, focal[2:]),
        (sigtorch.linear_binary_cross_entropy, ["input", "linear_weight", "target"]),  # F.linear_cross_entropy's
    ):
        parameters = inspect.signature(ours).parameters.values()
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == [*theirs], ours


@pytest.mark.parametrize("name", ["Sigmoid", "GLU", "BCEWithLogitsLoss", "SigmoidFocalLoss"])
def test_a_repr_shows_every_option(name):
    module = getattr(sigtorch.nn, name)
    options = [o for o in inspect.signature(module).parameters if o not in ("size_average", "reduce")]
    assert [o for o in options if f"{o}=" not in repr(module())] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "scripts/without_gpu/ptx/README.md"])
def test_links_lead_somewhere(page):
    """Pages that are no part of the site, which checks its own."""
    for target in re.findall(r"\]\(([^)]*)\)", (ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target
