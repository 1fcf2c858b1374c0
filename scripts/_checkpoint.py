"""Checkpoints that survive: written aside and renamed, proved complete before they are read, the last three kept.

A checkpoint is a folder: the tensors as torch.distributed.checkpoint writes them, which any number of processes can
read; each process's random states; and ``state.json``, everything else, with size and checksum of every file.
"""

import json
import os
import random
import shutil
import signal
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _distributed import first, gather, rank, size, together
from _output import first_line, os_errors, warn
from torch.distributed.checkpoint.api import CheckpointException

KEPT = 3
STATE = "state.json"
UNREADABLE = (RuntimeError, OSError, KeyError, ValueError)  # raised for a checkpoint of other tensors, or a torn one
Values = dict[str, Any]
Failures = type[Exception] | tuple[type[Exception], ...]


def folders(place: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, the newest first."""
    return sorted(place.glob("step-*"), key=lambda path: path.name, reverse=True)


def save(place: Path, step: int, tensors: Values, values: Values) -> Path:
    """Write a checkpoint, in all processes together, and remove those that are too many.

    Raises:
        OSError: one of the processes could not write. The checkpoints that were there are as they were.
    """
    final = place / f"step-{step:09}"
    aside = place / f".{final.name}"
    try:
        together(lambda: _clear(place, aside) if rank() == 0 else None)
        _dcp(dcp.save, OSError, tensors, storage_writer=_Writer(aside))
        files = together(lambda: _write_random_states(aside))
        values = values | {"step": step, "files": {name: proof for part in files for name, proof in part.items()}}
        together(lambda: _finish(aside, final, values) if rank() == 0 else None)
    except OSError:
        if rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def newest(place: Path) -> Path | None:
    """The newest complete checkpoint; one that is torn is skipped, with a warning."""
    for path in first(folders(place)):
        complaint = next(filter(None, gather(_complaint(path))), None)
        if complaint is None:
            return path
        warn(f"the checkpoint {path} is skipped, it is torn: {complaint}")
    return None


def values_of(path: Path) -> Values:
    """The values of a checkpoint: everything but the tensors and random states."""
    return json.loads((path / STATE).read_text())


def load(path: Path, tensors: Values) -> None:
    """Read a checkpoint's tensors into those given, and this process's random states, if the checkpoint has them.

    Raises:
        OSError: it cannot be read, or holds other tensors.
    """
    _dcp(dcp.load, UNREADABLE, tensors, checkpoint_id=path)
    mine = _random_file(path)
    if mine.exists():  # else it was written by fewer processes
        set_random_states(torch.load(mine, weights_only=True))


class _Writer(dcp.FileSystemWriter):
    """Fails with the operating system's error, which comes to the other processes without the errors behind it."""

    def write_data(self, *given: Any) -> Any:
        with os_errors():
            return super().write_data(*given)


def _dcp(call: Callable[..., Any], expected: Failures, tensors: Values, **options: Any) -> None:
    """Save or load; an expected failure becomes an OSError of one line in every process, another one is raised as it is."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is")  # uninitialized: there is one process
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.8 warns itself
            call(tensors, no_dist=not dist.is_initialized(), **options)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        if not all(isinstance(cause, expected) for cause in causes):
            raise
        raise OSError(first_line(causes[0])) from None
    except expected as error:
        raise OSError(first_line(error)) from None


def _clear(place: Path, aside: Path) -> None:
    """Make an empty folder to write into, and remove those that were left half written or half removed."""
    for rest in place.glob(".step-*"):
        shutil.rmtree(rest)
    aside.mkdir(parents=True)


def _write_random_states(aside: Path) -> Values:
    """Write this process's random states; return size and checksum of every file that it wrote."""
    with _durable(_random_file(aside)) as file, os_errors():
        torch.save(random_states(), file)
    mine = [_random_file(aside), *aside.glob(f"__{rank()}_*.distcp")]
    if rank() == 0:
        mine.append(aside / ".metadata")
    return {path.name: _proof(path) for path in mine}


def _finish(aside: Path, final: Path, values: Values) -> None:
    """Complete a checkpoint, give it its name, and remove what it replaces."""
    with _durable(aside / STATE) as file:
        file.write(json.dumps(values).encode())
    _sync(aside)
    _remove(final)
    aside.rename(final)
    _sync(final.parent)
    older = [path for path in folders(final.parent) if path.name < final.name]
    newer = [path for path in folders(final.parent) if path.name > final.name]  # torn, or this step came after them
    for path in older[KEPT - 1 :] + newer:
        _remove(path)


def _remove(path: Path) -> None:
    """Rename a checkpoint before it is removed: a process that dies in between leaves nothing that looks complete."""
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}-removed")), ignore_errors=True)


@contextmanager
def _durable(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _proof(path: Path) -> list[int]:
    """Size and checksum of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def _complaint(path: Path) -> str | None:
    """Say what is wrong with this process's share of a checkpoint's files, or return None."""
    try:
        files = values_of(path)["files"]
        for name in sorted(files)[rank() :: size()]:
            if _proof(path / name) != files[name]:
                return f"{name} is not as it was written"
    except OSError as error:
        return f"{Path(error.filename or STATE).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{STATE} is not as it was written"
    return None


def _random_file(path: Path) -> Path:
    return path / f"random-{rank()}.pt"


def random_states() -> Values:
    """The state of every random number generator of this process."""
    name, keys, *rest = numpy.random.get_state()
    states = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_random_states(states: Values) -> None:
    """Set the state of every generator."""
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def noting_signals() -> Iterator[list[int]]:
    """A list of the signals to end that arrive in the block: SIGTERM or SIGINT, whose second one ends at once."""
    caught: list[int] = []
    former: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, former[number])

    former.update({number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)})
    try:
        yield caught
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
