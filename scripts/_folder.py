"""The folder that a script writes into: made before anything is computed, held by one process, and never overwritten."""

import argparse
import contextlib
import errno
import fcntl
import itertools
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import _checkpoint
import _options
from _distributed import first, gather, rank
from _output import Row, give_up, replacing, warn

LOCK = ".lock"
LAUNCH = ".launch"  # names the launch of a training that torchrun started, until it ends well
TAKEN = (BlockingIOError, FileExistsError)
FULL = (errno.ENOSPC, errno.EDQUOT)
RESULTS = ("metrics.csv", "model.pt", "curves.png", "tensorboard")  # of a training


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it until the block or the process ends; a new folder that stays empty goes again.

    Raises:
        BlockingIOError: another process holds the folder. In one line.
        OSError: it cannot be made or written into. In one line.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / LOCK)
    except OSError as error:
        raise type(error)(f"cannot write into {str(folder)!r}: {error.strerror}") from None
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
    """Hold a folder that has none of these results: the one given, else the first that is free of default, default-2, ...

    A given folder that is not free, or a disk that gets full, ends the script in one line.
    """
    numbered = (Path(f"{default}-{number}" if number > 1 else default) for number in itertools.count(1))
    places = [given] if given else (place for place in numbered if not _there(place, results))
    with contextlib.ExitStack() as stack:
        folder = _take(stack, places, results)
        try:
            yield folder
        except OSError as error:
            if error.errno not in FULL:
                raise
            give_up(f"cannot write into {folder}: {error}")


def _take(stack: contextlib.ExitStack, places: Iterable[Path], results: Sequence[str]) -> Path:
    """Hold the first place that no other process holds, and that has no results, until the stack closes."""
    complaint = None
    for place in places:
        try:
            stack.enter_context(_free(place, results))
            return place
        except OSError as error:
            complaint = error
            if not isinstance(error, TAKEN):
                break
    give_up(f"argument --out: {complaint}", 2)


@contextlib.contextmanager
def _free(folder: Path, results: Sequence[str]) -> Iterator[None]:
    """Hold a folder, once it is known to be free of results."""
    with locked(folder):
        if there := _there(folder, results):
            said = f"{str(folder)!r} has results already: {', '.join(there)}; name another folder"
            raise FileExistsError(said)
        yield


def _there(folder: Path, results: Sequence[str]) -> list[str]:
    return [name for name in results if (folder / name).exists()]


@contextlib.contextmanager
def for_training(args: argparse.Namespace, fixed: Sequence[str]) -> Iterator[None]:
    """Hold --out for one training, whose first process locks it; set ``args.checkpoint`` to what it goes on from, or None.

    ``fixed`` are the options that have to stay, such as those that shape the model. A training that torchrun starts again,
    after a process was lost, goes on by itself: ``.launch`` says that the folder is its own. A folder of another training,
    at work or finished, ends the script in one line.
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
        launch, note = _launch(), args.out / LAUNCH
        _find_checkpoint(args, fixed, again=first(not launch.isdisjoint(_read(note))))
        if launch and rank() == 0:
            _write(note, launch)
        yield
        if rank() == 0:
            with contextlib.suppress(OSError):
                note.unlink()


def _launch() -> set[str]:
    """The folders, one a machine, that torchrun keeps errors in: new for every launch, the same when it starts again."""
    # .../attempt_0/0/error.json; empty without torchrun
    files = gather(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return {str(Path(file).parent.parent.parent) for file in files if file}


def _read(note: Path) -> set[str]:
    try:
        return set(os.fsdecode(note.read_bytes()).splitlines())
    except OSError:
        return set()


def _write(note: Path, launch: set[str]) -> None:
    try:
        with replacing(note) as aside:
            aside.write_bytes(os.fsencode("\n".join(sorted(launch))))
    except OSError as error:
        warn(f"{note} could not be written ({error.strerror}): torchrun can't start this training again")


def _find_checkpoint(args: argparse.Namespace, fixed: Sequence[str], again: bool) -> None:
    """Set ``args.checkpoint``; ``again`` is whether this launch began the training that is there."""
    place = args.out / "checkpoints"
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
        values = _checkpoint.values_of(args.checkpoint)
        then = values["config"] if values.keys() >= {"config", "runs", "step"} else {}
        _compare(args, then, _options.config(args), fixed)
    elif args.resume and not again:
        give_up(f"argument --resume: there is no {'complete ' if found else ''}checkpoint in {str(place)!r}", 2)


def _compare(args: argparse.Namespace, then: Row, now: Row, fixed: Sequence[str]) -> None:
    """Refuse a checkpoint of other fixed options, and note what else has changed since it was written."""
    if then.get("script", now["script"]) != now["script"]:
        give_up(f"argument --resume: {args.checkpoint} was written by {then['script']}", 2)
    if not then.keys() >= now.keys():
        give_up(f"argument --resume: {args.checkpoint} was written by another version of this script", 2)
    for name in (*fixed, "compare"):
        if then[name] != now[name]:
            give_up(f"argument --resume: {args.checkpoint} wants --{name} {then[name]}, not {now[name]}", 2)
    differing = [name for name in now if now[name] != then[name] and name not in _options.SILENT]
    args.changed = [f"{name} {now[name]} (was {then[name]})" for name in differing]
