"""What the scripts' tests share: running them as users do, and reading what they leave."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def run(script, *arguments, **variables):
    """What it printed and how it ended; no variable of the test run's own decides which backend it takes."""
    env = {key: value for key, value in os.environ.items() if key not in ("SIGTORCH_BACKEND", "TRITON_INTERPRET")}
    env["PYTHONPATH"] = os.pathsep.join(str(path) for path in (SCRIPTS, SCRIPTS.parent))
    env["OMP_NUM_THREADS"] = "1"  # on a busy machine, threads that wait for each other take ten times as long
    command = [sys.executable, "-W", "error", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, env=env | variables, capture_output=True, text=True, check=False, timeout=120)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_picture(path):
    picture = imread(path)
    assert picture.shape[1] > picture.shape[0] > 300  # wider than high
    assert picture.std() > 0.05  # and not a blank sheet


def assert_refuses(parse, options, capsys):
    """In this process, for speed: parsing is the first thing that a script does."""
    with pytest.raises(SystemExit) as ended:
        parse(options.split())
    assert ended.value.code == 2
    usage, _, error = capsys.readouterr().err.partition(": error: ")
    assert usage.startswith("usage: ")
    assert options.split()[0] in error
    assert error.count("\n") == 1
