"""Reads PTX text: one kernel, as a list of instructions, and what it declares.

Nothing is said here of what an instruction does; see ``instructions``.
"""

import functools
import re
from dataclasses import dataclass, field

import numpy as np

from .fault import Fault
from .values import TYPES, UNSIGNED, Type

# The statements of a kernel's body. Comments are gone, but for LLVM's "implicit-def", made an instruction `undef`.
_TOKEN = re.compile(
    r"""
      \s+ | ; | \{ | \}
    | (?P<label> [$\w]+) \s* : (?!:)
    | \.(?:loc|file) \b [^\n]*
    | (?P<end> \.section)
    | \.(?:pragma|param) [^;]* ;
    | \.reg \s+ \.(?P<register_type>\w+) \s+ (?P<registers>[^;]*) ;
    | \.local \s+ \.align \s+ \d+ \s+ \.b8 \s+ (?P<local>\w+) \[ (?P<local_bytes>\d+) \] ;
    | (?P<instruction> [@a-z] [^;]*) ;
    """,
    re.VERBOSE,
)
_HEAD = re.compile(r"\.entry\s+(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)(?P<directives>[^{]*)\{")
_TABLE = re.compile(r"\.global \.align \d+ \.[bus](\d+) ([\w$]+)\[(\d+)\] = \{([\d, ]*)\};")
_INSTRUCTION = re.compile(r"(?:@(?P<guard>!?\s*[%\w]+)\s+)?(?P<opcode>[a-z]\w*[\w.:]*)\s*(?P<operands>.*)$")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s][^,]*")
_ADDRESS = re.compile(r"\[\s*([%$\w~]+)\s*(?:\+?\s*(-?\w+))?\s*\]")
_NAME = re.compile(r"(?<![\w.])[%$_A-Za-z][\w$.]*")
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}


@dataclass(frozen=True)
class Address:
    """An operand [base + offset]; base is a register, a parameter or a symbol."""

    base: str
    offset: int


@dataclass(frozen=True)
class Instruction:
    """``@guard name.modifiers.types operands``, for example ``@%p1 ld.global.v2.b32 {%r1, %r2}, [%rd1+8]``.

    An operand is a string (register, number or label), an Address, or a tuple of strings. ``vector`` is 1 where no
    modifier says otherwise.
    """

    text: str
    guard: str
    name: str
    modifiers: frozenset[str]
    types: tuple[Type, ...]
    vector: int
    operands: tuple

    @property
    def destinations(self):
        """The registers written; for instructions that write none, whatever comes first and is no address."""
        first = self.operands[0] if self.operands and isinstance(self.operands[0], tuple) else self.operands[:1]
        return [name for operand in first if isinstance(operand, str) for name in operand.split("|")]


@dataclass(eq=False)
class Program:
    """One kernel. ``widths`` are registers' bytes, None for predicates; ``symbols`` are addresses."""

    name: str
    parameters: list[str]
    threads: int  # of a CTA
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int | None] = field(default_factory=dict)
    symbols: dict[str, int] = field(default_factory=lambda: {"global_smem": 0})
    tables: list[np.ndarray] = field(default_factory=list)  # constant arrays in global memory
    local_bytes: int = 0  # of a thread

    @functools.cached_property
    def undefined(self):
        """Registers that no instruction writes, LLVM's undef: any value does."""
        return set(self.widths) - {name for instruction in self.code for name in instruction.destinations}

    @functools.cached_property
    def communicates(self):
        """Tells whether its CTAs might wait for one another, so that they cannot run in lockstep."""
        return any(
            (i.name == "atom" and not i.modifiers & {"shared", "shared::cta"})
            or (i.name == "ld" and i.modifiers & {"volatile", "acquire"})
            for i in self.code
        )


@functools.cache
def read(text):
    """The Program of a PTX module with one kernel."""
    text = re.sub(r"//[ \t]*implicit-def: ([%\w]+)", r"undef \1;", text)
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    head = _HEAD.search(text)
    if not head:
        raise Fault("no kernel in this text")
    # A parameter that is an array keeps its [size] in the name, so that no load finds it
    parameters = [parameter.split()[-1] for parameter in head["parameters"].split(",") if parameter.strip()]
    threads = re.search(r"\.(?:req|max)ntid (\d+)", head["directives"])
    program = Program(head["name"], parameters, int(threads.group(1)))
    for bits, name, length, given in _TABLE.findall(text):
        table = np.zeros(int(length), UNSIGNED[int(bits) // 8])
        numbers = [int(number) for number in given.split(",")]
        table[: len(numbers)] = numbers
        program.tables.append(table)
        program.symbols[name] = table.ctypes.data
    _Body(program).read(text[head.end() :])
    return program


def _is_no_modifier(part):
    """Types and vectors have fields of their own, and caches are not modelled."""
    return part in TYPES or part in _VECTORS or part.startswith(("L1::", "L2::"))


class _Body:
    """Reads a kernel's body. Names declared in inner braces, as inline assembly has them, are made unique."""

    def __init__(self, program):
        self.program = program
        self.scopes = [{}]
        self.families = {}  # registers declared by their number, as %r<100>: width by prefix
        self.declared = 0

    def read(self, text):
        position = 0
        while self.scopes:  # up to the closing brace
            token = _TOKEN.match(text, position)
            if not token or token["end"]:
                raise Fault(f"cannot parse: {text[position : position + 80]}")
            position = token.end()
            self._statement(token)

    def _statement(self, token):
        program = self.program
        if token.group() == "{":
            self.scopes.append({})
        elif token.group() == "}":
            self.scopes.pop()
        elif token["label"]:
            if token["label"] in program.labels:
                raise Fault(f"label twice: {token['label']}")
            program.labels[token["label"]] = len(program.code)
        elif token["register_type"]:
            if token["register_type"] not in TYPES:
                raise Fault(f"registers not modelled: {token.group()}")
            width = TYPES[token["register_type"]].width or None
            for declaration in token["registers"].split(","):
                self._declare(declaration.strip(), width)
        elif token["local"]:
            program.symbols[token["local"]] = program.local_bytes
            program.local_bytes += int(token["local_bytes"]) + 15 & ~15
        elif token["instruction"]:
            program.code.append(self._instruction(" ".join(token["instruction"].split())))

    def _declare(self, declaration, width):
        name, number = re.fullmatch(r"([%$\w]+)(?:<(\d+)>)?", declaration).groups()
        outermost = len(self.scopes) == 1
        if number and outermost:
            self.families[name] = width
            return
        for declared in [f"{name}{i}" for i in range(int(number))] if number else [name]:
            self.declared += 1
            unique = declared if outermost else f"{declared}~{self.declared}"
            self.scopes[-1][declared] = unique
            self.program.widths[unique] = width

    def _rename(self, match):
        name = match.group()
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        family = re.match(r"(.*?)\d+$", name)
        if family and family.group(1) in self.families:
            self.program.widths[name] = self.families[family.group(1)]
        return name

    def _instruction(self, text):
        parsed = _INSTRUCTION.match(text)
        if not parsed:
            raise Fault(f"cannot parse: {text}")
        name, *parts = parsed["opcode"].split(".")
        vectors = [_VECTORS[part] for part in parts if part in _VECTORS]
        operands = tuple(self._operand(operand) for operand in _OPERAND.findall(parsed["operands"]))
        if "L2::cache_hint" in parts:
            operands = operands[:-1]  # a policy, of no consequence here
        return Instruction(
            text=text,
            guard=re.sub(r"[%\w]+", self._rename, (parsed["guard"] or "").replace(" ", "")),
            name=name,
            modifiers=frozenset(part for part in parts if not _is_no_modifier(part)),
            types=tuple(TYPES[part] for part in parts if part in TYPES),
            vector=min(vectors, default=1),
            operands=operands,
        )

    def _operand(self, text):
        if text[0] == "{":
            return tuple(self._operand(part.strip()) for part in text[1:-1].split(","))
        text = _NAME.sub(self._rename, text.strip())
        address = _ADDRESS.fullmatch(text)
        if address:
            return Address(address.group(1), int(address.group(2) or "0", 0))
        return text
