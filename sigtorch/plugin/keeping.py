"""Puts a model, its arguments and the random state back as they were before a run."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from sigtorch import _eligible


class Kept:
    """The tensors of a model and of its arguments, to be restored after a run.

    Buffers are copied at once, for some operators change them without saying so. Parameters, gradients and arguments are
    copied when an operator is about to change them: most models change none.
    """

    def __init__(self, model: torch.nn.Module, arguments: Any) -> None:
        self.held: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (part, dict(part)) for m in model.modules() for part in (m._parameters, m._buffers)
        ]
        self.gradients = [(p, p.grad) for p in model.parameters()]
        self.watched: dict[int, torch.UntypedStorage] = {}  # memory that has not changed, by its address
        self.copies: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []
        self.others: list[tuple[torch.Tensor, torch.Tensor]] = []  # buffers without plain memory, with copies
        for t in [*model.parameters(), *(grad for _, grad in self.gradients), *tree_leaves(arguments)]:
            if _has_memory(t):
                self.watched[t.untyped_storage()._cdata] = t.untyped_storage()
        for buffer in model.buffers():
            if _has_memory(buffer):
                self.watched[buffer.untyped_storage()._cdata] = buffer.untyped_storage()
                self.before([buffer])
            elif not buffer.is_meta:
                self.others.append((buffer, buffer.detach().clone()))

    def before(self, changing: list[torch.Tensor]) -> None:
        """Copies the memory of tensors that are about to change."""
        for t in changing:
            storage = self.watched.pop(t.untyped_storage()._cdata, None) if _has_memory(t) else None
            if storage is not None:
                self.copies.append((storage, storage.clone()))

    def restore(self) -> None:
        """Restores all of it, in place and bit by bit."""
        for storage, copied in self.copies:
            if storage.nbytes() != copied.nbytes():
                storage.resize_(copied.nbytes())
            storage.copy_(copied)
        with torch.no_grad():
            for buffer, value in self.others:
                buffer.copy_(value)
        for part, content in self.held:
            part.clear()
            part.update(content)
        for p, gradient in self.gradients:
            p.grad = gradient


def _has_memory(t: Any) -> bool:
    return type(t) in _eligible.PLAIN_TYPES and t.layout == torch.strided and not t.is_meta


@contextmanager
def kept(model: torch.nn.Module, arguments: Any) -> Iterator[Kept]:
    """Restores the model, its arguments and the random state when the block ends, also by an exception."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state = Kept(model, arguments)
    with ExitStack() as stack:
        stack.callback(state.restore)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.callback(random.setstate, random.getstate())
        if "numpy" in sys.modules:  # which some models draw from in training
            numpy = sys.modules["numpy"]
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        yield state
