"""Slips in SwiGLU's options, its linear layer, and what the plug-in finds of them."""

from mutants.slip import Slip

MATH, GATES, TILE = "kernels/_math.py", "kernels/gates.py", "kernels/_tile.py"
SILU, LINEAR = "sigtorch/ops/gates/silu.py", "sigtorch/ops/gates/linear.py"
CLAMPED, PRODUCTS = "sigtorch/plugin/clamped.py", "sigtorch/plugin/products.py"
ORACLE = "tests/kernels/test_kernels.py -k 'oracle and swiglu'"
OPTIONS, LAYER, PLUGIN = (
    f"tests/{name}.py" for name in ("ops/test_swiglu", "ops/test_swiglu_linear", "plugin/test_clamped")
)

SLIPS = [
    Slip(MATH, "fma(alpha * rest, activated, s)", "fma(rest, activated, s)", ORACLE, "a gradient without alpha"),
    Slip(
        MATH,
        "tl.where(gate <= limit, grad_gate, 0.0), tl.where(tl.abs(up) <= limit, grad_up, 0.0), grad_weight, product",
        "tl.where(gate <= limit, grad_gate, 0.0), tl.where(up <= limit, grad_up, 0.0), grad_weight, product",
        f"{OPTIONS} -k limit",
        "an up below the negative limit gets a gradient, before PyTorch 2.14",
        argued="only releases before 2.14 take this function",
    ),
    Slip(
        MATH,
        "tl.where(gate < limit, grad_gate, 0.0), tl.where(tl.abs(up) < limit, grad_up, 0.0), grad_weight, product",
        "tl.where(gate < limit, grad_gate, 0.0), tl.where(up < limit, grad_up, 0.0), grad_weight, product",
        f"{OPTIONS} -k limit",
        "an up below the negative limit gets a gradient",
    ),
    Slip(
        MATH,
        "near_gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)",
        "near_gate = tl.minimum(gate, limit)",
        f"{OPTIONS} -k limit",
        "a NaN becomes the limit",
    ),
    Slip(
        MATH, "low, high = pair << 16, pair & -65536", "high, low = pair << 16, pair & -65536", ORACLE, "pairs swapped"
    ),
    Slip(
        MATH,
        "return low | (high << 32)",
        "return high | (low << 32)",
        ORACLE,
        "pairs of float32 swapped where they are written",
    ),
    Slip(
        TILE,
        "if ptr.dtype.element_ty == FORM.pair:  # the first output, of the first two results",
        "if False:",
        ORACLE,
        "one gradient written where there are two",
    ),
    Slip(
        GATES,
        "results = (0, 2) if interleaved else (0, 1, 2)",
        "results = (0, 1) if interleaved else (0, 1, 2)",
        ORACLE,
        "up's gradient summed in place of the weight's",
    ),
    Slip(
        GATES,
        "return inner == 1 and even and x.data_ptr() % (2 * x.element_size()) == 0",
        "return inner == 1",
        f"{OPTIONS} -k one_number",
        "pairs from an odd element on",
    ),
    Slip(
        GATES,
        "or (weight is not None and (grad.shape[-1] < 2 or not grad.numel()))",
        "",
        f"{OPTIONS} -k half_gates",
        "sums along rows of one element",
    ),
    Slip(
        SILU,
        "return (product * weight).to(product.dtype)",
        "return product * weight",
        f"{OPTIONS} -k wider",
        "a result of the weight's dtype",
    ),
    Slip(SILU, "if not limit >= 0:", "if limit < 0:", f"{OPTIONS} -k mistake", "a limit of NaN is taken"),
    Slip(
        SILU,
        "weight.shape != (*rows, 1):",
        "weight.shape[-1] != 1:",
        f"{OPTIONS} -k mistake",
        "a weight of one row for all",
    ),
    Slip(
        LINEAR,
        "        return F.linear(product.to(weight.dtype), weight, bias)",
        "        ctx.product = product\n        return F.linear(product.to(weight.dtype), weight, bias)",
        f"{LAYER} -k several_layers",
        "the product is kept",
    ),
    Slip(
        LINEAR,
        "runner = backward_runner(ctx.runner, grad, *tensors)",
        "runner = ctx.runner",
        f"{LAYER} -k gradcheck",
        "a pass runs where backward is differentiated",
    ),
    Slip(
        LINEAR,
        "and type(down) is torch.nn.Linear and not _has_hooks(down)",
        "and type(down) is torch.nn.Linear",
        f"{LAYER} -k watched",
        "hooks of a projection are passed over",
    ),
    Slip(
        "kernels/gates.py",
        "warps=LERP_WARPS, results=(0, 1, 3))",
        "warps=LERP_WARPS, results=(0, 1, 2))",
        f"{LAYER} -k oracle",
        "a weight's gradient from a product times the incoming gradient",
    ),
    Slip(
        CLAMPED,
        "if gate.low is not None or not is_symmetric or",
        "if gate.low is not None or",
        f"{PLUGIN} -k what_it_is_not",
        "an up with limits of two sizes",
    ),
    Slip(
        CLAMPED,
        "if is_read and not (node in allowed and node in inside):",
        "if False:",
        f"{PLUGIN} -k what_it_is_not",
        "what is read later is not clamped",
    ),
    Slip(
        CLAMPED,
        "if any(finder.changes.affect(node, made[-1]) for node in read):",
        "if False:",
        f"{PLUGIN} -k changes_later",
        "a gate that changes before backward",
    ),
    Slip(
        PRODUCTS,
        "if torch.compiler.is_compiling() or fusable_activation(function) != activation:",
        "if torch.compiler.is_compiling():",
        f"{PLUGIN} -k replaced",
        "another activation in place of the silu",
    ),
    Slip(
        PRODUCTS,
        "if not are_numbers or not limit >= 0 or",
        "if not are_numbers or",
        f"{PLUGIN} -k no_number",
        "a negative limit",
    ),
]
