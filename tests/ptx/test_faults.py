"""Each fault is raised, with a message that says what, and where."""

import re

import numpy as np
import pytest
import torch
from support.ptx.running import run
from without_gpu.ptx import machine
from without_gpu.ptx.device import Device
from without_gpu.ptx.driver import Gpu
from without_gpu.ptx.fault import Fault

INDEX = np.arange(128, dtype=np.uint32)
SHARED = "mov.u32 %r0, global_smem;"

# Lines, which ptxas assembles, and the message
ACCESSES = {
    "past the end": (
        "mad.wide.u32 %rd0, %thread, 4, %array0; ld.global.b32 %d, [%rd0+4];",
        "access outside of every tensor passed: [512, 516) relative to the nearest tensor of 512 bytes; "
        "program (0, 0, 0), thread 127",
    ),
    "before the start": (
        "mad.wide.u32 %rd0, %thread, 4, %array0; ld.global.b32 %d, [%rd0+-4];",
        "access outside of every tensor passed: [-4, 0) relative to the nearest tensor of 512 bytes",
    ),
    "wider than what is left": (
        "ld.global.v2.b64 {%rd1, %rd2}, [%array0+512];",
        "access outside of every tensor passed: [512, 528)",
    ),
    "a store past the end": ("st.global.b32 [%array0+512], 0;", "access outside of every tensor passed: [512, 516)"),
    "an atomic past the end": (
        "red.global.add.u32 [%array0+512], 1;",
        "access outside of every tensor passed: [512, 516)",
    ),
    "misaligned": (
        "ld.global.b32 %d, [%array0+2];",
        "misaligned access: width 4 at offset 2; program (0, 0, 0), thread 0 (run, at 'ld.global.b32 %d, [%array0+2]')",
    ),
    "a misaligned vector": (
        "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%array0+8];",
        "misaligned access: width 16 at offset 8",
    ),
    "shared, not written": (
        f"{SHARED} st.shared.b32 [%r0], 1; ld.shared.b64 %rd0, [%r0];",
        "shared memory read before written: byte 0",
    ),
    "shared, not written for an atomic": (
        f"{SHARED} red.shared.add.u32 [%r0+8], 1;",
        "shared memory read before written: byte 8",
    ),
    "shared, not written for a matrix": (
        f"{SHARED} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r1}}, [%r0];",
        "shared memory read before written: byte 0",
    ),
    "past shared memory": (
        f"{SHARED} st.shared.b32 [%r0+64], 1;",
        "access outside of shared memory: [64, 68) of 64 bytes",
    ),
    "past local memory": (
        ".local .align 16 .b8 depot[16]; mov.b64 %rd0, depot; st.local.b32 [%rd0+16], 1;",
        "access outside of local memory: [16, 20) of 16 bytes",
    ),
}
NOT_MODELLED = {
    "an instruction": ("dp4a.u32.u32 %d, %a, %a, %a;", "instruction not modelled: dp4a.u32.u32 %d, %a, %a, %a"),
    "a modifier": ("ex2.approx.ftz.f32 %r1, %a; sqrt.rz.f32 %d, %a;", "instruction not modelled: sqrt.rz.f32 %d, %a"),
    "a rounding": ("fma.rm.f64 %rd0, %rd1, %rd1, %rd1;", "rounding not modelled: rm"),
    "a named barrier": ("bar.sync 1, 64;", "named barrier not modelled"),
    "an atomic": ("mov.u32 %r1, 0; red.global.min.noftz.v2.f16x2 [%array0], {%r1, %r1};", "atomic not modelled"),
    "part of a copy": (
        f"{SHARED} cp.async.ca.shared.global [%r0], [%array0], 16, 8;",
        "part of a cp.async not modelled",
    ),
    "part of a warp": (
        "setp.lt.u32 %p0, %a, 16; @%p0 bra $end; redux.sync.add.u32 %d, %a, 0xFFFF0000; $end:",
        "a warp's threads are parted at an instruction they must do together",
    ),
    "a vote of some": ("setp.eq.u32 %p0, %a, 0; vote.sync.any.pred %p1, %p0, 0xFFFF;", "part of a warp not modelled"),
    "an absent lane": (
        "setp.lt.u32 %p0, %a, 16; @%p0 bra $end; shfl.sync.idx.b32 %d, %a, 0, 31, -1; $end:",
        "shfl from a thread that is not there",
    ),
    "a carry of nothing": ("addc.u32 %d, %a, %a;", "carry not modelled"),
    "a saturating sum": ("add.sat.s32 %d, %a, %a;", "form not modelled"),
    "a field past the end": ("bfi.b32 %d, %a, %a, 60, 10;", "form not modelled"),
    "a register never set": ("@%p5 mov.u32 %r9, 1; add.u32 %d, %r9, %r7; mov.u32 %r7, 1;", "read before written"),
    "a conversion": ("cvt.rz.f32.u64 %d, %rd0; mov.b64 %rd0, 0;", "read before written: %rd0"),
    "a long conversion": ("mov.b64 %rd0, 1; cvt.rz.f32.u64 %d, %rd0;", "conversion not modelled"),
}


@pytest.mark.parametrize("name", ACCESSES)
def test_bad_accesses(name):
    lines, message = ACCESSES[name]
    with pytest.raises(Fault, match=re.escape(message)):
        run(lines, [INDEX], np.uint32, shared_bytes=64)


@pytest.mark.parametrize("name", NOT_MODELLED)
def test_what_is_not_modelled(name):
    lines, message = NOT_MODELLED[name]
    with pytest.raises(Fault, match=re.escape(message)):
        run(lines, [INDEX], np.uint32, shared_bytes=64)


BODY = ".reg .pred %p<3>; .reg .b32 %r<3>; .reg .b64 %rd<3>;"


def kernel(lines, parameters=""):
    return f".visible .entry run({parameters}) .reqntid 32 {{ {BODY} {lines} ret; }}"


# Texts that ptxas would not take, and the message
TEXTS = {
    "no kernel": (".version 8.7", "no kernel in this text"),
    "not PTX": (kernel("?;"), "cannot parse: ?;"),
    "a guard alone": (kernel("@%p0;"), "cannot parse: @%p0"),
    "a section": (kernel(".section .debug"), "cannot parse: .section"),
    "registers": (kernel(".reg .b128 %x;"), "registers not modelled: .reg .b128 %x;"),
    "a label twice": (kernel("$a: $a:"), "label twice: $a"),
    "no such instruction": (
        kernel("tcgen05.wait::ld.sync.aligned;"),
        "instruction not modelled: tcgen05.wait::ld.sync.aligned",
    ),
    "no such modifier": (kernel("add.sideways.s32 %r0, 1, 1;"), "instruction not modelled: add.sideways.s32"),
    "a call": (kernel("call.uni (%r0), printf, (%r1);"), "a call of a device function is not modelled"),
    "too short a vector": (kernel("ld.global.v4.b32 {%r0, %r1}, [%rd0];"), "instruction not modelled: ld.global.v4"),
    "an address": (kernel("ld.global.b32 %r0, %r1;"), "address not understood: %r1"),
    "a special register": (kernel("mov.u32 %r0, %clock;"), "register read before written: %clock"),
    "a predicate's number": (kernel("setp.eq.u32 %p0, 1, 1; mov.u32 %r0, %p0;"), "predicate as a number: %p0"),
    "a number's predicate": (kernel("mov.u32 %p0, 1;"), "result of another kind than register %p0"),
    "an unset predicate": (kernel("@%p1 mov.u32 %r0, 1; setp.eq.u32 %p1, 1, 1;"), "predicate read before written: %p1"),
    "a number": (kernel("mov.u32 %r0, 0b1;"), "operand not understood: 0b1"),
    "a float": (kernel("mov.b64 %rd0, 0f3F800000;"), "literal of another width: 0f3F800000"),
    "a parameter": (kernel("ld.param.u64 %rd0, [other];"), "parameter not modelled"),
    "arguments": (kernel("", ".param .u64 a, .param .u64 b, .param .u64 c"), "0 arguments for 3 parameters"),
    "a long loop": (kernel("$a: bra $a;"), "too many steps (run)"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_bad_texts(name, monkeypatch):
    text, message = TEXTS[name]
    monkeypatch.setattr(machine, "MAX_STEPS", 100)
    with pytest.raises(Fault, match=re.escape(message)):
        Device().execute(text, [], [])


def test_scratch_pointers_may_be_left_out():
    """Triton adds up to two parameters, which kernels without scratch memory do not read."""
    Device().execute(kernel("ld.param.u64 %rd0, [a];", ".param .u64 a, .param .u64 b"), [], [])


@pytest.mark.parametrize("grid", [(2**31, 1, 1), (1, 65536, 1), (1, 1, -1)])
def test_bad_grids(grid):
    with pytest.raises(Fault, match=re.escape(f"grid {grid} is outside of what CUDA takes")):
        Device().execute(kernel(""), [], [], grid)


def test_tensors_elsewhere():
    with pytest.raises(Fault, match="tensor on meta"):
        Device().execute(kernel(""), [], [torch.empty(1, device="meta")])


def test_architectures():
    with pytest.raises(Fault, match="architecture not known: 70; there are 80, 86, 89, 90, 100, 103, 120"):
        Gpu(70)


def test_between_two_tensors_is_outside():
    """Both are in one array of the engine."""
    memory = np.zeros(64, np.uint32)
    for offset, inside in ((0, True), (60, True), (64, False), (188, False), (192, True)):
        device = Device()
        tensors = [torch.from_numpy(memory[:16]), torch.from_numpy(memory[48:])]
        text = kernel(f"mov.b64 %rd0, {memory.ctypes.data + offset}; st.global.b32 [%rd0], 1;")
        if inside:
            device.execute(text, [], tensors)
        else:
            with pytest.raises(Fault, match="access outside of every tensor passed"):
                device.execute(text, [], tensors)
    assert np.flatnonzero(memory).tolist() == [0, 15, 48]
