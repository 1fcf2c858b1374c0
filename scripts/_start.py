"""The first import of every script: from here on Ctrl-C is one line, also while other imports take their seconds.

So is a package that is not installed.
"""

import io
import os
import signal
import sys
from types import TracebackType
from typing import Any

PACKAGES = ("matplotlib", "numpy", "rich", "scipy", "sklearn")  # of the extra "scripts"
_print_traceback = sys.excepthook


def _end_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    if issubclass(kind, KeyboardInterrupt):
        said, status = "SIGINT came, stopped", 128 + signal.SIGINT
    elif isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
        said, status = f'{error.name} is not installed; pip install ".[scripts]" brings it', 1
    else:
        return _print_traceback(kind, error, trace)
    if os.environ.get("RANK", "0") == "0":  # torchrun's processes all hear of it, and the first one speaks
        print(f"error: {said}", file=sys.stderr, flush=True)
    raise SystemExit(status)


sys.excepthook = _end_in_one_line


def escape_what_it_lacks() -> None:
    """Print as an escape, from here on, any character that the encoding of a terminal or a pipe lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
