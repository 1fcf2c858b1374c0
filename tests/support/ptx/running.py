"""Runs a few lines of PTX on arrays, an element per thread, for the engine's own tests."""

import functools
import os
import subprocess
import tempfile

import numpy as np
import torch
from without_gpu.machine_code import TOOLS
from without_gpu.ptx.device import Device

THREADS = 128  # of a CTA
TARGET = "sm_100a"
NUMBERS = {
    **{f"u{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
TORCH = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_KERNEL = """
.version 8.7
.target {target}
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
{prelude}
.visible .entry run({parameters})
.reqntid {threads}
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<16>, %thread, %index;
    .reg .b64 %rd<8>, %array<4>, %at;
    mov.u32 %thread, %tid.x;
    mov.u32 %index, %ctaid.x;
    mad.lo.u32 %index, %index, {threads}, %thread;
    {pointers}
    {lines}
    ret;
}}
"""
_LOAD = """
    .reg .b{bits} %{name};
    mad.wide.u32 %at, %index, {width}, %array{i};
    ld.global.b{bits} %{name}, [%at];
"""
_STORE = """
    mad.wide.u32 %at, %index, {width}, %array{i};
    st.global.b{bits} [%at], %d;
"""


def execute(
    lines, arrays, threads=THREADS, ctas=1, shared_bytes=0, prelude="", device=None, assembled=True, target=TARGET
):
    """Run lines of PTX on arrays whose addresses are in %array0, %array1 and so on; returns the device.

    %thread is the number in the CTA, %index that in the grid. ptxas has to assemble the lines, too, unless not
    ``assembled``.
    """
    names = [f"p{i}" for i in range(len(arrays))]
    text = _KERNEL.format(
        target=target,
        prelude=prelude,
        parameters=", ".join(f".param .u64 {name}" for name in names),
        threads=threads,
        pointers="\n    ".join(f"ld.param.u64 %array{i}, [{name}];" for i, name in enumerate(names)),
        lines=lines,
    )
    if assembled:
        assemble(text, target)
    tensors = [torch.from_numpy(array) for array in arrays]
    device = device or Device()
    device.execute(text, [tensor.data_ptr() for tensor in tensors], tensors, (ctas, 1, 1), shared_bytes)
    return device


@functools.cache
def assemble(text, target=TARGET):
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        command = [TOOLS / "ptxas", f"-arch={target}", file.name, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(lines, inputs, out, **options):
    """Returns what the lines leave in %d, as an array of dtype ``out``, with an element of each input in %a, %b, %c."""
    inputs = [np.ascontiguousarray(array) for array in inputs]
    result = np.zeros(len(inputs[0]), out)
    arrays = [*inputs, result]
    widths = [array.itemsize for array in arrays]
    loads = [
        _LOAD.format(name=name, i=i, width=widths[i], bits=8 * widths[i]) for i, name in enumerate("abc"[: len(inputs)])
    ]
    store = _STORE.format(i=len(inputs), width=widths[-1], bits=8 * widths[-1])
    lines = "".join([*loads, f".reg .b{8 * widths[-1]} %d;", lines, store])
    execute(lines, arrays, ctas=len(result) // options.get("threads", THREADS), **options)
    return result


def numbers(bits, name):
    """Bits as numbers of a PTX type; those that NumPy lacks as float32."""
    if name in TORCH:
        return torch.from_numpy(bits).view(TORCH[name]).float().numpy()
    return bits.view(NUMBERS[name])


def bits_of(numbers, name):
    """The opposite; the numbers are ones of the type."""
    if name in TORCH:
        return (
            torch.from_numpy(numbers.astype(np.float32)).to(TORCH[name]).view(torch.uint8).numpy().view(bits_type(name))
        )
    return np.ascontiguousarray(numbers.astype(NUMBERS[name])).view(bits_type(name))


def bits_type(name):
    return np.dtype(f"u{TORCH[name].itemsize if name in TORCH else NUMBERS[name].itemsize}")
