"""Slips in what decides what runs a tensor, and in what all autograd Functions share."""

from mutants.slip import Slip

AUTOGRAD, BACKEND, CHECKS = "sigtorch/_autograd.py", "sigtorch/_backend.py", "sigtorch/_checks.py"
ELIGIBLE = "sigtorch/_eligible.py"
CHOICES = "tests/test_backend.py tests/test_use_backend.py -k 'not missing and not why and not engine'"
GRADS = "tests/ops/test_ops.py -k '(gradcheck or differentiably or given_twice) and (gate-residual or glu)'"
WATCHED = "tests/ops/test_ops.py tests/test_backend.py -k '(transforms and gate) or subclasses or (watches and plain)'"
TRACED = (
    "tests/ops/test_ops.py tests/ops/test_loss_contracts.py -k '(exports or symbolic) and (gate-token or bce or focal)'"
)
MISTAKES = "tests/test_backend.py tests/ops/test_loss_mistakes.py tests/ops/test_siglip.py -k 'bad or mistake'"

SLIPS = [
    Slip(
        AUTOGRAD,
        "if torch.is_grad_enabled() or torch.compiler.is_compiling():",
        "if torch.compiler.is_compiling():",
        GRADS,
        "a pass runs where backward is differentiated",
    ),
    Slip(
        AUTOGRAD,
        "if not _eligible.readable(x) or torch._C._are_functorch_transforms_active():",
        "if not _eligible.readable(x):",
        "tests/plugin/test_patched_functions.py tests/plugin/test_patch_losses.py",
        "a marker in what is transformed",
    ),
    Slip(
        AUTOGRAD,
        "t.view_as(t) if create_graph else",
        "t if create_graph else",
        GRADS,
        "one tensor given twice gets the sum of both gradients twice",
    ),
    Slip(
        AUTOGRAD,
        "wanted, grad, create_graph=create_graph))",
        "wanted, grad))",
        GRADS,
        "a backward pass that cannot be differentiated",
    ),
    Slip(
        ELIGIBLE,
        "keys = _SAVEABLE_KEYS if torch.is_grad_enabled() else _PLAIN_KEYS",
        "keys = _PLAIN_KEYS",
        "tests/ops/test_ops.py -k 'inference_mode and triton'",
        "what inference mode made is saved for backward",
    ),
    Slip(
        ELIGIBLE,
        "        or forward_ad._current_level >= 0\n",
        "",
        "tests/ops/test_ops.py tests/ops/test_loss_contracts.py -k 'transforms and triton'",
        "tangents are lost in a kernel",
    ),
    Slip(
        ELIGIBLE,
        "return any(type(mode) not in TRANSPARENT_MODES for",
        "return all(type(mode) not in TRANSPARENT_MODES for",
        "tests/test_backend.py tests/plugin/test_patched_functions.py",
        "a mode that watches is not seen beside one that does not",
    ),
    Slip(
        ELIGIBLE,
        "        and _dispatch_keys(t).raw_repr() in _PLAIN_KEYS\n        and",
        "        and",
        "tests/ops/test_loss_contracts.py tests/ops/test_loss_masks_transformed.py -k 'transforms and auto'",
        "a batched tensor's value is looked at",
    ),
    Slip(
        ELIGIBLE,
        "(forward_ad._current_level < 0 or forward_ad.unpack_dual(t).tangent is None)",
        "True",
        "tests/ops/test_loss_contracts.py tests/ops/test_loss_masks_transformed.py -k 'transforms or learnt'",
        "a number that is differentiated forward is taken for one",
    ),
    Slip(
        ELIGIBLE,
        "(torch.compiler.is_compiling() or (_len_torch_function_stack() and _is_diverted()))",
        "(_len_torch_function_stack() and _is_diverted())",
        "tests/plugin/test_patched_functions.py",
        "a compiled formula is diverted to itself",
        "the Dynamo of PyTorch 2.8 does not see the block's mode, and there the tests fail; that of 2.14 does",
    ),
    Slip(
        BACKEND,
        '(choice == "auto" and not cpu_pass and',
        '(choice == "auto" and',
        "tests/ops/test_siglip.py tests/ops/test_chunked_losses.py -k 'memory or products'",
        "a CPU's passes are never run",
    ),
    Slip(
        BACKEND,
        '    for t in tensors:\n        if t.get_device() != device:\n            return "aten"\n        kinds',
        "    for t in tensors:\n        kinds",
        CHOICES,
        "tensors of two devices go to a kernel",
    ),
    Slip(
        BACKEND,
        "return 0 < dtypes.count(torch.float64) < len(dtypes)",
        "return dtypes.count(torch.float64) == len(dtypes)",
        "tests/kernels/test_kernels.py -k 'promote and lerp'",
        "float64 beside float32 in a kernel",
    ),
    Slip(
        BACKEND,
        'return "triton" if kernels_take(dtypes) and _triton_works_on(index) else "aten"',
        'return "triton" if _triton_works_on(index) else "aten"',
        CHOICES,
        "a dtype that no kernel takes",
    ),
    Slip(
        BACKEND,
        "    while block is not None and not block.holds:\n",
        "    if block is not None and not block.holds:\n",
        CHOICES,
        "a choice of a block that was left holds on",
    ),
    Slip(
        BACKEND,
        "        if _innermost.get() is self:\n",
        "        if True:\n",
        CHOICES,
        "a block left out of turn ends another one",
    ),
    Slip(
        BACKEND,
        "        if self.token is not None:\n            raise _checks.error_entered_twice(self.where)\n",
        "",
        CHOICES,
        "a block that is entered twice is never left",
    ),
    Slip(
        BACKEND,
        "        _checks.check_decorated(self.where, function)\n\n",
        "",
        CHOICES,
        "a choice for a coroutine does nothing",
    ),
    Slip(
        BACKEND,
        "if torch.version.hip is not None or not installed or torch",
        "if not installed or torch",
        CHOICES,
        "kernels on a GPU that they were never tried on",
    ),
    Slip(
        BACKEND,
        "get_device_capability(index) < CAPABILITY:\n        return False",
        "get_device_capability(index) <= CAPABILITY:\n        return False",
        CHOICES,
        "the oldest GPU that Triton takes is left out",
    ),
    Slip(
        BACKEND,
        "raise type(error)(*error.args)  #",
        "raise error  #",
        CHOICES,
        "a cached error keeps the tensors of its first traceback alive",
    ),
    Slip(
        "sigtorch/_once.py",
        "            values.setdefault(key, function(*key))\n",
        "            values[key] = function(*key)\n",
        "tests/test_once.py",
        "a value made twice, in two threads",
    ),
    Slip(
        CHECKS,
        "    except (TypeError, RuntimeError):  #",
        "    except TypeError:  #",
        MISTAKES,
        "another error of a tensor without data",
    ),
    Slip(
        CHECKS,
        "if not -(dims := x.dim()) <= dim < dims:",
        "if not -(dims := x.dim()) <= dim <= dims:",
        MISTAKES,
        "a dimension too many",
    ),
    Slip(
        CHECKS,
        "' '.join(str(error).split())[:300]",
        "str(error)[:300]",
        "tests/test_backend.py -k why",
        "an error of several lines",
    ),
]
