"""Rows for the engine's own tests: elementwise instructions and their results."""

from typing import NamedTuple

import numpy as np

from support.ptx.oracle import FORMATS, as_operands, sample
from support.ptx.running import TORCH, bits_of, bits_type, numbers, run


class Row(NamedTuple):
    """An opcode, or lines of PTX from %a, %b, %c to %d; the operands' types, the result's, and what it should be."""

    code: str
    inputs: str
    output: str
    oracle: object

    @property
    def lines(self):
        if "%d" in self.code:
            return self.code
        operands = ", ".join(f"%{name}" for name in "abc"[: len(self.inputs.split())])
        return f"{self.code} %d, {operands};"

    def __str__(self):
        return " ".join(self.code.split())


def rows(code, types, inputs, output, oracle):
    """A row for every type, {t} in the strings. An oracle whose name ends in _of is made for the type's bits."""
    made = []
    for t in types.split():
        bits = int(t[1:]) if t[0] in "us" else None
        names = {"t": t, "bits": bits, "twice": t[0] + str(2 * bits) if bits else None}
        chosen = oracle(bits) if getattr(oracle, "__name__", "").endswith("_of") else oracle
        made.append(Row(*(text.format(**names) for text in (code, inputs, output)), chosen))
    return made


def elementwise(function):
    """Applies a function that Python's operators lack to arrays of integers."""
    return np.frompyfunc(function, function.__code__.co_argcount, 1)


def check(row):
    """Runs a row on every pair of special values and on ordinary ones, and compares bits; a NaN is as good as another."""
    kinds = row.inputs.split()
    scalars = [kind.replace("x2", "") for kind in kinds]
    bits = [sample(kind, place) for place, kind in enumerate(scalars)]
    element = row.output.removesuffix("x2")
    inputs = [b.view(f"u{2 * b.itemsize}") if "x2" in kind else b for b, kind in zip(bits, kinds)]
    out = bits_type(element)
    given = run(row.lines, inputs, f"u{2 * out.itemsize}" if row.output.endswith("x2") else out).view(out)
    with np.errstate(all="ignore"):
        wanted = row.oracle(*[as_operands(b, kind.strip("~").partition("<")[0]) for b, kind in zip(bits, scalars)])
    if element in FORMATS or element in TORCH:
        wanted = bits_of(np.asarray(wanted), element)
        nan = np.isnan(numbers(given, element)) & np.isnan(numbers(wanted, element))
    else:
        wrapped = [int(w) & (1 << 8 * out.itemsize) - 1 for w in wanted]
        wanted, nan = np.array(wrapped, out), np.zeros(len(given), bool)
    wrong = np.flatnonzero((given != wanted) & ~nan)
    assert not len(wrong), [
        f"{row}: of {[hex(b[i]) for b in bits]} {given[i]:#x}, not {wanted[i]:#x}" for i in wrong[:5]
    ]
