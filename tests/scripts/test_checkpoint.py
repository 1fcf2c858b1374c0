"""A training loses nothing, or the steps since a checkpoint, when it is stopped, killed, or has no room to write."""

import errno
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import warnings

import _checkpoint
import _output
import numpy
import pytest
import torch
import train_text
from support.forking import forks
from support.scripting import TINY_TEXT, Started, assert_refused, checkpoints, fork, losses, read_csv, state_of
from torch.distributed.checkpoint.api import CheckpointException

STEPS = 40
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
    """A training that was not disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ended = fork("train_text.py", *TRAINING, "--out", out)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture
def begun(whole, tmp_path):
    """The same one, as it was after 36 steps."""
    out = tmp_path / "out"
    for step in (32, 36):
        shutil.copytree(whole / "checkpoints" / f"step-{step:09}", out / "checkpoints" / f"step-{step:09}")
    return out


def test_the_last_three_are_kept(whole):
    assert checkpoints(whole) == ["step-000000032", "step-000000036", "step-000000040"]
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoints", "curves.png", "metrics.csv", "model.pt"]


def test_resumed_is_the_same_to_the_last_bit(begun, whole):
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", begun)
    assert ended.returncode == 0, ended.stderr
    assert f"Goes on after step 36, from {begun}/checkpoints/step-000000036\n" in ended.stdout
    assert_same(begun, whole)


def test_resumed_after_the_end_writes_the_same_again(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "checkpoints", out / "checkpoints")
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert_same(out, whole)


def test_killed_ten_times_at_random_moments(whole, tmp_path):
    chance, out = random.Random(0), tmp_path / "out"
    options = (*TINY_TEXT, "--steps", STEPS, "--checkpoint-every", 1, "--out", out)
    for _ in range(10):
        done = checkpoints(out)
        started = Started("train_text.py", *options, *["--resume"] * bool(done))
        # Somewhen in the start, while a checkpoint is written, or after that.
        moment = chance.choice(("*", ".step-*", f"step-{int(done[-1][5:]) + 1 if done else 1:09}"))
        while started.processes[0].is_alive() and not any((out / "checkpoints").glob(moment)):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        started.processes[0].kill()
        assert started.wait().returncode == -signal.SIGKILL  # with too few steps it would have ended
    ended = fork("train_text.py", *options, *["--resume"] * bool(checkpoints(out)))
    assert ended.returncode == 0, ended.stderr
    assert_same(out, whole)
    assert not list((out / "checkpoints").glob(".*"))  # nothing half written is left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(number, whole, tmp_path):
    out = tmp_path / "out"
    started = Started("train_text.py", *TINY_TEXT, "--steps", STEPS, "--out", out)  # no --checkpoint-every
    started.wait_for("sigtorch 2/")
    os.kill(started.processes[0].pid, number)
    ended = started.wait()
    assert ended.returncode == 128 + number, ended.stderr
    (name,) = checkpoints(out)
    step = int(name[5:])
    assert 2 < step < STEPS
    said = f"error: {number.name} came, stopped after step {step}; --resume goes on from {out}/checkpoints/{name}\n"
    assert ended.stderr == said
    assert not (out / "model.pt").exists()
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert_same(out, whole)


def spoil(path, how):
    """Make a checkpoint what a crash or a careless copy would."""
    data = next(path.glob("*.distcp"))
    if how == "missing":
        data.unlink()
    elif how == "short":
        os.truncate(data, data.stat().st_size // 2)
    elif how == "changed":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    else:
        os.truncate(path / "state.json", 100)


@pytest.mark.parametrize("how", ["missing", "short", "changed", "state"])
def test_a_torn_checkpoint_is_skipped_with_a_warning(how, whole, tmp_path, capsys):
    shutil.copytree(whole / "checkpoints", tmp_path, dirs_exist_ok=True)
    newest = tmp_path / f"step-{STEPS:09}"
    spoil(newest, how)
    assert _checkpoint.newest(tmp_path) == tmp_path / f"step-{STEPS - 4:09}"
    error = capsys.readouterr().err
    assert error.startswith(f"warning: the checkpoint {newest} is skipped, it is torn: ")
    assert error.count("\n") == 1


def test_training_goes_on_before_the_torn_one(whole, begun):
    spoil(begun / "checkpoints" / "step-000000036", "short")
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", begun)
    assert ended.returncode == 0, ended.stderr
    assert "warning: the checkpoint" in ended.stderr
    assert "Goes on after step 32" in ended.stdout
    assert_same(begun, whole)
    assert checkpoints(begun) == ["step-000000032", "step-000000036", "step-000000040"]


def test_a_training_without_checkpoint_every_is_extended(tmp_path):
    out = tmp_path / "out"
    ended = fork("train_text.py", *TINY_TEXT, "--steps", 12, "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert "nan" not in ended.stdout
    assert checkpoints(out) == ["step-000000012"]
    before = losses(out, 12)
    ended = fork("train_text.py", *TINY_TEXT, "--steps", STEPS, "--resume", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert "Goes on after step 12" in ended.stdout
    assert losses(out, STEPS)[:12] == before
    assert len(losses(out, STEPS)) == STEPS


def test_what_is_newer_than_the_step_just_written_goes(tmp_path):
    for step in (1, 2, 3, 9):
        (tmp_path / f"step-{step:09}").mkdir()
    _checkpoint.save(tmp_path, 4, {"x": torch.ones(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09}" for step in (2, 3, 4)]


def test_nothing_half_written_has_a_checkpoints_name(tmp_path, monkeypatch):
    seen, write = [], _checkpoint._write_random_states
    monkeypatch.setattr(
        _checkpoint, "_write_random_states", lambda aside: seen.append(_checkpoint.folders(tmp_path)) or write(aside)
    )
    _checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {})
    assert seen == [[]]


def test_what_is_removed_loses_its_name_first(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        _checkpoint.save(tmp_path, step, {"x": torch.ones(2)}, {})
    monkeypatch.setattr(_checkpoint.shutil, "rmtree", lambda *of, **how: None)  # as if it died before that
    _checkpoint.save(tmp_path, 4, {"x": torch.ones(2)}, {})
    assert [path.name for path in _checkpoint.folders(tmp_path)] == [f"step-{step:09}" for step in (4, 3, 2)]


@pytest.mark.parametrize("room", [0, 500, 3_000, 60_000])
def test_no_room_leaves_the_former_checkpoint(room, tmp_path):
    """The training runs in a process that may only write files of so many bytes."""
    _checkpoint.save(tmp_path, 1, {"x": torch.zeros(8)}, {})
    process = forks().Process(target=save_without_room, args=(room, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said", "step-000000001"]
    assert _checkpoint.newest(tmp_path) == tmp_path / "step-000000001"
    assert (tmp_path / "said").read_text() == "File too large\n" * 2


def save_without_room(room, place):
    warnings.simplefilter("error")
    said = (place / "said").open("w")
    tensors = {"x": torch.ones(4000), "y": torch.ones(20_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    errors = []
    for save in (_checkpoint.save, lambda place, _, *what: _output.save_weights(place / "model.pt", *what)):
        try:
            save(place, 2, tensors, {})
        except OSError as error:
            errors.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    said.writelines(f"{error.rpartition('] ')[2]}\n" for error in errors)
    said.close()


def test_a_process_whose_disk_is_full_says_so_to_the_others(tmp_path, monkeypatch):
    """They get a copy of the error, without the errors behind it; PyTorch's own speaks of positions."""

    def write(*of):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe") from None

    monkeypatch.setattr(_checkpoint.dcp.FileSystemWriter, "write_data", write)
    with pytest.raises(OSError, match="No space left") as raised:
        _checkpoint._Writer(tmp_path).write_data(None, None)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (copy.errno, str(copy)) == (errno.ENOSPC, "[Errno 28] No space left on device")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_training_survives_a_full_disk(whole, tmp_path):
    """On a disk with room for two checkpoints, of which three are kept."""
    size = sum(path.stat().st_size for path in (whole / "checkpoints").glob(f"step-{STEPS:09}/*"))
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(2.6 * size)}", "none", tmp_path], check=False
    ).returncode:
        pytest.skip("not allowed to mount")
    try:
        ended = fork("train_text.py", *TRAINING, "--out", tmp_path)
        warnings_ = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
        first = "warning: the checkpoint of step 12 could not be written: [Errno 28] No space left on device; "
        assert warnings_[0].startswith(first), ended.stderr
        assert warnings_[0].endswith(f"the last good one is {tmp_path}/checkpoints/step-000000008")
        assert len(warnings_) == 8
        assert _checkpoint.newest(tmp_path / "checkpoints").name == "step-000000008"
        assert not list((tmp_path / "checkpoints").glob(".*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_every_random_state_goes_on(tmp_path):
    def some():
        return random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(), torch.rand(()).item()

    some()
    _checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {})
    wanted = [some() for _ in range(3)]
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    _checkpoint.load(tmp_path / "step-000000001", {"x": torch.zeros(2)})
    assert [some() for _ in range(3)] == wanted


def test_a_checkpoint_of_other_tensors_is_an_oserror_of_one_line(tmp_path):
    _checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {})
    for other in ({"x": torch.zeros(3)}, {"y": torch.zeros(2)}):
        with pytest.raises(OSError, match=r"^[^\n]+$"):
            _checkpoint.load(tmp_path / "step-000000001", other)


def test_an_error_without_a_text_is_an_oserror_of_one_line(tmp_path, monkeypatch):
    def load(*of, **how):
        raise ValueError

    monkeypatch.setattr(_checkpoint.dcp, "load", load)
    with pytest.raises(OSError, match=r"^ValueError$"):
        _checkpoint.load(tmp_path, {"x": torch.zeros(2)})


def test_a_fault_of_the_program_ends_the_saving(tmp_path, monkeypatch):
    """An OSError would be a warning, and the training would go on without checkpoints."""

    def write(*of):
        raise RuntimeError("a fault")

    monkeypatch.setattr(_checkpoint.dcp.FileSystemWriter, "write_data", write)
    with pytest.raises(CheckpointException, match="a fault"):
        _checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {})


def test_nothing_to_resume(tmp_path):
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", tmp_path / "out")
    assert_refused(ended, f"argument --resume: there is no folder '{tmp_path}/out'")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", tmp_path / "out")
    assert_refused(ended, f"argument --resume: there is no checkpoint in '{tmp_path}/out/checkpoints'")
    assert not list((tmp_path / "out").iterdir())


def files(out):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")}


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("train_text.py", ["--resume", "--dim", "32"], "wants --dim 16, not 32"),
        ("train_text.py", ["--resume", "--compare"], "wants --compare False, not True"),
        ("train_digits.py", ["--resume"], "was written by train_text.py"),
        ("train_text.py", [], "has a training, its newest checkpoint is step-000000040; --resume goes on"),
    ],
)
def test_refused_checkpoint(script, options, said, whole):
    before = files(whole)
    given = TRAINING if script == "train_text.py" else ["--device", "cpu"]
    assert_refused(fork(script, *given, *options, "--out", whole), said)
    assert files(whole) == before


def test_all_checkpoints_torn(begun):
    for path in (begun / "checkpoints").iterdir():
        spoil(path, "state")
    ended = fork("train_text.py", *TRAINING, "--resume", "--out", begun)
    assert ended.returncode == 2
    assert ended.stderr.count("warning: ") == 2
    assert "there is no complete checkpoint in" in ended.stderr


def test_the_end_came_before_the_checkpoint(begun):
    ended = fork("train_text.py", *TRAINING, "--resume", "--steps", 20, "--out", begun)
    assert_refused(ended, "step-000000036 comes after step 36, and the training ends after 20\n")


def test_a_changed_learning_rate_holds_and_is_said(begun):
    ended = fork("train_text.py", *TRAINING, "--resume", "--lr", 1e-3, "--out", begun)
    assert ended.returncode == 0, ended.stderr
    assert "step-000000036, with lr 0.001 (was 0.003)\n" in ended.stdout
    assert state_of(begun, STEPS)["runs"][0]["schedule"]["base_lrs"] == [1e-3]


def test_a_loss_that_is_no_number_names_step_batch_and_checkpoint(begun):
    ended = fork("train_text.py", *TRAINING, "--resume", "--lr", 1e30, "--steps", 60, "--out", begun)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"error: the loss is \S+ and its gradient's norm (nan|inf) in step 38, of windows at the bytes "
        rf"(\d+, ){{7}}\d+ of what it trains on; the last good checkpoint is {begun}/checkpoints/step-000000036; "
        r"a smaller --lr may help\n",
        ended.stderr,
    ), ended.stderr
    assert checkpoints(begun)[-1] == "step-000000036"


class Broken(torch.autograd.Function):
    """The identity; its gradient is no number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def test_a_gradient_that_is_no_number_stops_before_the_weights_are_kept(tmp_path, monkeypatch, capsys):
    draws = []
    real, drawn = train_text.loss_of, train_text._data.drawn
    monkeypatch.setattr(train_text._data, "drawn", lambda *a: draws.append(a[1]) or drawn(*a))
    monkeypatch.setattr(train_text, "loss_of", lambda *a: Broken.apply(real(*a)) if draws[-1] == 4 else real(*a))
    args, text = train_text.parse([*map(str, TRAINING), "--checkpoint-every", "2", "--out", str(tmp_path / "out")])
    job = train_text.job_of(text, args)
    with pytest.raises(SystemExit) as ended:
        train_text._training.train([train_text.start("sigtorch", job, args)], job, args)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert re.match(r"error: the loss is [\d.]+ and its gradient's norm nan in step 4, of windows", error)
    assert f"the last good checkpoint is {tmp_path}/out/checkpoints/step-000000002;" in error
    assert checkpoints(tmp_path / "out") == ["step-000000002"]
