"""A dispatch mode that records the operators of ours, and what PyTorch checks of them."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

BODY = ("test_schema", "test_faketensor")  # PyTorch's checks of what the body computes, by kernels or by a formula
WHOLE = (*BODY, "test_autograd_registration", "test_aot_dispatch_dynamic")  # and of its autograd, whatever the body


class Recorded(TorchDispatchMode):
    """Keeps the operators that run, with copies of their arguments and weak references to the memory of their results."""

    def __init__(self):
        super().__init__()
        self.calls, self.results = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        ours = func.namespace == "sigtorch"
        if ours:
            self.calls.append((func, tree_map(_copy, args)))
        out = func(*args, **(kwargs or {}))
        if ours and out is not None:
            first = out if isinstance(out, torch.Tensor) else out[0]
            self.results.append(StorageWeakRef(first.untyped_storage()))
        return out

    @property
    def names(self):
        return [func._opname for func, _ in self.calls]


def _copy(argument):
    return argument.detach().clone() if isinstance(argument, torch.Tensor) else argument
