"""Makes Triton's interpreter several times as fast: what it works out anew at every operation is kept.

A function whose part this release of Triton lacks does nothing.
"""

import functools

from triton import language
from triton.runtime import interpreter


def make_fast():
    replace_language_once()
    keep_numpy_dtypes()
    keep_shapes()


def replace_language_once():
    """Replaces parts of the language once a launch, not at every call of a function."""
    replace, scope_of = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if scope_of is None:
        return
    replaced = set()

    def once(function):
        seen = frozenset(id(v) for v in function.__globals__.values() if v is language or v is language.core)
        if seen in replaced:
            return scope_of()
        replaced.add(seen)
        scope = replace(function)
        restore = scope.restore
        scope.restore = lambda: (replaced.clear(), restore())  # which launches do, and calls do not
        return scope

    interpreter._patch_lang = once


def keep_numpy_dtypes():
    """Looks up the NumPy dtype of a type by its name."""
    find = getattr(interpreter, "_get_np_dtype", None)
    if find is not None:
        known = {}

        def once(type):
            name = type.scalar.name
            if name not in known:
                known[name] = find(type)
            return known[name]

        interpreter._get_np_dtype = once


def keep_shapes():
    """Makes the shape of a block's type, and of a tensor of this type, once for all that have it."""
    block_type, tensor = language.core.block_type, language.core.tensor
    make_type, make_tensor = block_type.__init__, tensor.__init__
    types, shapes = {}, {}

    @functools.wraps(make_type)
    def type_once(self, element_ty, shape):
        key = element_ty.name, tuple([getattr(n, "value", n) for n in shape])
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = vars(self).copy()
        vars(self).update(types[key], element_ty=element_ty)

    @functools.wraps(make_tensor)
    def tensor_once(self, handle, type):
        key = tuple(type.shape) if type.is_block() else ()
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = {"shape": self.shape, "numel": self.numel}
        vars(self).update(shapes[key], handle=handle, type=type, dtype=type.scalar)

    block_type.__init__, tensor.__init__ = type_once, tensor_once
