"""The definition of a slip."""

from typing import NamedTuple


class Slip(NamedTuple):
    """A mistake of the kind that a developer makes: in a file, a text that occurs there once becomes another."""

    file: str
    old: str
    new: str
    tests: str  # that should notice, as written behind `pytest`; variables of the environment come first
    effect: str
    argued: str = ""  # why no test can notice, where none does
