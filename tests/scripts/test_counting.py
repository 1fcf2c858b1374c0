"""Counts in machine code: the way of full blocks through the text, and kernels as compiled for a launch."""

import json

import pytest
from support.scripting import run
from without_gpu import machine_code

SASS = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
        /*0020*/               @P1 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/               @P1 STG.E.128 desc[UR4][R2.64], R4 ;
        /*0040*/                   EXIT ;
.L_x_0:
        /*0050*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/                   FADD R4, R4, R4 ;
        /*0080*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0090*/                   EXIT ;
.L_x_1:
        /*00a0*/                   BRA `(.L_x_1);
        /*00b0*/                   NOP;
"""


def test_the_way_of_full_blocks_is_the_unmasked_one():
    way = machine_code._full_blocks(machine_code._basic_blocks(SASS))
    assert way == ["S2R", "@!P0 BRA", "LDG.E.128", "MUFU.EX2", "FADD", "STG.E.U16", "EXIT"]
    assert [machine_code._access(op) for op in way if "E." in op] == ["load 128", "store 16"]


def test_uniform_branches_and_guarded_exits_go_both_ways():
    uniform = SASS.replace("@!P0 BRA `", "     BRA.U !UP0, `")
    assert "MUFU.EX2" in machine_code._full_blocks(machine_code._basic_blocks(uniform))
    fallen_through = machine_code._full_blocks(machine_code._basic_blocks(uniform.replace("@P1", "   ")))
    assert fallen_through == ["S2R", "BRA.U", "LDG.E.128", "STG.E.128", "EXIT"]
    guarded = SASS.replace("@!P0 BRA `(.L_x_0)", "@!P0 EXIT").replace("@P1 LDG", "    LDG")
    way = machine_code._full_blocks(machine_code._basic_blocks(guarded))
    assert way == ["S2R", "@!P0 EXIT", "LDG.E.128", "@P1 STG.E.128", "EXIT"]


KERNELS = """
import json, sys
import torch, triton, triton.language as tl
from without_gpu.machine_code import compiled, count

@triton.jit
def exponential(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if (tl.program_id(0) + 1) * BLOCK <= n:
        tl.store(y_ptr + at, tl.exp2(tl.load(x_ptr + at)))
    else:
        tl.store(y_ptr + at, tl.exp2(tl.load(x_ptr + at, mask=at < n)), mask=at < n)

@triton.jit
def total(x_ptr, y_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(y_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, BLOCK))))

x, y, n = torch.empty(10001), torch.full((10001,), 7.0), 10001
options = {"enable_fp_fusion": True}  # without it Triton 3.9 warns
found = {}
for arch in (80, 100):
    with compiled(arch) as launches:
        exponential[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, n, BLOCK=1024, **options)
        exponential[(10,)](x[1:], y[1:], n - 1, BLOCK=1024, **options)
        total[(1,)](x, y, 1024, **options)
    found[arch] = [{**vars(count(launch)), "threads": launch.threads} for launch in launches]
assert (y == 7).all()  # nothing ran
print(json.dumps(found))
"""


def test_launches_are_compiled_as_called_and_counted(tmp_path):
    script = tmp_path / "kernels.py"
    script.write_text(KERNELS)
    result = run(script)
    assert result.returncode == 0, result.stderr
    for aligned, misaligned, atomic in json.loads(result.stdout).values():
        assert aligned["name"] == "exponential"
        assert aligned["threads"] == 10 * 128
        assert aligned["accesses"] == {"load 128": 2, "store 128": 2}
        assert aligned["mufu"] == 8  # 1,024 elements on 128 threads
        assert misaligned["accesses"] == {"load 32": 8, "store 32": 8}
        assert (aligned["atomics"], atomic["atomics"]) == (0, 1)
        assert (aligned["stack"], aligned["spills"]) == (0, 0)
        assert 8 < aligned["registers"] < 128


def test_the_interpreter_has_no_machine_code(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), machine_code.compiled(90):
        pass
