"""Processes for tests that need their own, forked from a server that has imported what takes seconds to import."""

import functools
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from unittest import mock

PRELOADED = [
    "torch._dynamo", "torch.distributed.run", "matplotlib.backends.backend_agg", "PIL.PngImagePlugin", "support.scripting",
    "benchmark", "benchmark_attention", "benchmark_models", "derive", "from_scratch", "reach",
    "train_digits", "train_experts", "train_imbalanced", "train_labels", "train_siglip", "train_text",
]  # fmt: skip


@functools.cache
def forks():
    """The context of multiprocessing whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Before Python 3.13 the server is not told of sys.path, and skips silently what it cannot find.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        # What has imported Triton to interpret cannot compile.
        os.environ.pop("TRITON_INTERPRET", None)
        forkserver.ensure_running()
    return context
