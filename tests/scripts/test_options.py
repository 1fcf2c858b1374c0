"""Options that change how a training computes, and what it shows on the way."""

import json
import os
import pty
import signal
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import _checkpoint
import _distributed
import _measure
import _options
import _output
import _report
import _training
import pytest
import torch
import train_text
from support.scripting import SAMPLED, TINY_TEXT, VALIDATED, environment, fork, losses, read_csv, state_of, table

STEPS = 20
TRAINING = (*TINY_TEXT, "--steps", STEPS, "--checkpoint-every", STEPS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training with these options, once for all tests that ask for it."""
    made = {}

    def train(*options):
        if options not in made:
            out = tmp_path_factory.mktemp("trained") / "out"
            ended = fork("train_text.py", *TRAINING, *options, "--out", out)
            assert ended.returncode == 0, ended.stderr
            assert not ended.stderr
            made[options] = out, ended.stdout
        return made[options]

    return train


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--dtype", "bfloat16"], 1e-2), (["--dtype", "float16"], 1e-3), (["--compile", "--patch"], 1e-5),
        (["--accumulate", "4"], 1e-5), (["--patch"], 1e-5), (["--backend", "aten"], 1e-5),

    ],
)  # fmt: skip
def test_the_curve_stays(options, error, trained):
    found, plain = (losses(trained(*some)[0], STEPS) for some in (options, []))
    assert len(found) == STEPS
    assert found == pytest.approx(plain, rel=error)
    if "--dtype" in options:
        assert found != pytest.approx(plain, rel=1e-6)  # it was computed in another one


def test_weights_stay_float32_in_half_types(trained):
    saved = torch.load(trained("--dtype", "bfloat16")[0] / "model.pt", weights_only=True)
    assert {weight.dtype for weight in saved["model"].values()} == {torch.float32}


def test_float16_has_a_scaler(trained):
    (scaled,), (plain,) = (state_of(trained(*some)[0], STEPS)["runs"] for some in (["--dtype", "float16"], []))
    assert scaled["scaler"]["scale"] >= 1
    assert plain["scaler"] == {}


def test_patch_says_what_it_swapped(trained):
    out, stdout = trained("--patch")
    assert stdout.startswith("sigtorch.patch: 2 swapped")
    assert "blocks.*.mlp" in stdout
    assert table(stdout)[-1][0] == read_csv(out / "metrics.csv")[0]["run"] == "patched"


def test_patched_digits(tmp_path):
    options = ("--device", "cpu", "--epochs", 1, "--patch", "--save", "input", "--compare", "--out", tmp_path)
    ended = fork("train_digits.py", *options)
    assert ended.returncode == 0, ended.stderr
    patched, plain = read_csv(tmp_path / "metrics.csv")
    assert (patched["run"], plain["run"]) == ("patched", "torch")
    assert float(patched["test_loss"]) == pytest.approx(float(plain["test_loss"]), rel=1e-4)


def run_of(*options):
    """A run that has not begun, its job and its options."""
    args, text = train_text.parse([*map(str, (*TRAINING, "--out", "/tmp/nothing-is-written", *options))])
    job = train_text.job_of(text, args)
    return train_text.start("sigtorch", job, args), job, args


def gradients(*options):
    """Gradients of the first step, as the optimizer finds them."""
    run, job, _ = run_of(*options)
    run.step(1, [job.batch_of(1)], False)
    return torch.cat([weight.grad.flatten() for weight in run.model.parameters()])


def test_clip_limits_the_norm():
    free, clipped = gradients("--clip", "1e9"), gradients("--clip", "0.01")
    assert free.norm() > 0.02
    torch.testing.assert_close(clipped, free * (0.01 / free.norm()), rtol=1e-3, atol=1e-9)


def test_a_float16_gradient_that_overflows_is_a_step_left_out():
    """The scale is halved; the schedule waits; at a scale of 1 it is the training's fault."""
    run, job, _ = run_of("--dtype", "float16")
    real = job.loss
    object.__setattr__(job, "loss", lambda model, part: real(model, part) * (1e7 if scaled else 1))
    scaled = True
    run.step(1, [job.batch_of(1)], False)
    run.settle()
    assert (run.scaler.get_scale(), run.schedule.last_epoch) == (2.0**15, 0)
    scaled = False
    run.step(2, [job.batch_of(2)], False)
    run.settle()
    assert (run.scaler.get_scale(), run.schedule.last_epoch) == (2.0**15, 1)
    scaled = True
    run.scaler.update(1.0)
    run.step(3, [job.batch_of(3)], False)
    with pytest.raises(FloatingPointError, match=r"gradient's norm (nan|inf) in step 3"):
        run.step(4, [job.batch_of(4)], False)  # the figures of a step are read in the next one


def test_warming_up_changes_nothing():
    run, _, _ = run_of()
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    random = torch.get_rng_state()
    run.warm_up()
    assert all(torch.equal(before[name], weight) for name, weight in run.model.state_dict().items())
    assert all(weight.grad is None for weight in run.model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert (run.losses, run.all["seconds"], dict(run.optimizer.state)) == ([], 0.0, {})


def test_both_are_warm_before_either_is_timed(monkeypatch):
    _, job, args = run_of()
    done = []
    runs = [SimpleNamespace(name=name, warm_up=lambda name=name: done.append(name)) for name in ("a", "b")]
    monkeypatch.setattr(_training, "resume", lambda runs, args: done.append("resumed") or sys.exit())
    with pytest.raises(SystemExit):
        _training.train(runs, job, args)
    assert done == ["a", "b", "resumed"]


def test_two_runs_take_turns(tmp_path, monkeypatch):
    """Each of them goes first in every second step."""
    monkeypatch.setattr(train_text, "SAMPLE", SAMPLED)
    monkeypatch.setattr(train_text, "VALIDATION_WINDOWS", VALIDATED)
    run, job, args = run_of("--steps", 4, "--out", tmp_path)
    runs, order = [run, train_text.start("torch", job, args)], []
    for each in runs:
        each.step = lambda *given, step=each.step, name=each.name: order.append(name) or step(*given)
    _training.train(runs, job, args)
    assert order == ["sigtorch", "torch", "torch", "sigtorch"] * 2


# What is shown.


def test_plain_lines_in_a_pipe(trained):
    _, stdout = trained()
    lines = [line for line in stdout.splitlines() if line.startswith("sigtorch ")]
    assert [line.split()[1] for line in lines] == [f"{n}/{STEPS}" for n in range(1, STEPS + 1)]
    assert "\x1b" not in stdout
    assert {"tokens/s", "bits", "loss"} <= set(lines[-1].split())


def test_a_long_training_has_twenty_lines_in_a_pipe(capsys):
    with _output.progress("x", 1000, done=500) as step:
        for _ in range(500):
            step(loss=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/1000" for n in range(550, 1001, 50)]


def test_a_bar_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    fast = f"import train_text; train_text.SAMPLE, train_text.VALIDATION_WINDOWS = {SAMPLED}, {VALIDATED}; train_text.main()"
    command = [sys.executable, "-c", fast, *TRAINING, "--out", tmp_path]
    env = environment(TERM="xterm", COLUMNS="80")
    running = subprocess.Popen(list(map(str, command)), env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert running.wait() == 0, shown
    assert "━━━━".encode() in shown
    assert b"\x1b[" in shown
    assert f"{STEPS}/{STEPS}".encode() in shown


def test_tensorboard(trained):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = trained("--tensorboard")
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {"loss/sigtorch", "gradient_norm/sigtorch", "tokens_per_second/sigtorch"} <= set(events.Tags()["scalars"])
    logged = events.Scalars("loss/sigtorch")
    assert [event.step for event in logged] == list(range(1, STEPS + 1))
    assert [event.value for event in logged] == pytest.approx(losses(out, STEPS))


def test_tensorboard_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as ended:
        train_text.parse([*map(str, TRAINING), "--tensorboard"])
    assert ended.value.code == 2
    error = capsys.readouterr().err.partition("error: ")[2]
    assert error == "argument --tensorboard: TensorBoard is not installed; the extra sigtorch[tensorboard] brings it\n"


def test_no_room_for_the_results_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_training, "save_weights", lambda path, *_: (_ for _ in ()).throw(OSError("No space left")))
    run, _, args = run_of()
    run.rows.append({"run": "sigtorch"})
    args.out = tmp_path
    with pytest.raises(SystemExit) as ended:
        _training.write([run], args, lambda path, rows: None)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: cannot write into {tmp_path}: No space left\n"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "weights"
    path.write_text("before")
    rows = [{"a": 1}, {"b": 2}]
    with pytest.raises(ValueError, match="not in fieldnames"):
        _output.write_csv(path, rows)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


# The second of two GPUs is the one that is asked: no GPU is needed to see whom the scripts ask.

CUDA1 = torch.device("cuda:1")


class FakeCuda:
    """Stands in for functions of torch.cuda, and notes the devices they are asked about."""

    def __init__(self, monkeypatch, **answers):
        self.asked = []
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self._function(name, answer))

    def _function(self, name, answer):
        def function(device=None):
            self.asked.append((name, device))
            return answer() if callable(answer) else answer

        return function


def test_memory_is_that_of_the_process_with_most(monkeypatch):
    monkeypatch.setattr(_measure, "gather", lambda held: [held, 2**50])
    assert _measure.peak_memory(torch.device("cpu")) == 2**50


def test_memory_is_that_devices(monkeypatch):
    cuda = FakeCuda(
        monkeypatch, max_memory_allocated=7, memory_allocated=3, reset_peak_memory_stats=None, synchronize=None
    )
    assert _measure.peak_memory(CUDA1) == 7
    assert _measure.peak_extra_bytes(lambda: None, CUDA1) == 4
    assert {device for _, device in cuda.asked} == {CUDA1}
    assert len(cuda.asked) == 5


@pytest.mark.parametrize(("launching", "running", "said"), [(0.01, 0.0, "host"), (0.0, 0.01, "device")])
def test_what_a_step_waits_for(launching, running, said, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_measure.time, "perf_counter", lambda: clock[0])
    queued = [0.0]

    def step():
        clock[0] += launching + 1e-4
        queued[0] = running

    def wait():
        clock[0] += queued[0]
        queued[0] = 0

    cuda = FakeCuda(monkeypatch, synchronize=wait)
    assert _measure.bound_by(step, CUDA1) == said
    assert {device for _, device in cuda.asked} == {CUDA1}
    assert _measure.bound_by(step, torch.device("cpu")) == "CPU"


def test_the_name_is_that_devices(monkeypatch):
    cuda = FakeCuda(monkeypatch, get_device_name="Second", is_available=True)
    assert _report.header(CUDA1)["gpu"] == "Second"
    assert ("get_device_name", CUDA1) in cuda.asked
    row = {"tokens_per_second": 1, "peak_memory_mib": 1.0}
    sums = {"steps": 1, "units": 1, "seconds": 1.0}
    run = Namespace(all=sums, rows=[row], job=Namespace(unit="tokens"), device=CUDA1)
    assert _training.Run.summary(run)["device"] == "cuda:1 (Second)"


def test_cuda_one_becomes_the_current_device(monkeypatch):
    cuda = FakeCuda(monkeypatch, set_device=None)
    parser = _options.Parser()
    args = Namespace(
        device=CUDA1,
        accumulate=1,
        batch=1,
        parallel="ddp",
        tensorboard=False,
        backend="aten",
        dtype="float32",
        compile=False,
    )
    monkeypatch.setattr(torch, "ones", lambda *size, **of: no_such())
    with pytest.raises(SystemExit):
        _options.check(parser, args, 1)
    assert cuda.asked == [("set_device", CUDA1)]


def no_such():
    raise RuntimeError("no such device")


@pytest.mark.parametrize(("text", "wanted"), [("auto", "cuda:3"), ("cuda", "cuda:3"), ("cpu", "cpu")])
def test_each_process_takes_the_gpu_of_its_number(text, wanted, monkeypatch):
    tried = []
    monkeypatch.setattr(_distributed, "local_rank", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda n, device: tried.append(device) or (torch.device(device) and no_such()))
    with pytest.raises(_options.argparse.ArgumentTypeError, match=f"there is no device '{wanted}' here"):
        _options.device(text)
    assert tried == [wanted]
    with pytest.raises(_options.argparse.ArgumentTypeError, match="takes a GPU of its own"):
        _options.device("cuda:1")


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with _checkpoint.noting_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is before  # the second one ends it at once
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_goes_on_between_two_measurements():
    """From plain values that went through JSON: sums since the last row, schedule and losses."""
    run, job, _ = run_of()
    for step in (1, 2, 3):
        run.step(step, [job.batch_of(step)], False)
    run.settle()
    values = json.loads(json.dumps(run.values()))
    other, _, _ = run_of()
    other.restore(run.tensors(), values)
    assert other.since == run.since
    assert other.since["steps"] == 3
    assert (other.losses, other.all, other.schedule.last_epoch) == (run.losses, run.all, 3)
