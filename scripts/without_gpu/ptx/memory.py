"""The three memories of a kernel: which of them an address is in, and whether it may be accessed.

All three answer alike: ``outside`` tells which accesses are not allowed, ``describe`` says it in words, and
``positions`` are the bytes of ``data`` that addresses stand for.
"""

import bisect

import numpy as np


class GlobalMemory:
    """The tensors of a launch, as one array over all the memory between the first and the last of them.

    Only what ``outside`` lets through is ever touched. ``buffers`` are sizes in bytes by address.
    """

    written = None  # not tracked: tensors come with their values

    def __init__(self, buffers):
        self.buffers = buffers
        self.starts, self.ends = [], []  # of stretches without a gap
        for start, size in sorted(buffers.items()):
            if self.ends and start < self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], start + size)
            else:
                self.starts.append(start)
                self.ends.append(start + size)
        self.base = min(self.starts, default=0) & ~63
        size = (max(self.ends, default=0) - self.base + 63) & ~63
        interface = {"data": (self.base, False), "shape": (size,), "typestr": "|u1", "version": 3}
        view = type("View", (), {"__array_interface__": interface})
        self.data = np.asarray(view()) if size else np.zeros(0, np.uint8)

    def outside(self, addresses, width):
        """Finds the accesses of ``width`` bytes that are not inside a tensor; None if all are."""
        if not self.starts:
            return np.ones(len(addresses), bool)
        first, end = int(addresses.min()), int(addresses.max()) + width
        stretch = bisect.bisect_right(self.starts, first) - 1
        if stretch >= 0 and end <= self.ends[stretch]:
            return None
        stretches = np.searchsorted(self.starts, addresses, "right") - 1
        outside = (stretches < 0) | (addresses + width > np.array(self.ends)[stretches])
        return outside if outside.any() else None

    def describe(self, address, width):
        def distance(buffer):
            start, size = buffer
            return max(start - address, address - start - size)

        start, size = min(self.buffers.items(), key=distance, default=(0, 0))
        here = f"[{address - start}, {address - start + width})"
        return f"access outside of every tensor passed: {here} relative to the nearest tensor of {size} bytes"

    def positions(self, addresses, threads):
        return addresses - self.base


class OnChipMemory:
    """Shared or local memory: ``owners`` of ``size`` bytes each; ``owner_of`` gives each thread's."""

    def __init__(self, name, size, owners, owner_of, track=False):
        self.name, self.size, self.owner_of = name, size, owner_of
        self.stride = (size + 15) // 16 * 16
        self.data = np.zeros(self.stride * owners, np.uint8)
        self.written = np.zeros_like(self.data) if track else None  # 255 where some thread wrote

    def outside(self, addresses, width):
        outside = (addresses < 0) | (addresses > self.size - width)
        return outside if outside.any() else None

    def describe(self, address, width):
        return f"access outside of {self.name} memory: [{address}, {address + width}) of {self.size} bytes"

    def positions(self, addresses, threads):
        return addresses + self.owner_of[threads] * self.stride
