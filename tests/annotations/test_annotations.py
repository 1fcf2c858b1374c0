"""Type checkers accept a program that uses every public name, and reject each mistake in another."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sigtorch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RIGHT, WRONG = HERE / "every_name.py", HERE / "mistakes.py"


def errors_of_mypy():
    """By the project's settings, so that `make lint` and this share mypy's cache: PyTorch's types take it half a minute.

    The two programs switch on what these settings take from strict.
    """
    command = [sys.executable, "-m", "mypy", RIGHT, WRONG]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^(\S+):(\d+): error: ", done.stdout, re.MULTILINE)
    # In a checkout mypy also reads the library's own source, which `make lint` checks by its own rules.
    return [(file, line) for file, line in found if Path(file).parent.name == HERE.name], done.stdout + done.stderr


def errors_of_basedpyright(folder):
    config = {"include": [str(HERE)], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "pythonVersion": "3.10"}
    config["ignore"] = [str(Path(__file__))]
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", folder, "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(f["file"], f["range"]["start"]["line"] + 1) for f in found], done.stdout


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_a_checker_takes_what_is_right_and_rejects_each_mistake(checker, tmp_path):
    errors, output = errors_of_mypy() if checker == "mypy" else errors_of_basedpyright(tmp_path)
    mistakes = [n for n, line in enumerate(WRONG.read_text().splitlines(), 1) if line.startswith("sigtorch.")]
    assert len(mistakes) > 10
    assert sorted((Path(file).name, int(line)) for file, line in errors) == [(WRONG.name, n) for n in mistakes], output


def test_the_program_runs_and_uses_every_public_name():
    text = RIGHT.read_text()
    names = [rf"sigtorch\.{name}" for name in sigtorch.__all__ if name != "nn"]
    names += [rf"nn\.{name}\(" for name in sigtorch.nn.__all__]
    assert [name for name in names if not re.search(rf"\b{name}", text)] == []
    values = runpy.run_path(str(RIGHT))
    for output in values["outputs"]:
        assert not output.isnan().any()
        if output.requires_grad:
            output.sum().backward()
    assert all(repr(module) for module in values["modules"])
