"""A cache that gives every thread the same value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def once(function: F) -> F:
    """Caches a function's values by its arguments, and gives all threads the same value.

    Threads that ask before the first value is there may run the function together, as with ``functools.cache``. There each
    gets a value of its own; here all get the first one that is done. No lock is held, for a process may fork meanwhile.
    """
    values: dict[Hashable, Any] = {}

    @functools.cache
    @functools.wraps(function)
    def cached(*key: Hashable) -> Any:
        if key not in values:
            values.setdefault(key, function(*key))
        return values[key]

    forget = cached.cache_clear

    def cache_clear() -> None:
        values.clear()
        forget()

    cached.cache_clear = cache_clear  # type: ignore[method-assign]
    return cached  # type: ignore[return-value]
