"""Slips in the losses' formulas, in what runs them and what they refuse: sigtorch/ops/losses."""

from mutants.slip import Slip

LOSS, BCE, FOCAL, RUN, CHECKS = (f"sigtorch/ops/losses/{name}.py" for name in ("loss", "bce", "focal", "run", "checks"))
MISTAKES = "tests/ops/test_loss_mistakes.py"
MATCHES = "tests/ops/test_losses.py -k 'matches_float64 and auto'"
INFINITE = "tests/ops/test_losses.py -k 'infinite and not triton'"
IGNORED = "tests/ops/test_loss_masks.py -k '(anything or nothing_but) and not triton'"
MASKS = "tests/ops/test_loss_masks.py -k '(no_target or numbers_to_ignore or classes_may) and not triton'"
CONTRACTS = "tests/ops/test_loss_contracts.py -k 'not triton and not compiles and not gradcheck'"

ONE_PASS = "tests/ops/test_one_pass.py"
GRADIENT = "sigtorch/ops/losses/gradient.py"

DETECTION = "tests/ops/test_detection_losses.py -k 'not triton'"
QUALITY, VARIFOCAL, ASYMMETRIC = (
    f"sigtorch/ops/losses/{name}.py" for name in ("quality_focal", "varifocal", "asymmetric")
)

DICE = "sigtorch/ops/losses/dice.py"
DICE_TESTS = "tests/ops/test_dice.py -k"

SLIPS = [
    Slip(
        DICE,
        "torch.where(x >= 0, -x, x)",
        "-x.abs()",
        f"{DICE_TESTS} 'saturated and auto'",
        "no gradient of a logit that is 0",
    ),
    Slip(
        DICE,
        "(cross_entropies / count)",
        "cross_entropies",
        f"{DICE_TESTS} 'reductions and auto'",
        "the sum of the cross-entropy in place of its mean",
    ),
    Slip(
        DICE,
        "apart / (apart + 2 * overlap + self.smooth)",
        "(1 - (2 * overlap + self.smooth) / (apart + 2 * overlap + self.smooth))",
        f"{DICE_TESTS} 'small_loss and auto'",
        "a small loss loses its digits",
    ),
    Slip(
        "kernels/losses.py",
        "loss.bce_weight * apart.numel() / x.numel()",
        "loss.bce_weight / x.numel()",
        f"{DICE_TESTS} 'reductions and triton'",
        "the gradient of a cross-entropy by the mean over all rows",
    ),
    Slip(
        QUALITY,
        "torch.where(is_there, 0, torch.where(is_there, 1, distance) ** self.beta)",
        "distance**self.beta",
        DETECTION,
        "an infinite slope where a target is met",
    ),
    Slip(VARIFOCAL, "aten_sigmoid(x.detach())", "aten_sigmoid(x)", DETECTION, "a weight with a gradient"),
    Slip(
        ASYMMETRIC,
        "torch.where(near > 0, (1 - self.clip) - rest, shifted - self.clip)",
        "(shifted - self.clip)",
        DETECTION,
        "a slope of s that cancels",
    ),
    Slip(ASYMMETRIC, "clamp(max=0.75)", "clamp(max=0.5)", DETECTION, "half a slope where a tie is clamped"),
    Slip(
        ASYMMETRIC,
        "    if 0 < clip < TINY:\n",
        "    if clip < 0:\n",
        MISTAKES,
        "a clip that float32 does not hold",
    ),
    Slip(
        CHECKS,
        "not _is_exponent(value) or not value < below",
        "not _is_exponent(value)",
        MISTAKES,
        "a clip of 1",
    ),
    Slip(
        GRADIENT,
        "vars(gradient).pop(UNSEEN, False)  # of two threads, one",
        "vars(gradient).get(UNSEEN, False)",
        f"{ONE_PASS} -k twice",
        "a second pass hands out what the first one's caller has changed",
    ),
    Slip(
        GRADIENT,
        "gradient = gradient.data  # with",
        "gradient = gradient  # with",
        f"{ONE_PASS} -k twice",
        "a caller's write to a gradient forbids a second pass",
    ),
    Slip(
        GRADIENT,
        " and unseen_by_hooks()",
        "",
        f"{ONE_PASS} -k hook_keeps",
        "what a hook keeps is multiplied in place",
    ),
    Slip(
        GRADIENT,
        " and x.dtype != torch.float16",
        "",
        "tests/ops/test_losses.py -k 'matches_float64 and triton'",
        "small gradients of float16 lost before they are multiplied",
    ),
    Slip(
        GRADIENT,
        " and torch.is_grad_enabled()\n",
        "\n",
        f"{ONE_PASS} -k without_gradients",
        "a gradient is written where none is wanted",
    ),
    Slip(
        LOSS,
        "        target = target.masked_fill(ignored, 0)\n",
        "",
        "tests/ops/test_loss_masks_transformed.py -k not_looked_at",
        "an ignored target is computed with",
    ),
    Slip(
        BCE,
        'reduction = self.reduction if ignored is None else "none"',
        "reduction = self.reduction",
        MASKS,
        "ignored elements counted in a mean",
    ),
    Slip(
        LOSS,
        "return t if target.dtype != torch.uint8 or checks.can_look_at(target) else torch.where(target > 1, torch.nan, t)",
        "return t",
        "tests/ops/test_loss_contracts.py -k unchecked_masks",
        "a mask of 255 taken for a share",
    ),
    Slip(
        BCE,
        "rest * (1 - smoothing) + smoothing / 2",
        "rest * (1 - smoothing)",
        "tests/ops/test_loss_contracts.py -k learnt",
        "negatives are smoothed to less than 1",
    ),
    Slip(
        FOCAL,
        "near = x.clamp(-FAR, FAR)  #",
        "near = x  #",
        "tests/ops/test_losses.py -k has_a_slope",
        "0 times infinity in a focal gradient",
    ),
    Slip(
        LOSS,
        "is_class = (index >= 0) & (index < classes) & ~is_background",
        "is_class = (index >= 0) & (index < classes)",
        "tests/ops/test_losses.py tests/ops/test_loss_contracts.py -k '(flat or background) and not triton'",
        "a background class is a class",
    ),
    Slip(
        LOSS,
        "is_known = ((index >= 0) & (index <= classes)) | is_background",
        "is_known = ((index >= 0) & (index < classes)) | is_background",
        MATCHES,
        "the number of classes is no class, but an error",
    ),
    Slip(
        BCE,
        "type(background_index) is int and background_index == -1",
        "True",
        MISTAKES,
        "a background index that is not checked",
    ),
    Slip(
        CHECKS,
        "target.dtype == torch.int64 and background_index == ignore_index",
        "False",
        MISTAKES,
        "one index for no class and for what is ignored",
    ),
    Slip(CHECKS, "    if not value > 0 or (", "    if value <= 0 or (", MISTAKES, "a normalizer that is no number"),
    Slip(
        CHECKS,
        "fitting = t.dim() <= x.dim()",
        "fitting = True",
        MISTAKES,
        "a weight of more dimensions than the logits",
    ),
    Slip(
        CHECKS,
        'return t.device == x.device or (not t.dim() and t.device.type == "cpu")',
        'return t.device == x.device or t.device.type == "cpu"',
        MISTAKES,
        "a CPU tensor beside one of another device",
    ),
    Slip(
        LOSS,
        "if self.divisor is not None and self.divisor < TINY and input.dtype != torch.float64:",
        "if False:",
        "tests/ops/test_loss_contracts.py -k normalizers_beyond",
        "a normalizer whose inverse float32 does not hold",
    ),
    Slip(
        LOSS,
        "max(input.shape[self.dim], abs(self.background_index)) < 2**24",
        "input.shape[self.dim] < 2**24",
        "tests/ops/test_loss_contracts.py -k background",
        "a background class that float32 does not hold",
    ),
    Slip(
        RUN,
        "    if dtype in _eligible.HALF_DTYPES and _eligible.autocasts(input.device.type):\n        return torch.float32\n",
        "",
        "tests/ops/test_loss_contracts.py -k autocast",
        "a half loss under autocast",
    ),
]
