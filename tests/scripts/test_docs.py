"""The commands of docs/training.md, as they stand there, with options behind them that make them small."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.scripting import SCRIPTS, checkpoints, environment, fork

PAGE = SCRIPTS.parent / "docs" / "training.md"
SMALL = {
    "train_text.py": "--device cpu --dim 16 --layers 1 --heads 2 --context 32 --steps 8 --data scripts/benchmark.py",
    "train_digits.py": "--device cpu --epochs 1",
}


def commands():
    """Each command line, and the exports that stand before it in its block."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL):
        *exports, first = (
            re.split(r"\n(?!export)", block.strip(), maxsplit=1) if block.startswith("export") else [block]
        )
        found += [(" ; ".join(exports), line) for line in first.strip().splitlines()]
    return found


NOT_FORKED = next(line for _, line in commands() if line.startswith("torchrun"))


def test_every_command_is_found():
    lines = [line for _, line in commands()]
    assert len(lines) == 9
    assert sum(line.count("torchrun") for line in lines) == 5
    assert all(line.split("scripts/")[1].split()[0] in SMALL for line in lines)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the scripts, for all that the commands write: one for all, since some go on from others."""
    place = tmp_path_factory.mktemp("page")
    (place / "scripts").symlink_to(SCRIPTS)
    return place


# In the place of Python and torchrun: leaves its name, what it was given, and variables for torchrun.
TELLING = f"""#!{sys.executable} -S
import json, os, sys
variables = {{name: value for name, value in os.environ.items() if name.startswith("TORCH")}}
print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], variables]))
"""


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """A folder with programs that tell how they were called."""
    folder = tmp_path_factory.mktemp("telling")
    for name in ("python", "torchrun"):
        (folder / name).write_text(TELLING)
        (folder / name).chmod(0o755)
    return folder


def execute(exports, line, runs, telling, said):
    """Run it as a reader would: a shell reads the line, and then what it calls is forked; one torchrun is not."""
    script = line.split("scripts/")[1].split()[0]
    every = " --checkpoint-every 4" if "--checkpoint-every" in line else ""
    shell = f"{exports or 'true'} ; {line} {SMALL[script]}{every}"
    programs = Path(sys.executable).parent if line == NOT_FORKED else telling
    env = environment(PATH=os.pathsep.join([str(programs), os.environ["PATH"]]))
    done = subprocess.run(
        ["bash", "-c", shell], cwd=runs, env=env, capture_output=True, text=True, check=False, timeout=200
    )
    if line != NOT_FORKED:
        name, arguments, variables = json.loads(done.stdout)
        arguments = ["torchrun", *arguments] if name == "torchrun" else [Path(arguments[0]).name, *arguments[1:]]
        done = fork(*arguments, cwd=runs, **variables)
    said.append(done)


@pytest.mark.parametrize(("exports", "line"), commands(), ids=lambda text: text[:40])
def test_command(exports, line, runs, telling):
    machines = 2 if "--nnodes" in line else 1
    if "--resume" in line and "torchrun" in line:  # let there be something left to do
        newest = runs / "runs/gpt/checkpoints" / checkpoints(runs / "runs/gpt")[-1]
        subprocess.run(["rm", "-r", newest], check=True)
    said = []
    threads = [threading.Thread(target=execute, args=(exports, line, runs, telling, said)) for _ in range(machines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in said] == [0] * machines, "\n".join(done.stderr for done in said)
    out = runs / shlex.split(line)[shlex.split(line).index("--out") + 1]
    assert {"metrics.csv", "model.pt", "curves.png"} <= {path.name for path in out.iterdir()}
    assert ("--resume" in line) == any("Goes on after step" in done.stdout for done in said)
    if "--checkpoint-every" in line:
        assert checkpoints(out)[-1] == "step-000000008"
    if machines > 1:
        assert any("4 × cpu" in done.stdout for done in said)
