"""Several processes train as one does: the same curve, the same checkpoints, and one of them speaks."""

import os
import shutil
import signal
import time
from pathlib import Path

import _data
import _distributed
import pytest
import torch
from support.scripting import (
    SCRIPTS,
    TINY_TEXT,
    Started,
    assert_one_line,
    checkpoints,
    fork,
    losses,
    read_csv,
    table,
)  # fmt: skip

STEPS = 12
TRAINING = (*TINY_TEXT, "--steps", STEPS, "--checkpoint-every", 4)


def assert_close(out, one, step=STEPS):
    """Compares the curve, the measurements and the weights, to float error."""
    assert losses(out, step) == pytest.approx(losses(one, step), rel=1e-5)
    for ours, theirs in zip(read_csv(out / "metrics.csv"), read_csv(one / "metrics.csv"), strict=True):
        for name in ("train_bits_per_byte", "validation_bits_per_byte"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5)
    ours, theirs = (torch.load(path / "model.pt", weights_only=True)["model"] for path in (out, one))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A training in one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    ended = fork("train_text.py", *TRAINING, "--out", out)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The same training in several processes, once for all tests that ask for it."""
    made = {}

    def train(processes, parallel, *options):
        key = (processes, parallel, *options)
        if key not in made:
            out = tmp_path_factory.mktemp("several") / "out"
            options = ("--parallel", parallel, *options, "--out", out)
            made[key] = out, fork("train_text.py", *TRAINING, *options, processes=processes)
        return made[key]

    return train


@pytest.mark.parametrize(
    ("processes", "parallel", "options"),
    [
        (2, "ddp", []), (2, "fsdp", []), (4, "fsdp", []),
        (2, "ddp", ["--accumulate", "2"]), (2, "fsdp", ["--accumulate", "4"]), (1, "ddp", ["--accumulate", "8"]),
    ],
)  # fmt: skip
def test_same_global_batch_same_curve(processes, parallel, options, several, one):
    out, ended = several(processes, parallel, *options)
    assert ended.returncodes == [0] * processes, ended.stderr + ended.others
    assert_close(out, one)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_speaks(parallel, several):
    out, ended = several(2, parallel)
    assert ended.others == ended.stderr == ""
    (row,) = table(ended.stdout)
    assert row[-1] == "2 × cpu"
    assert float(row[-2].split()[0].replace(",", "")) > 100  # MiB: a process with PyTorch in it
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "curves.png", "metrics.csv", "model.pt"]


@pytest.mark.parametrize(
    ("before", "after", "parallel"), [(2, 1, "ddp"), (2, 1, "fsdp"), (1, 2, "ddp"), (1, 2, "fsdp"), (2, 4, "fsdp")]
)
def test_resumed_by_another_number_of_processes(before, after, parallel, several, one, tmp_path):
    source = one if before == 1 else several(before, parallel)[0]
    shutil.copytree(source / "checkpoints/step-000000008", tmp_path / "checkpoints/step-000000008")
    options = ("--parallel", parallel, "--resume", "--out", tmp_path)
    ended = fork("train_text.py", *TRAINING, *options, processes=after)
    assert ended.returncodes == [0] * after, ended.stderr + ended.others
    assert "Goes on after step 8" in ended.stdout
    assert_close(tmp_path, one)


def test_a_torn_share_is_seen_by_all(several, tmp_path):
    shutil.copytree(several(2, "fsdp")[0] / "checkpoints", tmp_path / "checkpoints")
    os.truncate(next((tmp_path / "checkpoints" / f"step-{STEPS:09}").glob("__1_*")), 100)
    ended = fork("train_text.py", *TRAINING, "--parallel", "fsdp", "--resume", "--out", tmp_path, processes=2)
    assert ended.returncodes == [0, 0], ended.stderr + ended.others
    assert ended.stderr.startswith("warning: the checkpoint ")
    assert ended.stderr.count("\n") == 1
    assert "Goes on after step 8" in ended.stdout


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_float16_scales_the_loss_alike(parallel, several):
    options = ("--dtype", "float16", "--steps", 4)  # a CPU is slow in it
    (one, alone), (two, both) = several(1, "ddp", *options), several(2, parallel, *options)
    assert (alone.returncode, both.returncodes) == (0, [0, 0]), both.stderr
    assert losses(two, 4) == pytest.approx(losses(one, 4), rel=1e-3)
    assert losses(two, 4) != losses(one, 4)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    started = Started("train_text.py", *TINY_TEXT, "--steps", 2000, "--out", tmp_path / "out", processes=2)
    started.wait_for("sigtorch 100/")
    os.kill(started.processes[1].pid, signal.SIGTERM)
    ended = started.wait()
    assert ended.returncodes == [143, 143], ended.stderr
    assert ended.stderr.startswith("error: SIGTERM came, stopped after step ")
    assert ended.stderr.count("\n") == 1
    assert ended.others == ""
    assert len(checkpoints(tmp_path / "out")) == 1


def test_a_loss_that_is_no_number_stops_all(tmp_path):
    ended = fork("train_text.py", *TRAINING, "--lr", 1e38, "--out", tmp_path / "out", processes=2)
    assert ended.returncodes == [1, 1]
    assert ended.stderr.startswith("error: the loss is ")
    assert ended.stderr.count("\n") == 1
    assert ended.others == ""


def test_digits(tmp_path):
    outs = [tmp_path / str(n) for n in (1, 2)]
    for n, out in zip((1, 2), outs, strict=True):
        options = ("--device", "cpu", "--epochs", 2, "--batch", 144, "--compare", "--parallel", "fsdp", "--out", out)
        ended = fork("train_digits.py", *options, processes=n)
        assert ended.returncodes == [0] * n, ended.stderr + ended.others
    one, two = (read_csv(out / "metrics.csv") for out in outs)
    assert len(one) == len(two) == 4
    for ours, theirs in zip(two, one, strict=True):
        for name in ("train_loss", "test_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3)


# Refused.


def test_a_batch_that_does_not_divide(tmp_path):
    for given, said in (
        ([], "argument --batch: 8 a step can't be divided evenly among 3 processes\n"),
        (
            ["--batch", 6, "--accumulate", 4],
            "6 a step can't be divided evenly among 3 processes times --accumulate 4\n",
        ),
    ):
        ended = fork("train_text.py", *TRAINING, *given, "--out", tmp_path / "out", processes=3)
        assert_one_line(ended, said, "train_text.py")
    assert not (tmp_path / "out").exists()


def test_more_processes_than_samples(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("abc")
    options = (*TRAINING, "--data", tmp_path, "--context", 2, "--out", tmp_path / "out")
    said = "2 processes need a sample each to train on, and the number of samples is 1\n"
    assert_one_line(fork("train_text.py", *options, processes=2), said, "train_text.py")


def test_what_one_process_refuses_ends_all(tmp_path):
    data = TINY_TEXT[-1]
    options = (*TRAINING, "--data", lambda rank: data if rank == 0 else "/nowhere", "--out", tmp_path / "out")
    ended = fork("train_text.py", *options, processes=2)
    assert_one_line(ended, "argument --data: there is no file or folder '/nowhere'", "train_text.py")
    assert not (tmp_path / "out").exists()


# A process lost, under torchrun itself.


def workers(launcher):
    """The processes that torchrun has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == launcher:
                found.append(int(status.parent.name))
        except OSError:
            pass  # it has ended
    return found


def test_torchrun_starts_it_again_after_a_process_is_killed(one, tmp_path):
    options = ("--standalone", "--nproc-per-node", 2, "--max-restarts", 1)
    training = (SCRIPTS / "train_text.py", *TRAINING, "--checkpoint-every", 1, "--out", tmp_path)
    meeting = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else the new processes meet the old ones' addresses
    started = Started("torchrun", *options, *training, **meeting)
    (launcher,) = started.processes
    while not (tmp_path / "checkpoints/step-000000003").exists():
        assert launcher.is_alive(), started.wait().stderr
        time.sleep(0.002)
    os.kill(workers(launcher.pid)[0], signal.SIGKILL)
    ended = started.wait()
    assert ended.returncode == 0, ended.stderr
    assert "Goes on after step" in ended.stdout
    assert_close(tmp_path, one)


def test_what_one_process_could_not_do_is_told_to_all(monkeypatch):
    monkeypatch.setattr(_distributed, "gather", lambda said: [(None, "No space left on device"), said])
    with pytest.raises(OSError, match=r"^No space left on device$"):
        _distributed.together(lambda: "written")


def test_what_the_first_process_says_counts(monkeypatch):
    monkeypatch.setattr(_distributed, "size", lambda: 2)
    monkeypatch.setattr(_distributed.dist, "broadcast_object_list", lambda values: values.__setitem__(0, "the first's"))
    assert _distributed.first("its own") == "the first's"


# The order of the samples.


def test_order_is_a_function_of_seed_and_step():
    for draw in (_data.drawn, _data.shuffled):
        batches = [draw(3, step, 8, 20) for step in range(1, 30)]
        assert all(torch.equal(draw(3, step, 8, 20), batches[step - 1]) for step in (17, 1, 29))
        assert not torch.equal(draw(4, 1, 8, 20), batches[0])
        assert not torch.equal(batches[0], batches[1])


def test_an_epoch_takes_every_sample_once():
    order = torch.cat([_data.shuffled(0, step, 8, 20) for step in range(1, 6)])  # two epochs
    for epoch in order.split(20):
        assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(*order.split(20))


def test_shares_are_the_batch(monkeypatch):
    batch = torch.arange(24)
    taken = []
    for rank in range(3):
        monkeypatch.setattr(_data, "size", lambda: 3)
        monkeypatch.setattr(_data, "rank", lambda rank=rank: rank)
        parts = _data.share(batch, 2)
        assert [len(part) for part in parts] == [4, 4]
        taken += [number for part in parts for number in part.tolist()]
    assert sorted(taken) == batch.tolist()
