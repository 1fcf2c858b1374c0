"""PTX types in NumPy. Registers hold bits, as unsigned integers; ``decode`` reads them as numbers of a type."""

from dataclasses import dataclass

import numpy as np

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOATS = {"f16": np.float16, "bf16": np.float32, "f32": np.float32, "f64": np.float64}  # NumPy has no bfloat16
SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126}
FP8 = ("e4m3", "e5m2")


@dataclass(frozen=True)
class Type:
    """``count`` elements of ``size`` bytes, side by side in one register; a predicate has no size."""

    element: str
    size: int
    count: int = 1

    @property
    def width(self):
        """Bytes of a register of this type."""
        return self.size * self.count

    @property
    def is_float(self):
        return self.element in FLOATS

    @property
    def is_signed(self):
        return self.element[0] == "s"

    @property
    def integer(self):
        """The NumPy type of an element's bits, signed if the type is."""
        return (SIGNED if self.is_signed else UNSIGNED)[self.size]


_SCALARS = {"pred": 0, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
_SCALARS |= {f"{kind}{8 * size}": size for kind in "bus" for size in (1, 2, 4, 8)}
_PACKED = {"u16": 2, "s16": 2, "f16": 2, "bf16": 2, "f32": 4, "e4m3": 1, "e5m2": 1}
TYPES = {name: Type(name, size) for name, size in _SCALARS.items()}
TYPES |= {f"{name}x2": Type(name, size, 2) for name, size in _PACKED.items()}


def decode(bits, ty):
    """Registers' bits as numbers, the elements of a packed register side by side; bfloat16 as float32."""
    bits = bits.view(UNSIGNED[ty.size])
    if ty.element == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(FLOATS[ty.element] if ty.is_float else ty.integer)


def flush(bits, ty):
    """Registers' bits with subnormal elements made zeros of the same sign, as .ftz does; float64 has no .ftz."""
    if ty.element not in SMALLEST_NORMAL:
        return bits
    bits = bits.view(UNSIGNED[ty.size])
    sign = bits.dtype.type(1 << 8 * ty.size - 1)
    tiny = np.abs(decode(bits, Type(ty.element, ty.size))) < SMALLEST_NORMAL[ty.element]
    return np.where(tiny, bits & sign, bits).view(UNSIGNED[ty.width])
