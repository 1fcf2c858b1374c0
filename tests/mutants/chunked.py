"""Slips in the losses over a product of matrices: sigtorch/ops/chunked_losses."""

from mutants.slip import Slip

FOLDER = "sigtorch/ops/chunked_losses"
PRODUCTS, FUNCTION, RING = (f"{FOLDER}/{name}.py" for name in ("products", "function", "ring"))
SIGLIP, LINEAR, CHECKS = (f"{FOLDER}/{name}.py" for name in ("siglip", "linear", "checks"))
VALUES = "tests/ops/test_chunked_losses.py -k '(every_gradient or frozen or many_samples or autocast) and auto'"
TWICE = "tests/ops/test_chunked_losses.py -k '(fresh or twice or inference) and auto or inference_mode'"
GROUPS = "tests/ops/test_chunked_losses_in_groups.py -k 'one_process or numbers or unequal or decide or copy'"
OF_SIGLIP = "tests/ops/test_siglip.py tests/ops/test_chunked_losses.py -k 'siglip and not triton'"
LABELS = "tests/ops/test_labels_in_groups.py"
ONE_NEEDS = f"{LABELS} tests/ops/test_chunked_losses_in_groups.py -k one_needs"
SHARES = f"{FOLDER}/shares.py"
OF_LINEAR = "tests/ops/test_linear_bce.py"
MISTAKES = "tests/ops/test_siglip.py tests/ops/test_linear_bce.py -k 'mistake or malformed'"

SLIPS = [
    Slip(
        PRODUCTS,
        "by_rows = needs.rows or (needs.scale and not needs.cols and self.steps.LEAVES_FACTOR)",
        "by_rows = needs.rows",
        VALUES,
        "no gradient for the scale where both sides are frozen",
    ),
    Slip(
        FUNCTION,
        "return Needs(*(recorded and t is not None and t.requires_grad for t in operands))",
        "return Needs(*(t is not None and t.requires_grad for t in operands))",
        "tests/ops/test_chunked_losses.py -k 'products or inference or memory'",
        "gradients computed under no_grad",
    ),
    Slip(
        FUNCTION,
        "if torch.is_grad_enabled():  # these",
        "if False:  # these",
        TWICE,
        "a second derivative of 0, without a word",
    ),
    Slip(
        FUNCTION,
        "    with unrounded(rows):\n",
        "    if True:\n",
        VALUES,
        "autocast rounds what chunks compute",
    ),
    Slip(
        LINEAR,
        "linear_bias=self.bias, pos_weight=self.pos_weight, reduction=self.reduction, chunk_size=self.chunk_size,",
        "linear_bias=self.bias, pos_weight=self.pos_weight, chunk_size=self.chunk_size,",
        OF_LINEAR,
        "a module that forgets its reduction",
    ),
    Slip(
        LINEAR,
        "values = torch.where(targets, values * pos_weight.to(work.wide), values)",
        "values = values * pos_weight.to(work.wide)",
        OF_LINEAR,
        "a formula that weighs negatives, too",
    ),
    Slip(
        SIGLIP,
        "return torch.full((), number, dtype=torch.float64, device=device)",
        "return torch.full((), number, device=device)",
        OF_SIGLIP,
        "a scale that is a number in float32",
    ),
    Slip(
        RING,
        "        memo[id(self.group)] = self.group\n",
        "",
        GROUPS,
        "a copy of a group",
    ),
    Slip(RING, "            grad += added\n", "            grad = added\n", GROUPS, "others' gradients alone"),
    Slip(RING, "rtol=0, atol=0, equal_nan=True)", "rtol=0, atol=0)", GROUPS, "a step to skip ends a training"),
    Slip(
        RING,
        "    mine = on_device_of(group, mine)\n",
        "",
        f"{LABELS} -k 'mistake or device'",
        "a process speaks from a device that the others do not",
        "gloo sends from the CPU, where shares are made; with NCCL the others wait",
    ),
    Slip(
        FUNCTION,
        "joint = torch.empty((), requires_grad=True) if joins else None",
        "joint = None",
        ONE_NEEDS,
        "a process that needs no gradient leaves the others alone in backward",
    ),
    Slip(
        FUNCTION,
        "        if not any_needs_grad:\n",
        "        if False:\n",
        ONE_NEEDS,
        "a loss of frozen processes that can be differentiated, to nothing",
    ),
    Slip(
        FUNCTION,
        "if has_units(t) and units is None:",
        "if False:",
        "tests/ops/test_chunked_precision.py",
        "small gradients of float16 are lost before a loss scale multiplies them",
    ),
    Slip(
        "sigtorch/cpu/chunked_losses.py",
        ".clamp_(min=-100) - 15,",
        ".clamp_(min=-100) - 40,",
        "tests/ops/test_chunked_precision.py",
        "float16 gradients beyond what it holds",
    ),
    Slip(
        CHECKS,
        "right=True).sub_(1)",
        "right=False).sub_(1)",
        "tests/ops/test_linear_bce.py -k many",
        "a sample's labels for the one before",
    ),
    Slip(
        CHECKS,
        "    if is_formed(csr, labels) & ~twice.any():",
        "    if is_formed(csr, labels):",
        MISTAKES,
        "a label that is named twice",
    ),
    Slip(
        CHECKS,
        "    if is_formed(csr, labels) & ~twice.any():",
        "    if bool(is_formed(csr, labels)) and not twice.any():",
        "TRITON_INTERPRET=0 tests/host/test_every_chunk.py -k once",
        "the host waits for the device twice",
    ),
    Slip(
        LINEAR,
        "matrix[sample, label.clamp(0, labels - 1)] = True",
        "matrix[sample, label] = True",
        "tests/ops/test_linear_bce.py -k many",
        "a label out of range writes elsewhere, or ends the process of a GPU",
    ),
    Slip(
        "sigtorch/cpu/chunked_losses.py",
        "sums_of_rows[0] += grad.sum(1,",
        "sums_of_rows[0] = grad.sum(1,",
        "tests/ops/test_chunked_losses.py -k 'many_samples and auto'",
        "the bias' gradient of a part's last chunk alone",
    ),
    Slip(
        PRODUCTS,
        "if of_part is not None and left == 0:",
        "if of_part is not None:",
        "tests/ops/test_chunked_losses.py -k 'many_samples and auto'",
        "the rows' gradient of the last columns alone",
    ),
    Slip(
        SHARES,
        "        if isinstance(error, Exception) and not self.has_told:",
        "        if False:",
        f"{LABELS} -k mistake",
        "the others wait for a process that has raised",
    ),
    Slip(
        SHARES,
        "torch.distributed.all_reduce(grad, group=self.group)",
        "pass",
        f"{LABELS} -k all_labels",
        "the inputs' gradient of this process's labels alone",
    ),
    Slip(
        SHARES,
        "apart = gathered(self.group, differs.double()).tolist()",
        "apart = [False]",
        f"{LABELS} -k mistake",
        "processes with other inputs add up what does not belong together",
    ),
    Slip(
        SHARES,
        "return LAST_BITS * max(torch.finfo(dtype).eps, torch.finfo(product).eps)",
        "return 0.01",
        "tests/ops/test_same_inputs.py",
        "other inputs pass as the same",
    ),
    Slip(
        SHARES,
        "return (finite[0] != finite[1]) | (finite[0] & ~near)",
        "return ~near",
        "tests/ops/test_same_inputs.py -k no_number",
        "a step to skip ends a training",
    ),
    Slip(
        SHARES,
        "        piece = piece.double()\n",
        "        weights = weights.to(piece.dtype)\n",
        "tests/ops/test_same_inputs.py",
        "half types overflow, and what is no number passes",
    ),
    Slip(
        LINEAR,
        "    divisor = samples * labels if shares.means else 1\n",
        "    divisor = work.divisor\n",
        f"{LABELS} -k all_labels",
        "the mean over the labels of one process",
    ),
]
