"""Finds the products of a sigmoid or silu in a function's source, and what has to be computed otherwise for them."""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

import torch.nn.functional as F

from sigtorch.plugin import activated, source
from sigtorch.plugin.changes import Changes, position
from sigtorch.plugin.clamped import find_clamped
from sigtorch.plugin.flow import Variables, may_read
from sigtorch.plugin.found import CHANGED_REASON, Found, Helper, Site
from sigtorch.plugin.reading import UNKNOWN, Reader, Rewriting, Unknown
from sigtorch.plugin.recognise import (
    LEADS_TO_PRODUCTS,
    SIGMOID,
    SILU,
    Activation,
    Kind,
    attribute_kind,
)
from sigtorch.plugin.syntax import (
    assigned,
    complement_of,
    file_name,
    is_lerp_method,
    view_arguments,
    viewed,
)

# Nodes whose parts are evaluated in the order in which they stand, so that only those before a product run before it.
_IN_ORDER = (
    ast.Assign, ast.Return, ast.Expr, ast.Call, ast.BinOp, ast.UnaryOp, ast.Starred, ast.Tuple, ast.keyword, ast.Attribute
)  # fmt: skip
_FUSED = {SIGMOID: "sigtorch.sigmoid_gate", SILU: "sigtorch.swiglu", UNKNOWN: "a product"}


class _Passed(NamedTuple):
    """An assignment that gives what a variable holds to others, maybe as views."""

    statement: ast.stmt
    names: list[str]


class Finder(Reader):
    """Searches one function; its arguments are a :class:`Reader`'s."""

    def __init__(
        self, cls: Any, function: Any, definition: ast.FunctionDef, kinds: dict[str, Kind] | None, rewriting: Rewriting
    ) -> None:
        super().__init__(cls, function, definition, kinds, rewriting)
        self.changes = Changes(definition, self.kinds, self.self_name)
        self.scopes = [Variables(n) for n in ast.walk(definition) if isinstance(n, ast.FunctionDef)]
        self.found = Found()
        self.uses: dict[ast.AST, ast.AST] = {}  # the products, by what is multiplied
        self.passed: dict[ast.AST, _Passed] = {}  # by the load of a variable
        self.activations: dict[ast.AST, Activation | Unknown] = {}  # of products
        self.refused: set[ast.AST] = set()

    def find(self, *, defers_returns: bool = False) -> Found:
        """Finds all; ``defers_returns`` also puts off what the function returns."""
        for node in ast.walk(self.definition):
            if pair := self.interpolated(node):
                self.uses |= dict.fromkeys(pair, node)
            for factor in self.factors(node) or ():
                self.uses.setdefault(viewed(factor), node)  # an interpolation comes before its terms
        for node in self.scopes[0].statements if defers_returns else ():
            if isinstance(node, ast.Return) and node.value is not None:
                self.uses[viewed(node.value)] = node
        for variables in self.scopes:
            self.find_held(variables)
        for core, product in self.uses.items():
            if isinstance(core, ast.Call):
                self.put_off_inline(core, product)
        for variables in self.scopes:
            self.find_reads(variables)
        self.found.defers_return = any(isinstance(product, ast.Return) for product in self.activations)
        self.find_calls()
        self.found.clamped = [] if defers_returns else find_clamped(self)
        self.note_sites()
        return self.found

    # Assigned activations

    def find_held(self, variables: Variables) -> None:
        """Puts off the activations that variables hold for products alone."""
        assignments = [(s, *pair) for s in variables.statements for pair in assigned(s)]
        for statement, names, value in assignments:
            core = viewed(value)
            if isinstance(core, ast.Name) and core is not value:
                self.passed[core] = _Passed(statement, names)
        for statement, names, value in assignments:
            core = viewed(value)
            if isinstance(core, ast.Call) and (activation := self.activation(core)):
                self.hold(variables, statement, names, value, core, activation)

    def hold(
        self,
        variables: Variables,
        statement: ast.stmt,
        names: list[str],
        value: ast.expr,
        core: ast.Call,
        activation: Activation | Unknown,
    ) -> None:
        found = self.products_of(variables, statement, names)
        if not found or self.is_refused(core, found):
            return
        for product in found:
            self.activations.setdefault(product, activation)
        early = len(found) > 1 or not self.nothing_runs_between(variables, statement, value, found[0])
        self.put_off(core, activated.activated_early if early else activated.activated)

    def products_of(self, variables: Variables, statement: ast.stmt, names: list[str]) -> list[ast.AST]:
        """Returns the products that take what a statement assigns; none if anything else reads it."""
        found: list[ast.AST] = []
        if variables.shared.intersection(names):
            return []
        for name in names:
            for load in variables.reached(statement, name):
                more = [self.uses[load]] if load in self.uses else []
                if load in self.passed:
                    more = self.products_of(variables, *self.passed[load])
                if not more:
                    return []
                found += more
        return found

    def is_refused(self, core: ast.Call, found: list[ast.AST]) -> bool:
        """Tells whether a gate visibly changes in place, and notes the products that are left for it."""
        statements = {v.statement_of[p] for p in found for v in self.scopes if p in v.statement_of}
        if not any(self.changes.affect(g, s) for g in self.gate(core) for s in statements or {self.definition}):
            return False
        self.refused.update(found)
        return True

    def nothing_runs_between(
        self, variables: Variables, assignment: ast.stmt, value: ast.expr, product: ast.AST
    ) -> bool:
        """Tells whether no code of the user's runs after an assigned sigmoid and before its one product."""
        user = variables.statement_of.get(product)
        between = None if user is None else variables.between(assignment, user)
        if user is None or between is None or isinstance(product, ast.Return):
            return False
        if not all(isinstance(s, ast.Assign) and self.is_inert(s.value, *s.targets) for s in between):
            return False
        if not self.is_inert(*view_arguments(value)) or isinstance(assignment.value, ast.Tuple):  # type: ignore[attr-defined]
            return False
        if not self.is_inert(*(part for f in self.operands(product) for part in (*view_arguments(f), viewed(f)))):
            return False
        node: ast.AST = user
        while node is not product:
            if not isinstance(node, _IN_ORDER):
                return False
            children: list[ast.AST] = [node.value] if isinstance(node, ast.Assign) else [*ast.iter_child_nodes(node)]
            next_one = next(i for i, child in enumerate(children) if product in ast.walk(child))
            if not self.is_inert(*children[:next_one]):
                return False
            node = children[next_one]
        return True

    def operands(self, product: ast.AST) -> list[ast.expr]:
        """Returns all that a product, or an interpolation, is computed from."""
        if isinstance(product, ast.Call):
            is_method = len(product.args) == 1 or is_lerp_method(product)
            owner = [product.func.value] if isinstance(product.func, ast.Attribute) and is_method else []
            return [*owner, *product.args]
        if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Add):
            terms: list[Any] = [product.left, product.right]
            factors = [f for term in terms for f in (term.left, term.right)]
            return [f.right if complement_of(f) else f for f in factors]
        return [*(self.factors(product) or ())]

    def find_reads(self, variables: Variables) -> None:
        """Notes where else variables are read that hold what is put off: on other paths than those to the products."""
        assignments = [(s, *pair) for s in variables.statements for pair in assigned(s)]
        since: dict[str, list[ast.stmt]] = {}  # the assignments of what is put off, or a view of that, by variable
        count = -1
        while count != (count := sum(map(len, since.values()))):  # views of views
            for statement, names, value in assignments:
                core = viewed(value)
                passes = core in self.passed and isinstance(core, ast.Name) and core.id in since
                for name in names if passes or self.holds(core) else ():
                    if statement not in since.setdefault(name, []):
                        since[name].append(statement)
        read: list[ast.AST] = []
        for name, statements in since.items():
            taken = {load for load, product in self.uses.items() if product in self.activations} | self.passed.keys()
            read += [
                n for n in variables.loads_of(name)
                if n not in taken and any(may_read(n, s, variables) for s in statements)
            ]  # fmt: skip
            self.found.added_to.update(variables.additions_to(name))
        self.found.read.update(read)
        # What is read after the product may have changed by then.
        if read or self.found.added_to:
            early = [viewed(value) for _, _, value in assignments if viewed(value) in self.found.put_off]
            self.found.put_off.update(dict.fromkeys(early, activated.activated_early))

    def holds(self, core: ast.expr) -> bool:
        return core in self.found.put_off or core in self.found.deferred

    # Activations within a product

    def put_off_inline(self, core: ast.Call, product: ast.AST) -> None:
        activation = self.activation(core)
        if activation is None:
            return
        factors = self.factors(product)
        if factors is not None and viewed(factors.left) is core:
            other = viewed(factors.right)
            if isinstance(other, ast.Call) and self.activation(other) not in (None, UNKNOWN):
                return  # of two sigmoids or silus the right one is fused
        if self.is_refused(core, [product]):
            return
        self.activations[product] = activation
        if factors is None:
            is_last = isinstance(product, ast.Return) and self.is_used_up(core, product)
            self.put_off(core, activated.activated_at_last if is_last else activated.activated_early)
            return
        inert = self.is_inert(*view_arguments(factors.right))
        if viewed(factors.left) is core:
            inert = self.is_inert(*view_arguments(factors.left), factors.right)
        self.put_off(core, activated.activated if inert else activated.activated_early)

    def is_used_up(self, core: ast.Call, statement: ast.Return) -> bool:
        """Tells whether a function's end drops the variable of whose value it returns a sigmoid or silu."""
        variables, argument = self.scopes[0], core.args[0] if core.args else core.func
        if not isinstance(argument, ast.Name) or argument.id in variables.shared:
            return False
        # Its finally may read the variable.
        in_try = any(type(b.holder).__name__ in ("Try", "TryStar") for b in variables.blocks[statement])
        is_local = argument.id in self.function.__code__.co_varnames
        return is_local and not in_try and self.is_inert(*view_arguments(statement.value))  # type: ignore[arg-type]

    def put_off(self, core: ast.Call, helper: Helper) -> None:
        if self.is_deferred(core.func):
            self.found.deferred.add(core)
        else:
            self.found.put_off[core] = helper

    # What else is written anew

    def find_calls(self) -> None:
        for node in ast.walk(self.definition):
            if not isinstance(node, ast.Call) or self.holds(node):
                continue
            if source.resolve(node.func, self.function) is F.glu:
                self.found.glus.add(node)
                self.found.sites.append(Site(self.line_of(node), "sigtorch.glu"))
            elif sites := self.called_sites(node.func):
                self.found.called.add(node)
                self.found.sites.extend(sites)

    def called_sites(self, callee: ast.expr) -> list[Site]:
        """Returns the products in a function that is called, which no class of the model holds as a method."""
        if isinstance(callee, ast.Attribute):
            owner = callee.value
            if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super":
                every = [vars(base).get(callee.attr) for base in self.cls.__mro__[1:]]
                return [s for f in every for s in self.rewriting.sites_in(f, self.cls)]
            if self.is_self(owner) and not self.knows_attributes:
                held = inspect.getattr_static(self.cls, callee.attr, None)
                return self.rewriting.sites_in(held.__func__ if isinstance(held, staticmethod) else held, self.cls)
            if attribute_kind(owner, self.kinds, self.self_name) == LEADS_TO_PRODUCTS:
                return [Site("")]
            if isinstance(base := source.resolve(owner, self.function), type):
                return self.rewriting.sites_in(inspect.getattr_static(base, callee.attr, None), base)
        if attribute_kind(callee, self.kinds, self.self_name) == LEADS_TO_PRODUCTS:
            return [Site("")]
        return self.rewriting.sites_in(source.resolve(callee, self.function), object)

    def note_sites(self) -> None:
        # A product in the sources of a clamped SwiGLU is another one.
        within = {n for c in self.found.clamped for s in c.statements for n in ast.walk(s)}
        within -= {n for c in self.found.clamped for s in c.before for n in ast.walk(s)}
        nodes = [n for n in ast.walk(self.definition) if n in self.activations or n in self.refused]
        for product in sorted((n for n in nodes if not isinstance(n, ast.Return)), key=position):
            if product not in self.activations:
                self.found.sites.append(Site(self.line_of(product), "", CHANGED_REASON))
                continue
            fused = _FUSED[self.activations[product]]
            if sigmoids := self.interpolated(product):
                fused = "sigtorch.sigmoid_lerp"
                self.found.interpolations.add(product)
                rests = [n for n in ast.walk(product) if isinstance(n, ast.BinOp) and n.right in sigmoids]
                self.found.complements.update(n for n in rests if isinstance(n.op, ast.Sub))
            else:
                self.found.products.add(product)
            if product in within:
                fused = "sigtorch.swiglu"
            self.found.sites.append(Site(self.line_of(product), fused))
        for node in ast.walk(self.definition):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and node not in self.found.interpolations:
                self.note_sum(node)

    def note_sum(self, node: ast.BinOp) -> None:
        """Notes a sum of a tensor and a product that may be a gate."""
        for term in (node.right, node.left):
            gated = term in self.found.products and isinstance(term, ast.BinOp) and self.activations[term] != SILU
            if gated and (term is node.right or self.is_inert(node.right)):
                self.found.terms.add(term)
                self.found.sums.add(node)
                return

    def line_of(self, node: Any) -> str:
        return f"{file_name(self.function)}:{node.lineno}"
