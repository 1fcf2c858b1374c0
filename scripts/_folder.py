"""The folder that a script writes into: made before anything is computed, held by one process, and never overwritten."""

import argparse
import contextlib
import errno
import fcntl
import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import _checkpoint
import _options
from _distributed import first, rank
from _output import Row, give_up, warn

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)
RESULTS = ("metrics.csv", "model.pt", "curves.png", "tensorboard")  # of a training


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it until the block or the process ends; a new folder that stays empty goes again.

    Raises:
        OSError: the folder cannot be made or written into, or another process holds it. In one line.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / LOCK)
    except OSError as error:
        raise OSError(f"cannot write into {str(folder)!r}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            if is_new:
                folder.rmdir()
        os.close(lock)


def _lock(path: Path) -> int:
    """Open a file that no other process has locked, and lock it: the operating system ends a lock with its process."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 1000).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise BlockingIOError(0, f"{holder} is at work there") from None
        except OSError as error:
            warn(f"{path.parent} cannot be locked ({error.strerror}): a second process in it would not be noticed")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(lock)):
                os.ftruncate(lock, 0)
                with contextlib.suppress(OSError):  # a full disk has no room for it, and needs none
                    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return lock
        os.close(lock)  # its holder has ended meanwhile, and removed it


@contextlib.contextmanager
def for_results(given: Path | None, default: str, results: Sequence[str]) -> Iterator[Path]:
    """Hold a folder that has none of these results: the one given, else the default or the first of default-2, ...

    A folder that does not do, or a disk that gets full, ends the script in one line.
    """
    numbered = (Path(f"{default}-{number}" if number > 1 else default) for number in itertools.count(1))
    folder = given or next(place for place in numbered if not _there(place, results))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except OSError as error:
            give_up(f"argument --out: {error}", 2)
        if there := _there(folder, results):
            give_up(f"argument --out: {str(folder)!r} has results already: {', '.join(there)}; name another folder", 2)
        try:
            yield folder
        except OSError as error:
            if error.errno not in FULL:
                raise
            give_up(f"cannot write into {folder}: {error}")


def _there(folder: Path, results: Sequence[str]) -> list[str]:
    return [name for name in results if (folder / name).exists()]


@contextlib.contextmanager
def for_training(args: argparse.Namespace, fixed: Sequence[str]) -> Iterator[None]:
    """Hold --out for one training, whose first process locks it; set ``args.checkpoint`` to what it goes on from, or None.

    ``fixed`` are the options that have to stay, such as those that shape the model. A training that torchrun starts again,
    after a process was lost, goes on by itself. A folder of another training, at work or finished, ends the script in one
    line.
    """
    if args.resume and not first(args.out.exists()):
        give_up(f"argument --resume: there is no folder {str(args.out)!r}", 2)
    with contextlib.ExitStack() as stack:
        complaint = None
        if rank() == 0:
            try:
                stack.enter_context(locked(args.out))
            except OSError as error:
                complaint = str(error)
        if (complaint := first(complaint)) is not None:
            give_up(f"argument --out: {complaint}", 2)
        _find_checkpoint(args, fixed)
        yield


def _find_checkpoint(args: argparse.Namespace, fixed: Sequence[str]) -> None:
    place = args.out / "checkpoints"
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    found, there = first((_checkpoint.folders(place), _there(args.out, RESULTS)))
    if not (args.resume or again):
        if found:
            give_up(
                f"argument --out: {str(args.out)!r} has a training, its newest checkpoint is {found[0].name};"
                " --resume goes on from there, another --out starts anew",
                2,
            )
        if there:
            give_up(
                f"argument --out: {str(args.out)!r} has results already: {', '.join(there)}; another --out starts anew",
                2,
            )
        return
    args.checkpoint = _checkpoint.newest(place)
    if args.checkpoint is not None:
        _compare(args, _checkpoint.values_of(args.checkpoint)["config"], _options.config(args), fixed)
    elif args.resume and not again:
        give_up(f"argument --resume: there is no {'complete ' if found else ''}checkpoint in {str(place)!r}", 2)


def _compare(args: argparse.Namespace, then: Row, now: Row, fixed: Sequence[str]) -> None:
    """Refuse a checkpoint of other fixed options, and note what else has changed since it was written."""
    if then["script"] != now["script"]:
        give_up(f"argument --resume: {args.checkpoint} was written by {then['script']}", 2)
    for name in (*fixed, "compare"):
        if then[name] != now[name]:
            give_up(f"argument --resume: {args.checkpoint} wants --{name} {then[name]}, not {now[name]}", 2)
    differing = [name for name in now if now[name] != then.get(name, now[name]) and name not in _options.SILENT]
    args.changed = [f"{name} {now[name]} (was {then[name]})" for name in differing]
