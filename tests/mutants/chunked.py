"""Slips in the losses over a product of matrices: sigtorch/ops/chunked_losses."""

from mutants.slip import Slip

FOLDER = "sigtorch/ops/chunked_losses"
PRODUCTS, FUNCTION, RING = (f"{FOLDER}/{name}.py" for name in ("products", "function", "ring"))
SIGLIP, LINEAR, CHECKS = (f"{FOLDER}/{name}.py" for name in ("siglip", "linear", "checks"))
VALUES = "tests/ops/test_chunked_losses.py -k '(every_gradient or frozen or many_samples or autocast) and auto'"
TWICE = "tests/ops/test_chunked_losses.py -k '(fresh or twice or inference) and auto or inference_mode'"
GROUPS = "tests/ops/test_chunked_losses_in_groups.py -k 'one_process or numbers or unequal or decide or copy'"
OF_SIGLIP = "tests/ops/test_siglip.py tests/ops/test_chunked_losses.py -k 'siglip and not triton'"
OF_LINEAR = "tests/ops/test_linear_bce.py"
MISTAKES = "tests/ops/test_siglip.py tests/ops/test_linear_bce.py -k 'mistake or malformed'"

SLIPS = [
    Slip(
        PRODUCTS,
        "by_rows = needs.rows or (needs.scale and not needs.cols)",
        "by_rows = needs.rows",
        VALUES,
        "no gradient for the scale where both sides are frozen",
    ),
    Slip(
        FUNCTION,
        "needs = Needs(*(recorded and t is not None and t.requires_grad for t in given))",
        "needs = Needs(*(t is not None and t.requires_grad for t in given))",
        "tests/ops/test_chunked_losses.py -k 'products or inference or memory'",
        "gradients that nobody records",
    ),
    Slip(
        FUNCTION,
        "if torch.is_grad_enabled():  # somebody",
        "if False:  # somebody",
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
        "chunk_size=self.chunk_size, reduction=self.reduction, pos_weight=self.pos_weight,",
        "chunk_size=self.chunk_size, pos_weight=self.pos_weight,",
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
        'return torch.tensor(number, dtype=torch.float64, device="cpu")',
        'return torch.tensor(number, device="cpu")',
        OF_SIGLIP,
        "a scale that is a number in float32",
    ),
    Slip(
        SIGLIP,
        "        memo[id(self.group)] = self.group\n",
        "",
        GROUPS,
        "a copy of a group",
    ),
    Slip(RING, "            grad += added\n", "            grad = added\n", GROUPS, "others' gradients alone"),
    Slip(RING, "rtol=0, atol=0, equal_nan=True)", "rtol=0, atol=0)", GROUPS, "a step to skip ends a training"),
]
