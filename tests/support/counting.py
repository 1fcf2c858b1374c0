"""The engine that counts the bytes which kernels load and store."""

import pytest
import triton


def engine_that_counts():
    """Returns what runs kernels, where that has ``loads`` and ``stores`` in bytes; skips the test elsewhere."""
    gpu = None if triton.knobs.runtime.interpret else triton.runtime.driver.active
    if not hasattr(gpu, "loads"):
        pytest.skip("needs an engine that counts bytes: see scripts/without_gpu/ptx")
    return gpu
