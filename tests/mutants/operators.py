"""Slips in the operators of ``torch.library``, and in the choice of who calls them."""

from mutants.slip import Slip

OPERATORS, ELEMENTWISE, BACKEND = "sigtorch/_operators.py", "sigtorch/_elementwise.py", "sigtorch/_backend.py"
CHECKED, COMPILED, OBSERVED = (f"tests/ops/test_{name}.py" for name in ("operators", "compiled", "observed"))

SLIPS = [
    Slip(
        OPERATORS,
        "return empty_like(lead, value.shape, value.dtype).copy_(value)",
        "return value",
        f"{CHECKED} -k transposed",
        "strides that are not those of the fake tensors",
    ),
    Slip(
        OPERATORS,
        "with torch.no_grad(), torch._C._SetExcludeDispatchKeyGuard",
        "with torch._C._SetExcludeDispatchKeyGuard",
        f"{CHECKED} -k 'gate-contiguous'",
        "a formula differentiated under the caller's grad mode",
    ),
    Slip(
        ELEMENTWISE,
        "return *grads, *function.rest_grads(grad, *ctx.rest)",
        "return *grads, *[None] * len(ctx.rest)",
        f"{CHECKED} -k called_as",
        "a residual without a gradient",
    ),
    Slip(
        "sigtorch/ops/gates/sigmoid.py",
        '_checks.check_halves("torch.ops.sigtorch.glu", "input", x, dim)',
        "pass",
        f"{CHECKED} -k mistake",
        "an operator of an odd size has another error, or none",
    ),
    Slip(
        "sigtorch/ops/losses/operators.py",
        "factors = factors._replace(normalizer=count)",
        "pass",
        f"{COMPILED} -k 'options_of_losses and ignoring'",
        "backward divides by the count of all elements",
    ),
    Slip(
        "sigtorch/ops/losses/operators.py",
        "if torch.is_grad_enabled() or any(needs):",
        "if torch.is_grad_enabled():",
        f"{CHECKED} -k called_as",
        "a target or weight without a gradient",
    ),
    Slip(
        "sigtorch/ops/chunked_losses/operators.py",
        "            if needed and name not in found:\n",
        "            if False:\n",
        f"{CHECKED} -k asked_for",
        "a gradient that was not asked for is silently none",
    ),
    Slip(
        "sigtorch/ops/chunked_losses/linear.py",
        "waits=True",
        "waits=False",
        f"{COMPILED} -k tag",
        "a CUDA graph records what waits for the device",
    ),
    Slip(
        BACKEND,
        'return "operator" if observed() and runner != "aten" else runner',
        "return runner",
        OBSERVED,
        "a dispatch mode does not see the operator",
    ),
    Slip(
        "sigtorch/_autograd.py",
        'return "operator" if _eligible.observed() else runner',
        "return runner",
        OBSERVED,
        "a dispatch mode does not see the operator of backward",
    ),
    Slip(
        "sigtorch/_eligible.py",
        "return torch.compiler._is_exporting_flag or peek_interpreter_stack() is not None",
        "return torch.compiler._is_exporting_flag",
        f"{COMPILED} -k transformed",
        "transformed code takes an operator",
    ),
    Slip(
        "sigtorch/_eligible.py",
        "return torch.compiler._is_exporting_flag or peek_interpreter_stack() is not None",
        "return peek_interpreter_stack() is not None",
        f"{COMPILED} -k exported",
        "exported code takes an operator",
    ),
]
