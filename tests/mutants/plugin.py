"""Slips in sigtorch/plugin, which plugs sigtorch into existing models."""

from mutants.slip import Slip

PRODUCTS, RECOGNISE, SOURCE = (f"sigtorch/plugin/{name}.py" for name in ("products", "recognise", "source"))
CHANGES, CLASSES, FIND, READING = (f"sigtorch/plugin/{name}.py" for name in ("changes", "classes", "find", "reading"))
ACTIVATED, FLOW, REWRITE = (f"sigtorch/plugin/{name}.py" for name in ("activated", "flow", "rewrite"))
PATCH, FUNCTIONS = "sigtorch/plugin/patch.py", "sigtorch/plugin/functions.py"
WATCHING, KEEPING = "sigtorch/plugin/watching.py", "sigtorch/plugin/keeping.py"
REWRITTEN = "tests/plugin/test_rewrite.py tests/plugin/test_products.py"
IN_PLACE = "tests/plugin/test_in_place.py tests/plugin/test_in_place_forms.py tests/plugin/test_order.py"
SEEN = "tests/plugin/test_seen.py tests/plugin/test_what_runs.py tests/plugin/test_methods.py"
PATCHED = "tests/plugin/test_patch.py tests/plugin/test_tools.py"
FORMS = "tests/plugin/test_forms.py"
REPORTED = "tests/plugin/test_report.py"
DIVERTED = "tests/plugin/test_patched_functions.py tests/plugin/test_patch_losses.py"

SLIPS = [
    Slip(
        ACTIVATED,
        "        if not t.is_floating_point():\n",
        "        if t is tensors[0] and not t.is_floating_point():\n",
        "tests/plugin/test_guards.py",
        "forced kernels refuse a product with integers, which PyTorch computes",
    ),
    Slip(
        ACTIVATED,
        "    return callee if is_compiling() else _replaced(callee, _rewrite().rewritten_function)",
        "    return _replaced(callee, _rewrite().rewritten_function)",
        "tests/plugin/test_rewrite.py -k traced_whole",
        "Dynamo traces what rewrites functions",
    ),
    Slip(
        "sigtorch/_backend.py",
        '    if (choice == "auto" and not t.is_cuda) or observed():',
        '    if choice == "auto" and not t.is_cuda:',
        "tests/plugin/test_guards.py",
        "a mode sees a view of a gate that was not written",
    ),
    Slip(
        FIND,
        "        within -= {n for c in self.found.clamped for s in c.before for n in ast.walk(s)}\n",
        "",
        "tests/plugin/test_clamped.py",
        "a product in the source of a clamped SwiGLU has that one's name",
    ),
    Slip(
        ACTIVATED,
        "(_eligible.transformed() or gate.is_nested)",
        "_eligible.transformed()",
        "tests/plugin/test_guards.py -k nested",
        "a nested tensor is asked for its sizes",
    ),
    Slip(
        ACTIVATED,
        "(_eligible.transformed() or gate.is_nested)",
        "gate.is_nested",
        "tests/plugin/test_tools.py -k jit",
        "a trace notes the sizes that a product compares",
    ),
    Slip(
        ACTIVATED,
        "            with torch.set_grad_enabled(self.with_graph):\n",
        "            if True:\n",
        REWRITTEN,
        "a sigmoid that was computed without autograd gets a graph",
    ),
    Slip(
        ACTIVATED,
        "        return not (self.is_read or self.expanded or self.gate_changed()) and _is_dense(self.gate)",
        "        return not (self.is_read or self.expanded or self.gate_changed())",
        "tests/plugin/test_guards.py tests/plugin/test_forms.py",
        "a view of a gate whose sigmoid has other strides",
    ),
    Slip(
        FIND,
        "            self.found.added_to.update(variables.additions_to(name))",
        "            pass",
        FORMS,
        "something is added to a sigmoid that was put off",
    ),
    Slip(
        FIND,
        "        if variables.shared.intersection(names):",
        "        if not names:",
        FORMS,
        "a nested function reads a sigmoid that was put off",
    ),
    Slip(
        FLOW,
        "            if always_runs and (stores or isinstance(statement, _ENDS)):",
        "            if stores or isinstance(statement, _ENDS):",
        FORMS,
        "what reads a variable after a branch is overlooked",
    ),
    Slip(
        REWRITE,
        "    return None if is_decorated else _made(",
        "    return _made(",
        SEEN,
        "a decorator gets a sigmoid that was put off",
    ),
    Slip(
        REWRITE,
        "    if made is None or made.code is not code:",
        "    if made is None:",
        FORMS,
        "a function's former code runs",
    ),
    Slip(
        PRODUCTS,
        "    if act.is_read:\n",
        "    if False:\n",
        FORMS,
        "a sigmoid is computed twice",
    ),
    Slip(
        PRODUCTS,
        "    if gate.stride() != x.stride() and not _have_same_strides(",
        "    if False and (",
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
        "function.__dict__)\n    made.__kwdefaults__ = function.__kwdefaults__\n",
        "function.__dict__)\n",
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
        READING,
        "        if pair is None or any(isinstance(f, ast.Starred) or is_number(f, self.kinds, self.self_name) for f in pair):",
        "        if pair is None or any(isinstance(f, ast.Starred) for f in pair):",
        "tests/plugin/test_left.py tests/plugin/test_rewrite.py",
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
    Slip(
        SOURCE,
        ", inner.lineno = _INNER, [], _first_line(source.definition)",
        " = _INNER, []",
        REPORTED,
        "a rewritten method begins at another line than the original",
    ),
    Slip(
        WATCHING,
        "            self.memories.pop(_memory(t), None)\n        if func",
        "            pass\n        if func",
        REPORTED,
        "what was written over a sigmoid counts as the sigmoid",
    ),
    Slip(
        WATCHING,
        "        opened.activation.uses -= 1  # which was counted for each of the two\n",
        "",
        REPORTED,
        "an interpolation counts as two products",
    ),
    Slip(
        KEEPING,
        "                self.before([buffer])\n",
        "",
        REPORTED,
        "a report changes the running statistics of a BatchNorm",
    ),
    Slip(
        KEEPING,
        "        stack.callback(random.setstate, random.getstate())\n",
        "",
        REPORTED,
        "a report draws from Python's random numbers",
    ),
]
