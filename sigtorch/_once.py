"""A cache whose value is made once, in however many threads it is first asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def once(function: F) -> F:
    """Cache a function's values by its arguments.

    ``functools.cache`` runs a function as often as threads ask before the first value is there, and they get different
    values. Here the function runs once for each key. What is cached costs as little.
    """
    lock = threading.RLock()
    values: dict[Hashable, Any] = {}

    @functools.cache
    @functools.wraps(function)
    def cached(*key: Hashable) -> Any:
        with lock:
            if key not in values:
                values[key] = function(*key)
            return values[key]

    forget = cached.cache_clear

    def cache_clear() -> None:
        values.clear()
        forget()

    cached.cache_clear = cache_clear  # type: ignore[method-assign]
    return cached  # type: ignore[return-value]
