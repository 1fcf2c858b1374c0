"""Errors of approximate instructions: within the bounds of NVIDIA's PTX ISA manual, and always the same for the same result."""

import numpy as np


class Approximation:
    """Moves exact results by up to ``ulps`` times what the manual allows; ``seed`` chooses by how much each."""

    def __init__(self, ulps=1, seed=0):
        self.ulps = ulps
        self._salt = np.uint64(seed * 0x9E3779B97F4A7C15 & 2**64 - 1)

    def by_ulps(self, exact, ulps):
        """``exact`` as float32, up to ``ulps`` units in the last place from the nearest.

        Powers of two stay, as ex2 of whole numbers and rcp of powers of two: libdevice counts on these.
        """
        nearest, most = exact.astype(np.float32), int(ulps * self.ulps)
        if not most:
            return nearest
        bits, size = nearest.view(np.int32), np.abs(nearest)
        power_of_two = (exact == nearest) & (bits & 0x7FFFFF == 0)
        off = (self._draw(nearest) * (2 * most + 1)).astype(np.int64).astype(np.int8) - np.int8(most)
        moved = (size > 2.0**-120) & (size < 2.0**127) & ~power_of_two
        return np.where(moved, (bits + off).view(np.float32), nearest)

    def within(self, exact, most):
        """``exact`` off by up to ``most``; zeros stay."""
        moved = exact + (2 * self._draw(exact) - 1) * (self.ulps * most)
        return np.where((exact != 0) & np.isfinite(exact), moved, exact)

    def _draw(self, values):
        """Numbers in [0, 1), hashes of the values' bits (SplitMix64)."""
        bits = np.ascontiguousarray(values, np.float64).view(np.uint64) + self._salt
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
