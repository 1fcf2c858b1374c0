"""Slips that the tests should notice, a file an area of the code, and the driver that tries them."""

from mutants import (
    attention,
    chunked,
    core,
    experts,
    kernel_math,
    kernels,
    launchers,
    losses,
    operators,
    ops,
    plugin,
    scripts,
    swiglu,
    training,
)

AREAS = (
    kernel_math,
    kernels,
    launchers,
    core,
    ops,
    experts,
    operators,
    losses,
    chunked,
    swiglu,
    attention,
    plugin,
    scripts,
    training,
)
