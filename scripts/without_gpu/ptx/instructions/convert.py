"""cvt: from any type to any other."""

import numpy as np
import torch

from ..fault import Fault
from ..rounding import encode, mode_of
from ..values import FP8, UNSIGNED, Type, decode, flush
from .table import instruction

TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
TORCH_FP8 = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}  # and the largest number


@instruction("cvt", "rn rz rm rp rni rzi rmi rpi ftz sat satfinite relu")
def convert(machine, ins, active):
    to, source = ins.types
    from_float = source.is_float or source.element in FP8
    to_float = to.is_float or to.element in FP8
    if ("satfinite" in ins.modifiers and to.element not in FP8) or (
        to.element in FP8 and mode_of(ins.modifiers) != "rn"
    ):
        raise Fault("conversion not modelled")
    numbers = _source(machine, ins, to, source)
    if from_float and to_float:
        bits = _float_to_float(numbers, to, ins.modifiers)
    elif source.is_float:
        bits = _float_to_integer(numbers, to, source, ins.modifiers)
    elif to.is_float:
        bits = _integer_to_float(numbers, to, ins.modifiers)
    else:
        bits = _integer_to_integer(numbers, to, ins.modifiers)
    machine.write(ins.operands[0], bits, active)


def _source(machine, ins, to, source):
    """The numbers to convert, a packed type's elements side by side."""
    if to.count == 2 and source.count == 1:  # two operands, the high half first
        bits = np.stack([machine.read(operand, source.width) for operand in ins.operands[2:0:-1]], 1).ravel()
    else:
        bits = machine.read(ins.operands[1], source.width).view(UNSIGNED[source.size])
    element = Type(source.element, source.size)
    if source.element in FP8:
        return torch.from_numpy(bits).view(TORCH_FP8[source.element][0]).float().numpy()
    return decode(flush(bits, element) if "ftz" in ins.modifiers else bits, element)


def _to_integral(modifiers):
    return next((function for name, function in TO_INTEGRAL.items() if name in modifiers), None)


def _float_to_float(numbers, to, modifiers):
    to_integral = _to_integral(modifiers)
    if to_integral:
        numbers = to_integral(numbers)
    zero = numbers.dtype.type(0)
    if "sat" in modifiers:
        numbers = np.where(np.isnan(numbers), zero, np.clip(numbers, 0, 1))
    if "relu" in modifiers:
        numbers = np.where(numbers < 0, zero, numbers)
    if to.element in FP8:
        return _to_fp8(numbers, to)
    bits = encode(numbers, to, mode_of(modifiers))
    return flush(bits, to) if "ftz" in modifiers else bits


def _to_fp8(numbers, to):
    dtype, largest = TORCH_FP8[to.element]
    rounded = torch.from_numpy(numbers.astype(np.float32)).clamp(-largest, largest).to(dtype)
    bits = np.where(np.isnan(numbers), np.uint8(0x7F), rounded.view(torch.uint8).numpy())
    return bits.view(UNSIGNED[to.width])


def _float_to_integer(numbers, to, source, modifiers):
    """Beyond the range its end; NaN gives 0, or the sign bit alone where one of the types has 64 bits."""
    to_integral = _to_integral(modifiers)
    if to_integral is None:
        raise Fault("conversion not modelled")
    numbers, dtype = to_integral(numbers.astype(np.float64)), np.dtype(to.integer)
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    above, below, nan = numbers >= float(highest), numbers <= float(lowest), np.isnan(numbers)
    inside = np.where(above | below | nan, 0, numbers).astype(dtype)
    result = np.where(above, highest, np.where(below, lowest, inside))
    if to.size == 8 or source.element == "f64":
        of_nan = np.array(1 << 8 * to.size - 1, UNSIGNED[to.size]).view(dtype)
    else:
        of_nan = dtype.type(0)
    return np.where(nan, of_nan, result).astype(dtype)


def _integer_to_float(numbers, to, modifiers):
    mode = mode_of(modifiers)
    if mode != "rn" and numbers.itemsize == 8:
        raise Fault("conversion not modelled")
    direct = to.element == "f32" and mode == "rn"
    return encode(numbers.astype(np.float32 if direct else np.float64), to, mode)


def _integer_to_integer(numbers, to, modifiers):
    given, wanted = np.iinfo(numbers.dtype), np.iinfo(to.integer)
    if "sat" in modifiers:
        numbers = np.clip(numbers, max(wanted.min, given.min), min(wanted.max, given.max))
    return numbers.astype(to.integer)
