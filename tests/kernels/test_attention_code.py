"""Bounds of the machine code of sigmoid attention, without a GPU: instructions a score, no spills, shared memory."""

from support.compiling import TRITON, architectures, printed

# Instructions a score at most on sm_90 in bfloat16, by head dimension: forward, gradient of queries, of keys and values.
BOUNDS = {64: (9.5, 13, 14), 128: (11.5, 14.5, 15.5)}
MUFU = 1.25  # an exponential for each score, and a reciprocal for four
SMALL = 99 * 2**10  # bytes of shared memory that every GPU gives a program
SCRIPT = """
import json, sys, torch
from sigtorch import sigmoid_attention
from sigtorch.kernels import attention
from support.compiling import compiled_for
from without_gpu.machine_code import busiest_loop, held
arch = int(sys.argv[1])
if arch != 90:
    attention.LARGE_TILES = attention.SMALL_TILES

found = []
for d in (64, 128):
    for causal in (False, True):
        tensors = [torch.randn(1, 2, 2048, d, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        tiles = [*attention.LARGE_TILES[d]]
        forward, backward = compiled_for(arch, lambda *t: sigmoid_attention(*t, is_causal=causal), tensors)
        for launch, tile in zip([*forward, *backward], tiles, strict=True):
            loop, share = busiest_loop(launch), tile.warps * 32 / (tile.queries * tile.keys)
            found.append({
                "d": d, "causal": causal, "each": len(loop) * share, "mufu": sum("MUFU" in op for op in loop) * share,
                "stack": held(launch).stack, "shared": launch.kernel.metadata.shared,
            })
json.dump(found, sys.stdout)
"""


@architectures({80: 80, 90: 90})
def test_a_score_takes_few_instructions(arch):
    found = printed(SCRIPT, str(arch))
    for i, kernel in enumerate(found):
        assert not kernel["stack"] or TRITON < (3, 8), kernel
        assert kernel["mufu"] == MUFU, kernel
        if arch == 90 and TRITON >= (3, 8) and not kernel["causal"]:
            assert kernel["each"] <= BOUNDS[kernel["d"]][i % 3], kernel
        assert arch == 90 or kernel["shared"] <= SMALL, kernel
