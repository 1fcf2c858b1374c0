"""The engine's one exception."""


class Fault(Exception):
    """An access or an instruction that is wrong, or that the engine does not model; the message says which."""
