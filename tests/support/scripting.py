"""Shared by the tests of scripts: running them as users do, and reading what they leave."""

import csv
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed.run
from matplotlib.image import imread
from torch.distributed.launcher.api import elastic_launch

from support.forking import forks

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# A GPT that takes milliseconds a step, on a file that takes no time to read.
TINY_DATA = ("--data", str(SCRIPTS / "benchmark.py"))
TINY_MODEL = ("--dim", "16", "--layers", "2", "--heads", "2", "--context", "32", "--batch", "8")
TINY_TEXT = ("--device", "cpu", *TINY_MODEL, *TINY_DATA)
# Warnings are errors, but for what dependencies say of themselves: Triton and Dynamo on new Pythons, and what Dynamo hides.
IGNORED = (
    "AnnAssign.__init__ missing",
    "Guards may run slower on Python",
    "The .grad attribute of a Tensor",
    "`torch.jit.script_method` is deprecated",
)
# Of a forked train_text or train_experts, whose own numbers take longer than training: bytes it writes, held-out windows.
SAMPLED, VALIDATED = 20, 128


def environment(**variables):
    """The test run's own, but for the variables that decide what a script computes with."""
    env = {key: value for key, value in os.environ.items() if key not in ("SIGTORCH_BACKEND", "TRITON_INTERPRET")}
    env["PYTHONPATH"] = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [env.get("PYTHONPATH")])])
    env["OMP_NUM_THREADS"] = "1"  # on a busy machine, threads that wait for each other take ten times as long
    return env | variables


def run(script, *arguments, **variables):
    """Runs a script as a new process, warnings being errors; returns its output and exit status."""
    filters = ["-Werror", *(f"-Wignore:{said}" for said in IGNORED)]
    command = [sys.executable, *filters, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, check=False, timeout=120
    )


class Started:
    """A script at work, in one process or in several, which meet at a port as torchrun's do.

    An argument may be a function of the process's number.
    """

    def __init__(self, script, *arguments, processes=1, cwd=None, **variables):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.folder = Path(tempfile.mkdtemp())
        self.processes = []
        for rank in range(processes):
            env = environment(**variables)
            if processes > 1:
                env |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            for suffix in (".out", ".err"):
                self._file(rank).with_suffix(suffix).touch()
            given = [argument(rank) if callable(argument) else str(argument) for argument in arguments]
            started = forks().Process(target=_forked, args=(script, given, env, cwd, self._file(rank)))
            started.daemon = script != "torchrun"  # which has children
            started.start()
            self.processes.append(started)

    def _file(self, rank):
        return self.folder / str(rank)

    def stdout(self, rank=0):
        return self._read(rank, ".out")

    def _read(self, rank, suffix):
        lines = self._file(rank).with_suffix(suffix).read_text(errors="replace").splitlines(keepends=True)
        # Gloo greets in torch 2.8, and Inductor misses a GPU where there is a CUDA compiler.
        said = ("[Gloo] Rank ", "No CUDA runtime is found")
        return "".join(line for line in lines if not any(text in line for text in said))

    def wait_for(self, text):
        """Waits until the first process has printed the text."""
        deadline = time.monotonic() + 60
        while text not in self.stdout():
            assert self.processes[0].is_alive(), self.wait().stderr
            assert time.monotonic() < deadline, self.stdout()
            time.sleep(0.005)

    def wait(self):
        """Returns how all processes ended, and what the first printed, or all."""
        for started in self.processes:
            started.join(120)
            if started.is_alive():
                if not started.daemon:  # torchrun, which leads a group of processes
                    os.killpg(started.pid, signal.SIGKILL)
                started.kill()
                started.join()
        ranks = range(len(self.processes))
        errors = [self._read(rank, ".err") for rank in ranks]
        ended = SimpleNamespace(
            returncodes=[started.exitcode for started in self.processes],
            returncode=self.processes[0].exitcode,
            stdout=self.stdout(),
            stderr=errors[0],
            others="".join(self.stdout(rank) + errors[rank] for rank in ranks if rank),
        )
        shutil.rmtree(self.folder)
        return ended


def fork(script, *arguments, **how):
    """Does what ``run`` does without the time that imports take, in any number of processes; "torchrun" is a script, too."""
    return Started(script, *arguments, **how).wait()


def _forked(script, arguments, env, cwd, file):
    """Runs a script in a forked process."""
    os.chdir(cwd or os.getcwd())
    os.environ.clear()
    os.environ.update(env)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(file.with_suffix(suffix), os.O_WRONLY), number)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):  # as Python starts
        stream.reconfigure(encoding=encoding, line_buffering=True, errors=errors)
    torch.set_num_threads(1)  # OMP_NUM_THREADS comes too late for a process that has imported torch
    if script == "torchrun":
        os.setsid()
        with mock.patch.object(torch.distributed.run, "elastic_launch", _forking):
            torch.distributed.run.main(arguments)
    else:
        _main(script, *arguments)


def _main(script, *arguments):
    """Does what a script ends with."""
    sys.argv = [str(SCRIPTS / script), *arguments]
    warnings.simplefilter("error")
    for said in IGNORED:
        warnings.filterwarnings("ignore", said)
    module = importlib.import_module(Path(script).stem)
    if script in ("train_text.py", "train_experts.py"):
        text = importlib.import_module("train_text")
        text.SAMPLE, text.VALIDATION_WINDOWS = SAMPLED, VALIDATED
        # Inductor would write C++, which takes a compiler half a minute.
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    module._start.escape_what_it_lacks()
    module.main()


def _forking(config, entrypoint):
    """Forks the workers, in place of torchrun's launcher, which starts Python anew."""
    config.start_method = "fork"
    return lambda unbuffered, script, *arguments: elastic_launch(config, _main)(Path(script).name, *arguments)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(stdout):
    """The rows of the only table in the output, drawn in ASCII or not; in ASCII its head has bars, too."""
    bar = "│" if "│" in stdout else "|"
    lines = [line for line in stdout.splitlines() if line.startswith(f"{bar} ")]
    lines = lines[1:] if bar == "|" else lines
    return [[cell.strip() for cell in line.strip(bar).split(bar)] for line in lines]


def checkpoints(out):
    """The names of the checkpoints there, the newest last."""
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


def state_of(out, step):
    """The plain values of a checkpoint."""
    return json.loads((out / "checkpoints" / f"step-{step:09}" / "state.json").read_text())


def losses(out, step):
    """The loss of each step up to a checkpoint."""
    return state_of(out, step)["runs"][0]["losses"]


def assert_picture(path):
    picture = imread(path)
    assert picture.shape[1] > picture.shape[0] > 300  # wider than high
    assert picture.std() > 0.05  # and not a blank sheet


def assert_one_line(ended, said, script):
    """Refused by the first process alone, in one line, with nothing on the other stream."""
    assert set(ended.returncodes) == {2}, ended.stderr
    assert ended.stdout == ""
    usage, _, error = ended.stderr.partition(f"{script}: error: ")
    assert usage.startswith("usage: ")
    assert said in error
    assert error.count("\n") == 1
    assert ended.others == ""


def assert_refused(ended, said):
    """Refused by the first process alone, in one line, without a word on usage."""
    assert set(ended.returncodes) == {2}, ended.stderr
    assert (ended.stdout, ended.others) == ("", "")
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def assert_refuses(parse, options, capsys):
    """Checks that parsing refuses the options, in this process, for speed."""
    with pytest.raises(SystemExit) as ended:
        parse(options.split())
    assert ended.value.code == 2
    usage, _, error = capsys.readouterr().err.partition(": error: ")
    assert usage.startswith("usage: ")
    assert options.split()[0] in error
    assert error.count("\n") == 1
