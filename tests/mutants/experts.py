"""Slips in the router: sigtorch/ops/experts and kernels/experts.py."""

from mutants.slip import Slip

EXPERTS, ROUTER = "tests/ops/test_experts.py", "tests/ops/test_sigmoid_router.py"
TRACED = "tests/ops/test_experts_traced.py"

SLIPS = [
    Slip(
        "kernels/experts.py",
        "tl.where(taken, grouped, LOWEST)",
        "tl.where(taken, grouped, 0)",
        f"{EXPERTS} -k 'other_groups'",
        "experts of other groups are worth 0, which is more than a negative worth",
    ),
    Slip(
        "kernels/experts.py",
        "tl.where(value == value, tl.where(bits < 0, bits ^ HIGHEST, bits), HIGHEST)",
        "tl.where(bits < 0, bits ^ HIGHEST, bits)",
        f"{EXPERTS} -k nan",
        "a NaN with a sign is the worst of all",
    ),
    Slip(
        "kernels/experts.py",
        "tl.where(value == 0.0, 0.0, value).to(INT, bitcast=True)",
        "value.to(INT, bitcast=True)",
        f"{EXPERTS} -k equal_experts",
        "-0 is worth less than 0",
    ),
    Slip(
        "kernels/experts.py",
        "key = tl.where(n == best, LOWEST, key)",
        'key = tl.where(n == best, _key(float("-inf") + 0.0 * key), key)',
        f"{EXPERTS} -k 'twice'",
        "a chosen expert is worth minus infinity, and is chosen again",
    ),
    Slip(
        "kernels/experts.py",
        "worth = best + second if FORM.experts > FORM.num_groups else best",
        "worth = best + second",
        f"{EXPERTS} -k 'groups_of_one or (oracle and groups)'",
        "the second best of one expert",
    ),
    Slip(
        "kernels/experts.py",
        "slope = score * rest * (grad - tl.sum(score * grad, 1, keep_dims=True))",
        "slope = score * rest * grad",
        f"{EXPERTS} -k oracle",
        "a gradient that forgets the sum of the weights",
    ),
    Slip(
        "sigtorch/ops/experts/topk.py",
        "groups = groups.sort(dim=-1).values",
        "groups = groups",
        f"{EXPERTS} -k equal_experts",
        "equal experts in the order of their groups, in the formula",
    ),
    Slip(
        "sigtorch/ops/experts/topk.py",
        "correction_bias = correction_bias.detach()",
        "pass",
        f"{EXPERTS} -k only_logits",
        "weights that require a gradient for the bias",
    ),
    Slip(
        "sigtorch/ops/experts/topk.py",
        "runner = backward_runner(ctx.runner, grad, logits)",
        "runner = ctx.runner",
        f"{EXPERTS} -k derivatives",
        "a pass runs where backward is differentiated",
    ),
    Slip(
        "sigtorch/ops/experts/router.py",
        "with torch.autocast(device, enabled=False):",
        "with torch.autocast(device):",
        f"{ROUTER} -k float32",
        "logits in a half type under autocast",
    ),
    Slip(
        "sigtorch/ops/experts/router.py",
        "(load.sum() - load * len(load)).sign()",
        "(load * len(load) - load.sum()).sign()",
        f"{ROUTER} -k even",
        "a bias that makes loads less even",
    ),
    Slip(
        "sigtorch/ops/experts/topk.py",
        "power < size:",
        "power <= size:",
        f"{EXPERTS} -k longest",
        "rows of 1,024 experts take the formula",
    ),
]
