"""Copies of the repository, and pytest in them: the checkout itself is never written into."""

import asyncio
import contextlib
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mutants.slip import Slip

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
# Importing torch takes longer than most of the tests: one process does it, and forks for each run. Triton is none of this,
# for what it is asked to do is decided when it is imported.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "torch.testing", "torch.distributed.tensor", "pytest", "matplotlib.figure", "sklearn.datasets", __name__]
)


PASSED, FAILED = 64, 65  # exit statuses: pytest's and 64, for 1 is also that of a process that never comes to it


class Copy:
    """One copy, in which one slip is tried after the other."""

    def __init__(self, folder: Path) -> None:
        self.root, self.temporary = folder / "copy", folder / "tmp"
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=NOT_COPIED)
        self.temporary.mkdir()

    async def run(self, tests: str, limit: float | None) -> int | None:
        """The exit status, or None where it took longer than limit, in seconds."""
        words = shlex.split(tests)
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        variables |= {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(self.temporary)}
        arguments = [word for word in words if word.partition("=")[0] not in variables]
        process = FORKS.Process(target=_pytest, args=(self.root, variables, arguments))
        process.start()
        try:
            await asyncio.to_thread(process.join, limit)
            return process.exitcode
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started and left behind ends, too
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()

    @contextlib.contextmanager
    def with_slip(self, slip: Slip) -> Iterator[None]:
        """Its file is as the slip leaves it."""
        path = self.root / slip.file
        before = path.read_text()
        path.write_text(before.replace(slip.old, slip.new))
        try:
            yield
        finally:
            path.write_text(before)


def _pytest(root: Path, variables: dict[str, str], arguments: list[str]) -> None:
    """Runs pytest in a forked process."""
    os.setsid()
    os.environ.update(variables)
    os.chdir(root)
    tempfile.tempdir, sys.dont_write_bytecode = None, True
    sys.path.insert(0, str(root))
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    import pytest  # has been imported before the fork

    sys.exit(PASSED + pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments]))
