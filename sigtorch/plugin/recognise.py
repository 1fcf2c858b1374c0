"""What a module of somebody else computes: proven by tracing it, or read from its source as a hint for its owner."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
import operator
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

_DEVICES = ("cpu", "cuda")
_PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")


class GatedMLP(NamedTuple):
    """The children of a module that is exactly down(silu(gate(x)) * up(x)), and the name of x."""

    gate: str
    up: str
    down: str
    input: str


class Hint(NamedTuple):
    """A gate written inline: where, and the line that would fuse it."""

    where: str
    line: str


class _Changed(Exception):
    """A forward that turns gradients or autocast off for itself, which no graph shows."""


class _Tracer(fx.Tracer):
    """Keeps whatever holds state whole, so that projections may be anything, and looks into activations."""

    def __init__(self) -> None:
        super().__init__()
        self.ambient = _ambient()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        stateful = next(chain(m.parameters(), m.buffers(), m.children()), None) is not None
        return stateful or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _ambient() != self.ambient:
            raise _Changed
        return super().create_node(*args, **kwargs)


def _ambient() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),  # checkpointing and offloading
        *(torch.is_autocast_enabled(d) for d in _DEVICES),
        *(torch.get_autocast_dtype(d) for d in _DEVICES),
    )


@contextmanager
def _mode(gradients: bool, autocast: bool) -> Iterator[None]:
    """So that a forward shows that turns them round, or asks for them."""
    before = [torch.is_autocast_enabled(d) for d in _DEVICES]
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for d in _DEVICES:
                torch.set_autocast_enabled(d, autocast)
            yield
    finally:
        for d, was in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(d, was)


def _trace(module: nn.Module, training: bool, gradients: bool = True, autocast: bool = True) -> list[fx.Node] | None:
    """The nodes of its forward; None where it cannot be traced, or leaves something in the module."""
    try:
        with _mode(gradients, autocast):
            # A copy, for a forward that writes to self.
            twin = object.__new__(type(module))
            twin.__dict__ = _copy(vars(module))
            twin.training = training
            twin._buffers = {name: b if b is None else b.clone() for name, b in module._buffers.items()}
            before, versions = _copy(vars(twin)), _versions(twin)
            nodes = list(_Tracer().trace(twin).nodes)
        return nodes if (vars(twin), _versions(twin)) == (before, versions) else None
    except Exception:  # a stranger's forward, run on proxies, may raise anything
        return None


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in state.items()}


def _versions(module: nn.Module) -> list[int]:
    return [b._version for b in module._buffers.values() if b is not None]


def gated_mlp(module: nn.Module) -> GatedMLP | str | None:
    """The parts of an MLP that is exactly silu(gate)·up → down; why it is not, or None for what is nothing like one."""
    if len(module._modules) < 3 or not _takes_one(type(module)):
        return None
    first, *modes = itertools.product((module.training, not module.training), (True, False), (True, False))
    graph = _trace(module, *first)
    if graph is None:
        return None
    found = _match(graph, module)
    if found is None:
        steps = [_step(n, module) for n in graph if n.op not in ("placeholder", "output")]
        if not {"silu", "mul"} <= {*steps}:
            return None
        listed = ", ".join(steps) if len(steps) < 12 else f"{len(steps)} steps"
        return f"not exactly down(silu(gate) * up), but {listed}"
    for mode in modes:
        other = _trace(module, *mode)
        if other is None or _match(other, module) != found:
            return "computes something else in another mode (training, gradients, autocast)"
    for name, child in module.named_modules():
        if name.split(".")[0] in found:  # which are called as before
            continue
        if "forward" in vars(child):
            return f"forward was replaced on the instance{name and f' of {name}'}"
        if name and _hooks(child):
            return f"hooks on {name}, which fusing would bypass"
    return found


def _takes_one(cls: type[nn.Module]) -> bool:
    """Whether forward takes one tensor and nothing else: what takes more is not run on proxies at all."""
    forward = inspect.getattr_static(cls, "forward", None)  # a scripted class has none
    parameters = list(inspect.signature(forward).parameters.values())[1:] if inspect.isfunction(forward) else []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return len(parameters) == 1 and parameters[0].kind in named and parameters[0].default is inspect.Parameter.empty


def _hooks(module: nn.Module) -> bool:
    return any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks") and "state_dict" not in name)


def _step(node: fx.Node, module: nn.Module) -> str:
    if _is_silu(node, module):
        return "silu"
    return node.target if isinstance(node.target, str) else node.target.__name__


def _is_silu(node: fx.Node, module: nn.Module) -> bool:
    if len(node.args) != 1:
        return False
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return type(child) is nn.SiLU and not child.inplace and not node.kwargs
    return node.target is F.silu and not node.kwargs.get("inplace")


def _match(nodes: Any, module: nn.Module) -> GatedMLP | None:
    if len(nodes) != 7:  # x, gate, silu, up, product, down, output
        return None
    x, down = nodes[0], nodes[-1].args[0]
    product: Any = _called(down)
    if getattr(product, "target", None) not in _PRODUCTS or product.kwargs or len(product.args) != 2:
        return None
    for silu, up in (product.args, product.args[::-1]):
        gate: Any = silu.args[0] if isinstance(silu, fx.Node) and _is_silu(silu, module) else None
        if gate is not up and _called(gate) is x and _called(up) is x:
            found = GatedMLP(gate.target, up.target, down.target, x.target)
            return None if any("." in name for name in found) else found
    return None


def _called(node: Any) -> Any:
    """The only argument of a child module's call."""
    plain = isinstance(node, fx.Node) and node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return node.args[0] if plain else None


def inline_gates(module: nn.Module) -> list[Hint]:
    """Gates that the module's methods write out, σ(g)·x and silu(g)·u, with the line that fuses each."""
    cls: Any = type(module)
    roles = [(name, role) for name, child in module.named_children() if (role := _activation(child))]
    return list(_inline_gates(cls, tuple(roles)))


def _activation(child: nn.Module) -> str | None:
    if isinstance(child, nn.Sigmoid):
        return "sigmoid"
    if next(chain(child.parameters(), child.children()), None) is not None or not _takes_one(type(child)):
        return None
    if isinstance(child, nn.SiLU):
        return "silu"
    nodes = _trace(child, child.training) or []
    return "silu" if len(nodes) == 3 and nodes[1].target is F.silu else None


@functools.cache
def _inline_gates(cls: type, roles: tuple[tuple[str, str], ...]) -> tuple[Hint, ...]:
    hints: dict[Hint, None] = {}
    methods: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("torch", "sigtorch", "builtins"):
            continue
        methods = {**vars(base), **methods}
    told = {"sigmoid", "silu", *dict(roles)}
    for method in methods.values():
        function = inspect.unwrap(method) if callable(method) else None
        if inspect.isfunction(function) and not told.isdisjoint(function.__code__.co_names):
            hints.update(dict.fromkeys(_hints(function, dict(roles))))
    return tuple(hints)


def _hints(function: Any, roles: dict[str, str]) -> Iterator[Hint]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):  # made at run time, or a lambda within a line
        return
    code = function.__code__
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr):
            line, fuser = node.lineno + code.co_firstlineno - 1, _Fuser(roles)
            fused = fuser.visit(node)
            if fuser.found:
                name = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
                yield Hint(f"{name}:{line}", ast.unparse(ast.fix_missing_locations(fused)))


class _Fuser(ast.NodeTransformer):
    """Writes σ(g)·x and silu(g)·u of a statement as calls of sigtorch."""

    def __init__(self, roles: dict[str, str]) -> None:
        self.roles = roles
        self.found = False

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return (self._fused(node.left, node.right) if isinstance(node.op, ast.Mult) else None) or node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        value = self._fused(None, node.value, ast.unparse(node.target)) if isinstance(node.op, ast.Mult) else None
        return ast.Assign([node.target], value, lineno=node.lineno) if value else node

    def _fused(self, left: ast.expr | None, right: ast.expr, target: str = "") -> ast.expr | None:
        for act, other in ((left, right), (right, left)):
            name, gate = self._gate(act)
            value = target if other is None else ast.unparse(other)
            # A number is a scale, and x·σ(x) is no gate but silu itself.
            if gate is None or isinstance(other, ast.Constant) or value == gate:
                continue
            self.found = True
            call = f"sigmoid_gate({value}, {gate})" if name == "sigmoid" else f"swiglu({gate}, {value})"
            return ast.parse(f"sigtorch.{call}", mode="eval").body
        return None

    def _gate(self, node: ast.expr | None) -> tuple[str, str | None]:
        """What is called, sigmoid or silu, and on what."""
        if not isinstance(node, ast.Call) or len(node.args) > 1 or node.keywords:
            return "", None
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if ast.unparse(called) == f"self.{name}":
            name = self.roles.get(name, "")
        if name not in ("sigmoid", "silu"):
            return "", None
        if node.args:
            return name, ast.unparse(node.args[0])
        return name, ast.unparse(called.value) if isinstance(called, ast.Attribute) else None
