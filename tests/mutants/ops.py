"""Slips in the sigmoid and the gates: sigtorch/ops/sigmoid.py and gates/, and sigtorch/cpu."""

from mutants.slip import Slip

SIGMOID = "tests/ops/test_sigmoid.py"
OPS, GATES = "tests/ops/test_ops.py", "tests/ops/test_gates.py"
CASES = "tests/ops/test_ops.py tests/kernels/test_kernels.py -k 'oracle and (gate or lerp)'"

SLIPS = [
    Slip(
        "sigtorch/ops/sigmoid.py",
        "e = torch.exp(torch.where(is_positive, -wide, wide))",
        "e = torch.exp(-wide.abs())",
        f"{SIGMOID} -k at_zero",
        "no gradient at 0, where abs() has none",
    ),
    Slip(
        "sigtorch/ops/sigmoid.py",
        "wide = x.float() if x.dtype in HALF_DTYPES else x",
        "wide = x",
        f"{SIGMOID} -k keeps_its_gradient",
        "a formula that rounds to half types in between",
    ),
    Slip(
        "sigtorch/ops/sigmoid.py",
        "return torch.ops.aten.sigmoid_backward(grad, s), None",
        "return torch.ops.aten.sigmoid_backward(s, grad), None",
        f"{OPS} -k '(gradcheck or differentiably) and sigmoid'",
        "swapped arguments where backward is differentiated",
    ),
    Slip(
        "sigtorch/ops/sigmoid.py",
        "runner = backward_runner(ctx.runner, grad, s)",
        "runner = ctx.runner",
        f"{OPS} -k '(gradcheck or differentiably) and sigmoid'",
        "a pass runs where backward is differentiated",
    ),
    Slip(
        "sigtorch/ops/gates/linear.py",
        "gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj",
        "gate, up, down = self.up_proj(x), self.gate_proj(x), self.down_proj",
        GATES,
        "a layer's halves swapped",
    ),
]
