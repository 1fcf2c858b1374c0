"""Output that does not fail: a script that has trained for hours should not end at a character."""

import io
import sys


def escape_what_it_lacks() -> None:
    """Print as an escape, from here on, what the encoding of a terminal or a pipe has no character for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
