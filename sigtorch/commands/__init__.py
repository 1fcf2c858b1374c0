"""The commands of ``python -m sigtorch``."""


class CommandError(Exception):
    """A mistake of the user's, told in one line."""
