"""Slips in sigtorch/plugin, which plugs sigtorch into existing models."""

from mutants.slip import Slip

PRODUCTS, RECOGNISE, SOURCE = (f"sigtorch/plugin/{name}.py" for name in ("products", "recognise", "source"))
CHANGES, CLASSES, WRITER = (f"sigtorch/plugin/{name}.py" for name in ("changes", "classes", "writer"))
PATCH, FUNCTIONS = "sigtorch/plugin/patch.py", "sigtorch/plugin/functions.py"
REWRITTEN = "tests/plugin/test_rewrite.py tests/plugin/test_products.py"
IN_PLACE = "tests/plugin/test_in_place.py tests/plugin/test_in_place_forms.py tests/plugin/test_order.py"
SEEN = "tests/plugin/test_seen.py tests/plugin/test_what_runs.py tests/plugin/test_methods.py"
PATCHED = "tests/plugin/test_patch.py tests/plugin/test_tools.py"
DIVERTED = "tests/plugin/test_patched_functions.py tests/plugin/test_patch_losses.py"

SLIPS = [
    Slip(
        PRODUCTS,
        "            with torch.set_grad_enabled(self.with_graph):\n                value = self.function(self.gate)",
        "            value = self.function(self.gate)",
        REWRITTEN,
        "a sigmoid that was computed without autograd gets a graph",
    ),
    Slip(
        PRODUCTS,
        "(gate.stride() == x.stride() or _have_same_strides(x, gate, x_first, leads)) and runs",
        "runs",
        REWRITTEN,
        "the result has the strides of the other operand",
    ),
    Slip(
        RECOGNISE,
        '    if "forward" in held:\n        return "its forward was replaced on the instance"\n',
        "",
        REWRITTEN,
        "a forward on the instance is bypassed",
    ),
    Slip(
        RECOGNISE,
        'return _CODES[function] is getattr(function, "__code__", None)',
        "return True",
        REWRITTEN,
        "a function whose code was replaced counts as the original",
    ),
    Slip(
        RECOGNISE,
        "    if [ast.unparse(a) for a in value.args] != [x]:\n        return None\n",
        "",
        REWRITTEN,
        "a forward that takes the sigmoid of another value counts as a sigmoid",
    ),
    Slip(
        SOURCE,
        "    made.__kwdefaults__ = function.__kwdefaults__\n",
        "",
        f"{SEEN} {REWRITTEN}",
        "a method loses its keywords' defaults",
    ),
    Slip(
        SOURCE,
        "    flags = function.__code__.co_flags & _FUTURE\n",
        "    flags = 0\n",
        "tests/plugin/test_what_runs.py -k future",
        "a method loses what its file imported from the future",
    ),
    Slip(
        CHANGES,
        '            changed = [*changed, options.get("out")]\n',
        "",
        IN_PLACE,
        "a write by out= is not noticed",
    ),
    Slip(
        WRITER,
        "        if pair is None or any(isinstance(f, ast.Starred) or is_number(f, self.kinds, self.self_name) for f in pair):",
        "        if pair is None or any(isinstance(f, ast.Starred) for f in pair):",
        "tests/plugin/test_overlooked.py tests/plugin/test_rewrite.py",
        "a product with a number counts as one",
    ),
    Slip(
        CLASSES,
        "        super().__setattr__(name, value) if original is None else setattr(original, name, value)",
        "        super().__setattr__(name, value)",
        SEEN,
        "an attribute that a method sets on its class is lost at undo",
    ),
    Slip(
        PATCH,
        "            self.undo()\n            raise\n",
        "            raise\n",
        "tests/plugin/test_patch.py -k half_way",
        "half of a model stays patched",
    ),
    Slip(
        FUNCTIONS,
        "if size_average is None and reduce is None and pytorch_takes(",
        "if pytorch_takes(",
        DIVERTED,
        "a legacy reduction is dropped",
    ),
    Slip(
        FUNCTIONS,
        "            if self.blocks == 0 and self.function is not None:",
        "            if self.function is not None:",
        "tests/plugin/test_guards.py",
        "an inner block ends the outer one",
    ),
    Slip(
        FUNCTIONS,
        "            any(isinstance(mode, _Divert) for mode in modes)\n            and pytorch_takes",
        "            pytorch_takes",
        DIVERTED,
        "another thread's focal loss is diverted",
    ),
]
