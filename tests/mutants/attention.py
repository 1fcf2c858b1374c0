"""Slips in sigmoid attention: sigtorch/ops/attention, kernels/attention.py, and the files beside it."""

from mutants.slip import Slip

FORMULA, TRACED = "tests/ops/test_attention.py", "tests/ops/test_attention_traced.py"
KERNELS, MISTAKES = "tests/kernels/test_attention.py", "tests/ops/test_attention_mistakes.py"

SLIPS = [
    Slip(
        "sigtorch/ops/attention/formula.py",
        "* p * _sigmoid(-z, torch.is_grad_enabled())",
        "* p * (1 - p)",
        f"{FORMULA} -k 'high'",
        "no gradient is left where a weight rounds to 1",
    ),
    Slip(
        "sigtorch/ops/attention/formula.py",
        "torch.where(is_positive, 1.0, e) / (1 + e)",
        "torch.where(is_positive, 1 / (1 + e), 1 - 1 / (1 + e))",
        f"{FORMULA} -k 'lost or low'",
        "a small weight is a difference of large numbers, in transforms",
    ),
    Slip(
        "sigtorch/ops/attention/formula.py",
        "seen = keys if self.seen_from is None else min(keys, max(0, last + self.seen_from))",
        "seen = keys if self.seen_from is None else min(keys, max(0, first + self.seen_from))",
        f"{FORMULA} -k 'causal or chunks'",
        "a chunk leaves out keys that its last query sees",
    ),
    Slip(
        "sigtorch/ops/attention/formula.py",
        "step = max(FEWEST_ROWS, CHUNK // max(batch * heads * keys, 1))",
        "step = max(FEWEST_ROWS, CHUNK)",
        f"{FORMULA} -k 'held'",
        "a chunk has every query",
    ),
    Slip(
        "sigtorch/ops/attention/formula.py",
        "return _with_settings(query, key, value, tensors, settings, key.shape[2] - query.shape[2])",
        "return _with_settings(query, key, value, tensors, settings, 0)",
        f"{FORMULA} -k 'packed'",
        "packed sequences are aligned from the top left",
    ),
    Slip(
        "sigtorch/ops/attention/formula.py",
        "number = -torch.log(cu_k.diff().clamp(min=1).to(q.dtype))[sequence].unsqueeze(-1)",
        "number = default_bias(settings.max_seqlen_k)",
        f"{TRACED} -k 'packed'",
        "in transforms, each sequence has the bias of the longest",
    ),
    Slip(
        "sigtorch/ops/attention/function.py",
        "if tensors.mask is not None or query.dtype not in KERNEL_DTYPES:",
        "if query.dtype not in KERNEL_DTYPES:",
        f"{TRACED} -k 'compiled and mask and triton'",
        "the kernels are given a mask, and do not read it",
    ),
    Slip(
        "sigtorch/ops/attention/checks.py",
        "(cu_seqlens[-1] == total) & (lengths >= 0).all()",
        "(cu_seqlens[-1] == total)",
        MISTAKES,
        "sequences that go back are taken",
    ),
    Slip(
        "kernels/_attention.py",
        "        t = tl.where(seen, t, 0.0)  # or a NaN that is hidden would spread over a group\n",
        "",
        f"{KERNELS} -k 'nan'",
        "a NaN that a query does not see spreads over its group",
        argued="the interpreter has no groups; compiled PTX notices",
    ),
    Slip(
        "kernels/_attention.py",
        "all_see = tl.minimum(keys, tl.maximum(0, m + offset + 1)) //",
        "all_see = tl.minimum(keys, tl.maximum(0, m + offset + BLOCK.queries)) //",
        f"{KERNELS} -k 'values and causal'",
        "the last tile that a block sees in part is not masked",
    ),
    Slip(
        "kernels/_attention.py",
        "grad_k * scale, n, os",
        "grad_k, n, os",
        f"{KERNELS} -k 'values and plain'",
        "the gradient of keys lacks the scale",
    ),
    Slip(
        "kernels/_attention.py",
        "head = key_head * FORM.group + number_in_group",
        "head = number_in_group * heads + key_head",
        f"{KERNELS} -k 'values and shared'",
        "a head of keys is that of other queries",
    ),
    Slip(
        "kernels/_attention_math.py",
        "return p, e * p",
        "return p, 1.0 - p",
        f"{KERNELS} -k 'high'",
        "no gradient is left where a weight rounds to 1",
    ),
    Slip(
        "kernels/attention.py",
        "LEAST_BIAS, LARGEST_BIAS = -12.0, 3.0",
        "LEAST_BIAS, LARGEST_BIAS = -99.0, 99.0",
        f"{KERNELS} -k 'high or low'",
        "a reciprocal of four serves where weights are too small or too large for it",
    ),
    Slip(
        "kernels/attention.py",
        "grad_bias = None if bias is None else parts.sum((0, 2))",
        "grad_bias = None if bias is None else parts[..., 0].sum(0)",
        f"{KERNELS} -k 'values and bias'",
        "the gradient of a bias is of the first block of queries",
    ),
]
