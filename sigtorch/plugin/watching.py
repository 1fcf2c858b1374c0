"""Watches the operators of one run: which sigmoids and silus are computed, and which products take them.

A sigmoid is followed by its memory: through views, copies and casts, until something else is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sigtorch import _backend, _eligible
from sigtorch.ops import gates
from sigtorch.plugin.frames import Seen, seen_from
from sigtorch.plugin.recognise import SIGMOID, SILU, Activation

aten = torch.ops.aten
# By the names of their operators: the Functions, which say what shapes are fused.
FUNCTIONS: dict[str, Any] = {
    f.op: f for f in (
        gates.SigmoidGateFunction, gates.SwiGLUFunction, gates.SwiGLUPackedFunction, gates.GLUFunction,
        gates.SigmoidLerpFunction, gates.SwiGLUVariantFunction, gates.SwiGLUWeightedFunction,
        gates.SwiGLUPackedVariantFunction, gates.SwiGLUPackedWeightedFunction,
    )
}  # fmt: skip
SIGMOIDS = ("sigmoid", "sigmoid_from_input")
LOSSES = (
    "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "quality_focal_loss", "varifocal_loss", "asymmetric_loss",
)  # fmt: skip

# What memory may hold: a sigmoid or silu, 1 minus a sigmoid, or the product of either with another tensor.
Role: TypeAlias = Literal["factor", "complement", "product", "product of complement"]
_FOLLOWED = ("factor", "complement")


class Operand(NamedTuple):
    """A tensor that an operation takes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def alike(self) -> torch.Tensor:
        """Returns a tensor of this shape, of one element in memory."""
        return torch.empty((), dtype=self.dtype, device=self.device).expand(self.shape)


@dataclass(eq=False)
class Event:
    """A sigmoid, silu, loss or product that was computed.

    Attributes:
        kind: the name of sigtorch's function for it, or "silu".
        operands: its tensors.
        seen: the code that computed it.
        fused: whether a kernel computes it.
        in_place: whether it was written into one of its operands.
        obstacle: why no kernel takes the operands; None if one does.
        uses: of a sigmoid or silu: how many operators take its value.
        is_taken: of a sigmoid or silu: whether a product does.
        activations: of a product: the sigmoids and silus that it takes.
    """

    kind: str
    operands: tuple[Operand, ...]
    seen: Seen
    fused: bool = False
    in_place: bool = False
    obstacle: str | None = None
    uses: int = 0
    is_taken: bool = False
    activations: tuple[Event, ...] = ()

    def is_shared(self) -> bool:
        """Tells whether other operators take a product's sigmoid or silu, too, so that it is computed in any case."""
        return bool(self.activations) and all(activation.uses > 1 for activation in self.activations)


class _Held(NamedTuple):
    """Memory that holds a result of a sigmoid or silu, and the product and its other tensor if it holds one."""

    memory: StorageWeakRef
    role: Role
    activation: Event
    product: Event | None = None
    other: Operand | None = None


class _Factor(NamedTuple):
    """A tensor that is multiplied, and what its memory holds."""

    tensor: torch.Tensor
    held: _Held | None

    def has_role(self, role: Role) -> bool:
        return self.held is not None and self.held.role == role

    def is_of(self, activation: Activation) -> bool:
        """Tells whether it is the result of a sigmoid, or of a silu."""
        return self.held is not None and self.held.role == "factor" and self.held.activation.kind == activation


class _Call(NamedTuple):
    """A call of an operator, with its result."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any


class Watch(TorchDispatchMode):
    """Notes the products, and the sigmoids, silus and losses, among the operators that run.

    Attributes:
        products: the products, in order.
        others: the sigmoids, silus and losses, in order.
        obstacle: set by a rewritten method: why no kernel computes the product that it computes next.
    """

    def __init__(self, before: Callable[[list[torch.Tensor]], None]) -> None:
        super().__init__()
        self.before = before  # is called with the tensors that an operator is about to change
        self.products: list[Event] = []
        self.others: list[Event] = []
        self.obstacle: str | None = None
        self.memories: dict[int, _Held] = {}
        self.handlers: dict[Any, Callable[[_Call, list[_Factor]], None]] = {
            aten.glu: self.see_glu,
            aten.rsub: self.see_complement,
            aten.binary_cross_entropy_with_logits: self.see_loss,
            **dict.fromkeys((aten.sigmoid, aten.sigmoid_), self.see_sigmoid),
            **dict.fromkeys((aten.silu, aten.silu_), self.see_silu),
            **dict.fromkeys((aten._to_copy, aten.clone, aten.copy_, aten.repeat), self.see_copy),
            **dict.fromkeys((aten.mul, aten.mul_), self.see_product),
            **dict.fromkeys((aten.add, aten.add_), self.see_sum),
            **dict.fromkeys((aten.addcmul, aten.addcmul_), self.see_addcmul),
            **dict.fromkeys((aten.lerp, aten.lerp_), self.see_lerp),
        }

    def run(self, model: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        with self:
            model(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        self.before(written)
        call = _Call(func, args, kwargs, func(*args, **kwargs))
        factors = [_Factor(a, self.memories.get(_memory(a))) for a in args if isinstance(a, torch.Tensor)]
        for t in written:
            self.memories.pop(_memory(t), None)
        if func.namespace == "sigtorch":
            self.see_ours(call)
        elif func.overloadpacket in self.handlers:
            self.handlers[func.overloadpacket](call, factors)
        self.count_uses(call, factors)
        return call.out

    def count_uses(self, call: _Call, factors: list[_Factor]) -> None:
        """Counts an operator as a use of each sigmoid or silu that it takes, if its result is not followed as that one."""
        out = call.out[0] if isinstance(call.out, (list, tuple)) and call.out else call.out
        result = self.memories.get(_memory(out))
        followed = result.activation if result is not None and result.role in _FOLLOWED else None
        taken = {f.held.activation for f in factors if f.held is not None and f.held.role in _FOLLOWED}
        for activation in taken - {followed}:
            activation.uses += 1

    def hold(self, t: Any, role: Role, activation: Event, product: Event | None = None, other: Any = None) -> None:
        """Notes what a tensor holds, if it is all that its memory holds."""
        if _memory(t) and t.untyped_storage().nbytes() <= t.numel() * t.element_size():
            memory = StorageWeakRef(t.untyped_storage())
            self.memories[_memory(t)] = _Held(memory, role, activation, product, other)

    def see_sigmoid(self, call: _Call, factors: list[_Factor], fused: bool = False) -> None:
        self.others.append(Event(SIGMOID, (_operand("input", call.args[0]),), self.seen(), fused))
        self.hold(call.out, "factor", self.others[-1])

    def see_silu(self, call: _Call, factors: list[_Factor]) -> None:
        self.others.append(Event(SILU, (_operand("input", call.args[0]),), self.seen()))
        self.hold(call.out, "factor", self.others[-1])

    def see_loss(self, call: _Call, factors: list[_Factor], fused: bool = False) -> None:
        name = call.func.overloadpacket.__name__
        self.others.append(Event(name, _operands(call), self.seen(), fused))

    def see_copy(self, call: _Call, factors: list[_Factor]) -> None:
        source = factors[-1].held
        if source is not None:
            self.hold(call.out, source.role, source.activation, source.product, source.other)

    def see_complement(self, call: _Call, factors: list[_Factor]) -> None:
        """Follows 1 - s."""
        s = factors[0]
        is_from_one = len(factors) == 1 and list(call.args[1:]) == [1]
        if is_from_one and s.held is not None and s.is_of(SIGMOID):
            self.hold(call.out, "complement", s.held.activation)

    def see_product(self, call: _Call, factors: list[_Factor]) -> None:
        if len(factors) == 2:
            self.multiply(call, *factors)

    def multiply(self, call: _Call, left: _Factor, right: _Factor) -> None:
        """Notes a product of two tensors, if one of them is a sigmoid or silu, and follows that with 1 - s."""
        obstacle, self.obstacle = self.obstacle, None
        if not (left.tensor.dim() and right.tensor.dim()):
            return
        # Of two sigmoids the right one is the gate, as in rewritten methods; an earlier silu is rather an operand.
        sides = sorted(((right, left), (left, right)), key=lambda side: not side[0].is_of(SIGMOID))
        for s, x in sides:
            if s.held is not None and s.has_role("factor"):
                product = self.note(call, *_arguments(s.held.activation.kind, x.tensor, s.tensor), obstacle=obstacle)
                product.activations = tuple(f.held.activation for f in (s, x) if f.held and f.has_role("factor"))
                for activation in product.activations:
                    activation.is_taken = True
                self.hold(call.out, "product", s.held.activation, product, _operand("x", x.tensor))
                return
        for s, y in ((right, left), (left, right)):
            if s.held is not None and s.has_role("complement"):
                self.hold(call.out, "product of complement", s.held.activation, None, _operand("y", y.tensor))

    def see_sum(self, call: _Call, factors: list[_Factor]) -> None:
        """Finds the sum of s * x and (1 - s) * y."""
        if len(factors) == 2 and not call.kwargs:
            self.join([f.held for f in factors])

    def join(self, terms: list[_Held | None]) -> None:
        """Makes one interpolation of a product with s and one with 1 - s."""
        by_role = {term.role: term for term in terms if term is not None}
        opened, closed = by_role.get("product"), by_role.get("product of complement")
        if opened is None or closed is None or opened.activation is not closed.activation or opened.product is None:
            return
        product = opened.product
        gate = next(o for o in product.operands if o.name == "gate")
        opened.activation.uses -= 1  # which was counted for each of the two
        product.kind = "sigmoid_lerp"
        product.operands = tuple(o for o in (opened.other, closed.other, gate) if o is not None)
        product.obstacle = obstacle_of(product.kind, [o.alike() for o in product.operands])

    def see_addcmul(self, call: _Call, factors: list[_Factor]) -> None:
        """Finds a + s * x, and with a = (1 - s) * y an interpolation."""
        if len(factors) == 3 and not call.kwargs:
            added, left, right = factors
            self.multiply(call, left, right)
            self.join([added.held, self.memories.get(_memory(call.out))])
            self.memories.pop(_memory(call.out), None)

    def see_lerp(self, call: _Call, factors: list[_Factor]) -> None:
        """Finds y + s * (x - y)."""
        if len(factors) == 3:
            y, x, s = factors
            if s.held is not None and s.is_of(SIGMOID) and s.tensor.dim():
                s.held.activation.is_taken = True
                product = self.note(call, "sigmoid_lerp", {"x": x.tensor, "y": y.tensor, "gate": s.tensor})
                product.activations = (s.held.activation,)

    def see_glu(self, call: _Call, factors: list[_Factor]) -> None:
        self.note(call, "glu", {"input": call.args[0]})

    def see_ours(self, call: _Call) -> None:
        """Notes an operator of sigtorch's, which stands for a kernel."""
        name = call.func.overloadpacket.__name__
        if name in FUNCTIONS:
            self.note(call, name, _tensors(call), fused=True)
        elif name in SIGMOIDS:
            self.see_sigmoid(call, [], fused=True)
        elif name in LOSSES:
            self.see_loss(call, [], fused=True)

    def note(
        self,
        call: _Call,
        op: str,
        tensors: dict[str, torch.Tensor],
        *,
        obstacle: str | None = None,
        fused: bool = False,
    ) -> Event:
        """Notes a product."""
        obstacle = obstacle or obstacle_of(op, [*tensors.values()])
        operands = tuple(_operand(name, t) for name, t in tensors.items())
        is_fused, in_place = fused and obstacle is None, call.func._schema.is_mutable
        product = Event(
            "swiglu" if op.startswith("swiglu") else op, operands, self.seen(), is_fused, in_place, obstacle
        )
        self.products.append(product)
        return product

    def seen(self) -> Seen:
        return seen_from(Watch.run.__code__)


def obstacle_of(op: str, tensors: Sequence[torch.Tensor]) -> str | None:
    """Returns why no kernel takes these operands on a CUDA device; None if one does."""
    if _backend.chosen() == "aten":
        return 'the backend is "aten"'
    if not _eligible.have_plain_keys(tensors) or _eligible.transformed():
        return "its operands are no plain tensors, or transformed"
    dtypes = [t.dtype for t in tensors]
    if not _backend.kernels_take(dtypes):
        return f"no kernel takes {' and '.join(dict.fromkeys(str(d).removeprefix('torch.') for d in dtypes))}"
    if len({t.device for t in tensors}) > 1:
        return "its operands are on several devices"
    if tensors[0].is_cuda and _backend.select(*tensors) == "aten":
        return f"no kernel runs on {tensors[0].device}"
    if not FUNCTIONS[op].fuses(*tensors):
        return "no kernel takes its shapes"
    return None


def _arguments(activation: str, x: torch.Tensor, s: torch.Tensor) -> tuple[str, dict[str, torch.Tensor]]:
    """Returns the operator for the product of a sigmoid or silu, and its arguments."""
    return ("sigmoid_gate", {"x": x, "gate": s}) if activation == SIGMOID else ("swiglu", {"gate": s, "up": x})


def _tensors(call: _Call) -> dict[str, torch.Tensor]:
    """Returns the tensors that an operator is given, by their names in PyTorch's function."""
    names = ["input" if p.name == "self" else p.name for p in call.func._schema.arguments]
    return {name: a for name, a in zip(names, call.args, strict=False) if isinstance(a, torch.Tensor)}


def _operands(call: _Call) -> tuple[Operand, ...]:
    return tuple(_operand(name, t) for name, t in _tensors(call).items())


def _operand(name: str, t: torch.Tensor) -> Operand:
    return Operand(name, tuple(t.shape), t.dtype, t.device)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Returns the tensors that an operator changes, by its schema."""
    if not func._schema.is_mutable:
        return []
    given = [(p, args[i] if i < len(args) else kwargs.get(p.name)) for i, p in enumerate(func._schema.arguments)]
    changed = [value for p, value in given if p.alias_info is not None and p.alias_info.is_write]
    return [t for value in changed for t in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(t, torch.Tensor)]  # fmt: skip


def _memory(t: Any) -> int:
    """Returns a number for the memory of a plain tensor; 0 for anything else."""
    if type(t) in _eligible.PLAIN_TYPES and t.layout == torch.strided:
        return t.untyped_storage()._cdata  # type: ignore[no-any-return]
    return 0


_eligible.REPORTING_MODES.add(Watch)
