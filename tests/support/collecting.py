"""Garbage of a test alone."""

import contextlib
import gc


@contextlib.contextmanager
def of_its_own():
    """Has gc.collect() pass over all that is alive already: a million objects once every test is imported."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
