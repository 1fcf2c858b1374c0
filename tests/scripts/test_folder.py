"""The folder that a script writes into: one script at a time, made first, never overwritten; and how a script ends early."""

import ast
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import _checkpoint
import _folder
import _options
import _output
import _training
import pytest
import torch
import train_digits
from support.forking import forks
from support.scripting import SCRIPTS, TINY_DATA, TINY_TEXT, Started, assert_refused, checkpoints, environment, fork

PROGRAMS = sorted(
    path.name for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text() and path.name != "_chunked.py"
)
WRITING = [name for name in PROGRAMS if name not in ("from_scratch.py", "_report.py")]
TRAINING = (*TINY_TEXT, "--steps", 3000)


# One process at a time.


def test_a_folder_is_held_by_one_and_left_as_it_was(tmp_path):
    for folder in (tmp_path, tmp_path / "new"):
        with _folder.locked(folder):
            said = rf"^cannot write into '{folder}': process {os.getpid()} on \S+ is at work there$"
            with pytest.raises(OSError, match=said), _folder.locked(folder):
                pass
            assert [path.name for path in folder.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def hold_for_ever(folder):
    with _folder.locked(folder):
        (folder / "held").touch()
        time.sleep(100)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    process = forks().Process(target=hold_for_ever, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(OSError, match=f"process {process.pid} on"), _folder.locked(tmp_path):
        pass
    process.kill()
    process.join()
    assert (tmp_path / ".lock").exists()
    with _folder.locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / ".lock").exists()


def test_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Another process may end between opening its file and locking it."""
    real, ended = _folder.fcntl.flock, []

    def flock(file, how):
        if not ended:
            ended.append((tmp_path / ".lock").unlink())
        real(file, how)

    monkeypatch.setattr(_folder.fcntl, "flock", flock)
    with _folder.locked(tmp_path), pytest.raises(OSError, match="at work there"), _folder.locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_folder.fcntl, "flock", flock)
    with _folder.locked(tmp_path):
        pass
    said = f"warning: {tmp_path} cannot be locked (No locks available): a second process in it would not be noticed\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_training_is_refused(processes, tmp_path):
    first = Started("train_text.py", *TRAINING, "--out", tmp_path, processes=processes)
    first.wait_for("sigtorch 150/")
    for options in ([], ["--resume"]):
        second = fork("train_text.py", *TRAINING, *options, "--out", tmp_path, processes=processes)
        assert_refused(second, f"argument --out: cannot write into '{tmp_path}': process {first.processes[0].pid} on ")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    os.kill(first.processes[-1].pid, signal.SIGINT)
    ended = first.wait()
    assert set(ended.returncodes) == {130}, ended.stderr
    assert ended.stderr.startswith("error: SIGINT came, stopped after step ")
    assert not (tmp_path / ".lock").exists()
    assert len(checkpoints(tmp_path)) == 1


def test_a_training_that_was_killed_begins_again(tmp_path):
    options = ("--device", "cpu", "--epochs", 1, "--out", tmp_path)
    first = Started("train_digits.py", "--device", "cpu", "--out", tmp_path)
    first.wait_for("sigtorch 135/")
    first.processes[0].kill()
    assert first.wait().returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    ended = fork("train_digits.py", *options)
    assert (ended.returncode, ended.stderr) == (0, "")


# Made first, and never overwritten.


@pytest.mark.parametrize("script", WRITING)
def test_a_folder_that_cannot_be_made_ends_a_script_first(script):
    small = TINY_DATA if script in ("train_text.py", "train_experts.py", "train_labels.py") else ()
    ended = fork(script, *small, "--out", "/proc/x")
    assert_refused(ended, "argument --out: cannot write into '/proc/x': No such file or directory")


def test_a_finished_training_is_not_overwritten(tmp_path):
    for name in ("model.pt", "metrics.csv"):
        (tmp_path / name).write_text("before")
    ended = fork("train_digits.py", "--device", "cpu", "--epochs", 1, "--out", tmp_path)
    assert_refused(ended, f"'{tmp_path}' has results already: metrics.csv, model.pt; another --out starts anew\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "model.pt"]


def launched(monkeypatch, launch, count):
    """Set what torchrun sets for a process that this launch has started again so many times."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/torchelastic_x/{launch}/attempt_{count}/0/error.json")


def begin(out, end=lambda args: None):
    """Returns the checkpoint from which a training in this folder goes on."""
    args = train_digits.parse(["--device", "cpu", "--out", str(out)])
    with _folder.for_training(args, ("layers", "batch")):
        end(args)
    return args.checkpoint


def leave_a_checkpoint(args):
    values = {"config": _options.config(args), "runs": []}
    _checkpoint.save(args.out / "checkpoints", 1, {"x": torch.ones(2)}, values)
    raise ConnectionError("lost")


@pytest.mark.parametrize("there", ["results", "checkpoints"])
def test_a_launch_that_was_refused_is_refused_again(there, tmp_path, monkeypatch):
    if there == "results":
        for name in ("metrics.csv", "model.pt"):
            (tmp_path / name).write_text("before")
    else:
        launched(monkeypatch, "another", 0)
        with pytest.raises(ConnectionError):
            begin(tmp_path, leave_a_checkpoint)
    before = sorted(path.name for path in tmp_path.iterdir())
    for count in (0, 1):
        launched(monkeypatch, "mine", count)
        with pytest.raises(SystemExit, match="2"):
            begin(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_launch_goes_on_with_what_it_began(tmp_path, monkeypatch):
    launched(monkeypatch, "mine", 0)
    with pytest.raises(ConnectionError):
        begin(tmp_path, leave_a_checkpoint)
    launched(monkeypatch, "mine", 1)
    assert begin(tmp_path) == tmp_path / "checkpoints" / "step-000000001"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    with pytest.raises(SystemExit, match="2"):  # it ended well
        begin(tmp_path)


def test_a_launch_without_a_checkpoint_begins_again(tmp_path, monkeypatch):
    def lose(args):
        (tmp_path / "metrics.csv").touch()
        raise ConnectionError("lost")

    launched(monkeypatch, "mine", 0)
    with pytest.raises(ConnectionError):
        begin(tmp_path, lose)
    launched(monkeypatch, "mine", 1)
    assert begin(tmp_path) is None


def test_a_launch_that_cannot_be_noted_is_a_warning(tmp_path, monkeypatch, capsys):
    def replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_folder, "replacing", replacing)
    launched(monkeypatch, "mine", 0)
    begin(tmp_path)
    said = (
        f"{tmp_path}/.launch could not be written (No space left on device): torchrun can't start this training again"
    )
    assert capsys.readouterr().err == f"warning: {said}\n"


@pytest.mark.parametrize("lacking", ["config", "runs", "an option"])
def test_a_checkpoint_of_another_version_is_one_line(lacking, tmp_path, capsys):
    args = train_digits.parse(["--device", "cpu", "--out", str(tmp_path), "--resume"])
    config = _options.config(args)
    values = {"config": config, "runs": []}
    del (config if lacking == "an option" else values)[{"an option": "compare"}.get(lacking, lacking)]
    path = _checkpoint.save(tmp_path / "checkpoints", 1, {"x": torch.ones(2)}, values)
    with pytest.raises(SystemExit, match="2"), _folder.for_training(args, ("layers", "batch")):
        pass
    assert (
        capsys.readouterr().err == f"error: argument --resume: {path} was written by another version of this script\n"
    )


def test_epochs_are_counted_in_batches(tmp_path):
    args = train_digits.parse(["--device", "cpu", "--out", str(tmp_path), "--batch", "8"])
    args.checkpoint = Path("step-000000001")
    then = _options.config(args) | {"batch": 32}
    with pytest.raises(SystemExit, match="2"):
        _folder._compare(args, then, _options.config(args), ("layers", "batch"))


def test_results_have_a_folder_of_their_own(tmp_path, capsys):
    default = str(tmp_path / "runs" / "made")
    for number in ("", "-2", "-3"):
        with _folder.for_results(None, default, ["a.csv", "b.csv"]) as out:
            assert out == Path(default + number)
            (out / "b.csv").touch()
    with pytest.raises(SystemExit, match="2"), _folder.for_results(out, default, ["a.csv", "b.csv"]):
        pass
    said = f"error: argument --out: '{out}' has results already: b.csv; name another folder\n"
    assert capsys.readouterr().err == said
    with _folder.for_results(out, default, ["a.csv"]) as same:
        assert same == out


def test_two_that_start_together_take_two_folders(tmp_path, capsys):
    default = str(tmp_path / "made")
    with _folder.for_results(None, default, ["a.csv"]) as one, _folder.for_results(None, default, ["a.csv"]) as two:
        assert (str(one), str(two)) == (default, f"{default}-2")
        with pytest.raises(SystemExit, match="2"), _folder.for_results(one, default, ["a.csv"]):
            pass
    said = f"error: argument --out: cannot write into '{one}': process {os.getpid()} on "
    assert capsys.readouterr().err.startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_results_that_come_before_the_lock_are_seen(tmp_path, monkeypatch):
    """Another process may write its results, and end, between the look for a free folder and the lock."""
    default, real = tmp_path / "made", _folder.locked

    def locked(folder):
        if folder == default:
            folder.mkdir(exist_ok=True)
            (folder / "a.csv").touch()
        return real(folder)

    monkeypatch.setattr(_folder, "locked", locked)
    with _folder.for_results(None, str(default), ["a.csv"]) as taken:
        assert taken == tmp_path / "made-2"


def test_a_default_that_cannot_be_made_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"), _folder.for_results(None, "/proc/x", []):
        pass
    assert capsys.readouterr().err.startswith("error: argument --out: cannot write into '/proc/x': No such file")


def test_a_disk_that_gets_full_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"), _folder.for_results(tmp_path, "", []):
        Path("/dev/full").write_text("something")
    assert capsys.readouterr().err == f"error: cannot write into {tmp_path}: [Errno 28] No space left on device\n"


def test_make_train_takes_a_fresh_folder(tmp_path):
    """A program in Python's place writes the folder that it was given."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$1"\nmkdir -p "$3"\n')
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "ready").touch()
    made = ["make", "-f", SCRIPTS.parent / "Makefile", f"BIN={python.parent}", "READY=ready", "train", "train-text"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # no options of a make around
    for _ in range(3):
        done = subprocess.run(made, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "scripts/train_digits.py\nscripts/train_text.py\n"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"{name}{number}" for name in ("digits", "text") for number in ("", "-2", "-3")
    ]
    assert done.stderr.splitlines()[0] == f"+ {python} scripts/train_digits.py --out runs/digits-3"


# Ended early.


@pytest.mark.parametrize("script", PROGRAMS)
def test_help_is_help(script):
    ended = fork(script, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {script} ")


@pytest.mark.parametrize("script", PROGRAMS)
@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_is_one_line_even_among_imports(script, rank, tmp_path):
    """A file in PyTorch's place presses it."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)"
    )
    env = environment(RANK=str(rank), PYTHONPATH=str(tmp_path))
    done = subprocess.run([sys.executable, SCRIPTS / script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == ("error: SIGINT came, stopped\n" if rank == 0 else "")


def test_a_missing_package_is_one_line(tmp_path):
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')")
    env = environment(PYTHONPATH=str(tmp_path))
    command = [sys.executable, SCRIPTS / "train_text.py"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'error: rich is not installed; pip install ".[scripts]" brings it\n'


@pytest.mark.parametrize("script", PROGRAMS)
def test_nothing_is_imported_before_ctrl_c_is_one_line(script):
    imports = [node for node in ast.parse((SCRIPTS / script).read_text()).body if isinstance(node, ast.Import)]
    assert [name.name for name in imports[0].names] == ["_start"]


@pytest.mark.parametrize("script", PROGRAMS)
def test_a_script_ends_by_running(script):
    """A process that a test forks does this itself."""
    end = '\nif __name__ == "__main__":\n    _start.escape_what_it_lacks()\n    main()\n'
    assert (SCRIPTS / script).read_text().endswith(end)


def test_other_errors_keep_their_traceback(tmp_path):
    command = [sys.executable, "-c", "import _start; 1 / 0"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_the_disk_is_named_whatever_the_serializer_says(tmp_path, monkeypatch):
    def save(what, file):
        try:
            with open("/dev/full", "w") as full:
                full.write("x")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0")

    monkeypatch.setattr(_output.torch, "save", save)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        _output.save_weights(tmp_path / "model.pt", {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a fault", ""])
def test_a_fault_of_the_program_is_no_full_disk(text, tmp_path, monkeypatch):
    """Else a training would warn of it and go on."""

    def save(what, file):
        raise RuntimeError(text)

    monkeypatch.setattr(_output.torch, "save", save)
    with pytest.raises(RuntimeError, match=f"^{text}$"):
        _output.save_weights(tmp_path / "model.pt", {}, {})


@pytest.mark.parametrize(
    "text", ["PytorchStreamWriter failed writing file data/0: file write failed", "unexpected pos 6"]
)
def test_the_writers_word_for_a_failed_write_counts(text):
    with pytest.raises(OSError, match=f"^{text}$"), _output.os_errors():
        raise RuntimeError(f"{text}\nframe #0")


def test_an_error_without_a_text_has_its_name():
    assert _output.first_line(ValueError("one\ntwo")) == "one"
    assert [_output.first_line(ValueError(*text)) for text in ([], [""], ["\n"])] == ["ValueError"] * 3


def test_one_process_is_not_some(capsys):
    with pytest.raises(SystemExit, match="2"):
        train_digits.parse(["--device", "cpu", "--batch", "7", "--accumulate", "3"])
    assert capsys.readouterr().err.endswith("7 a step can't be divided evenly among 1 process times --accumulate 3\n")


def test_no_loss_is_shown_before_there_is_one():
    args = train_digits.parse(["--device", "cpu"])
    data = train_digits.load(args.device, train_digits.weights_in(args))
    job = train_digits.job_of(data, args)
    run = train_digits.start("sigtorch", job, args)
    for step, names in ((1, ["scans/s"]), (2, ["scans/s", "loss"])):
        run.step(step, [job.batch_of(step)], False)
        assert list(_training.progress_figures(run)) == names
