"""What a training loses when it is stopped, killed, or has no room to write: nothing, or the steps since a checkpoint."""

import math
import random
import resource
import shutil
import signal
import time
import warnings

import _checkpoint
import numpy
import pytest
import torch
import train_text
from scripting import TINY_TEXT, Started, assert_one_line, checkpoints, fork, losses, read_csv, state_of

STEPS = 24
TRAINING = (*TINY_TEXT, "--steps", STEPS, "--checkpoint-every", 4)


def weights(out):
    return torch.load(out / "model.pt", weights_only=True)["model"]


def assert_same(out, whole):
    """Weights, losses and measurements agree to the last bit."""
    ours, theirs = weights(out), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(out, STEPS) == losses(whole, STEPS)
    timed = ("tokens_per_second", "peak_memory_mib", "seconds")
    rows = [[{k: row[k] for k in row if k not in timed} for row in read_csv(p / "metrics.csv")] for p in (out, whole)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ended = fork("train_text.py", *TRAINING, "--out", out)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture
def begun(whole, tmp_path):
    """The same one, as it was after 16 steps."""
    out = tmp_path / "out"
    for step in (16,):
        shutil.copytree(whole / "checkpoints" / f"step-{step:09}", out / "checkpoints" / f"step-{step:09}")
    return out


def test_the_last_three_are_kept(whole):
    assert checkpoints(whole) == ["step-000000016", "step-000000020", "step-000000024"]
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoints", "curves.png", "metrics.csv", "model.pt"]


def test_resumed_is_the_same_to_the_last_bit(begun, whole):
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", begun)
    assert ended.returncode == 0, ended.stderr
    assert f"Goes on after step 16, from {begun}/checkpoints/step-000000016\n" in ended.stdout
    assert_same(begun, whole)


def test_resumed_after_the_end_writes_the_same_again(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "checkpoints", out / "checkpoints")
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert_same(out, whole)


def test_killed_ten_times_at_random_moments(whole, tmp_path):
    chance, out, kills = random.Random(0), tmp_path / "out", 0
    options = (*TINY_TEXT, "--steps", STEPS, "--checkpoint-every", 1, "--out", out)
    while kills < 10:
        some = (out / "checkpoints").is_dir() and any(out.glob("checkpoints/step-*"))
        done = max((int(path.name[5:]) for path in out.glob("checkpoints/step-*")), default=0)
        started = Started("train_text.py", *options, *["--resume"] * some)
        while not (out / "checkpoints").is_dir() and started.processes[0].is_alive():
            time.sleep(0.001)
        # Some die while they start, some later; about half of the time goes into writing.
        time.sleep(chance.uniform(0, 0.3) if kills % 3 == 0 else 0)
        while kills % 3 and len(list(out.glob(f"checkpoints/step-{done + 1:09}"))) == 0 and started.processes[0].is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        assert started.processes[0].is_alive(), started.wait().stderr  # with too few steps there is nothing to kill
        started.processes[0].kill()
        assert started.wait().returncode == -signal.SIGKILL
        kills += 1
    ended = fork("train_text.py", *options, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert_same(out, whole)
