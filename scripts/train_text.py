"""Train a small GPT on bytes: SwiGLU feed-forwards, and a sigmoid gate on what attention brings, before its projection.

With --attention sigmoid, the weights of attention are sigmoids, in place of a softmax.
It reads the Python standard library's own source, or with --data a file, or every file in a folder that is not hidden.
A twentieth is held out and only measured, whole files of it, the same ones each time; of a single file its end.
Examples: python scripts/train_text.py --steps 400 --compare
torchrun --nproc-per-node 4 scripts/train_text.py --parallel fsdp --out runs/text-2
"""

import _start  # isort: skip
import argparse
import math
import sysconfig
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import _data
import _distributed
import _folder
import _options
import _output
import _training
import torch
from _measure import bound_by, peak_extra_bytes
from torch import Tensor, nn
from torch.nn import functional as F

import sigtorch

STDLIB = Path(sysconfig.get_path("stdlib"))
# Installed packages, tests, which not every machine has, and tables of characters and topics.
NOT_READ = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
VALIDATION_WINDOWS = 512  # spread evenly over what is held out; a multiple of the 64 that are read at once
MEASUREMENTS = 12  # of a training
PROMPT, SAMPLE = b"def ", 400  # bytes that it goes on from, and how many there are then
PANELS = {
    "bits per byte": ("validation_bits_per_byte", "train_bits_per_byte"),
    "tokens per second": ("tokens_per_second",),
}


class Text(NamedTuple):
    """Bytes, one a token."""

    train: Tensor
    held_out: Tensor


def load(place: Path | None, context: int) -> Text:
    """Read the text and hold a twentieth of it out: whole files, chosen by what their names hash to."""
    root = place or STDLIB
    if not root.exists():
        raise ValueError(f"there is no file or folder {str(root)!r}")
    if root.is_file():
        data = root.read_bytes()
        cut = len(data) - len(data) // 20
        parts = data[:cut], data[cut:]
    else:
        names = [path.relative_to(root) for path in root.rglob("*" if place else "*.py") if path.is_file()]
        left_out = (lambda part: part.startswith(".")) if place else NOT_READ.__contains__
        names = [name for name in names if not any(map(left_out, name.parts))]
        names.sort(key=lambda name: (zlib.crc32(name.as_posix().encode()), name))
        files = [(root / name).read_bytes() for name in names]
        held, wanted = 0, sum(map(len, files)) / 20
        while held < len(files) - 1 and sum(map(len, files[:held])) < wanted:
            held += 1
        parts = b"\n".join(files[held:]), b"\n".join(files[:held])
    if min(map(len, parts)) <= context:
        there = f"{len(parts[0]):,} bytes to train on and {len(parts[1]):,} held out"
        raise ValueError(f"{there}, where --context {context} wants more of either")
    return Text(*(torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts))


class MLP(nn.Module):
    """sigtorch.nn.GatedMLP in plain PyTorch."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, bias: float) -> Tensor:
    """sigtorch.sigmoid_attention in plain PyTorch."""
    weights = torch.sigmoid(q @ k.mT * q.shape[-1] ** -0.5 + bias)
    return (weights.tril() if is_causal else weights) @ v


class Layers(NamedTuple):
    """The places where a run uses sigtorch, or does without."""

    mlp: Callable[[int, int], nn.Module]  # the feed-forward
    gate: Callable[[Tensor, Tensor], Tensor]  # on attention
    sigmoid_attention: Callable[..., Tensor]


PLAIN = Layers(MLP, lambda x, gate: torch.sigmoid(gate) * x, sigmoid_attention)
OURS = Layers(sigtorch.nn.GatedMLP, sigtorch.sigmoid_gate, sigtorch.sigmoid_attention)
RUNS = {"sigtorch": OURS, "patched": PLAIN, "torch": PLAIN}
Attend = Callable[..., Tensor]
SOFTMAX = partial(F.scaled_dot_product_attention, is_causal=True)


def attention(run: str, args: argparse.Namespace) -> Attend:
    """Return what --attention names. The bias of sigmoids is of the whole context, however short a prompt is."""
    if args.attention == "sigmoid":
        return partial(RUNS[run].sigmoid_attention, is_causal=True, bias=-math.log(args.context))
    return SOFTMAX


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of features by an angle that grows with the position: attention then sees distances."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Attention whose output passes a sigmoid gate, then a SwiGLU feed-forward; each adds to the stream."""

    def __init__(self, dim: int, heads: int, run: str, attend: Attend):
        super().__init__()
        self.gate, self.heads, self.attend = RUNS[run].gate, heads, attend
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.projections = nn.Linear(dim, 4 * dim, bias=False)  # queries, keys, values, gates
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = RUNS[run].mlp(dim, 8 * math.ceil(dim / 3))  # three matrices as large as a plain MLP's two

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        *parts, gate = self.projections(self.attention_norm(x)).chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = (rotate(F.rms_norm(part, part.shape[-1:]), angles) for part in (q, k))
        attended = self.attend(q, k, v).transpose(1, 2).flatten(-2)
        x = x + self.out(self.gate(attended, gate))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Bytes in, a score for each next byte out."""

    def __init__(self, dim: int, layers: int, heads: int, run: str, attend: Attend = SOFTMAX):
        super().__init__()
        self.embedding = nn.Embedding(256, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, run, attend) for _ in range(layers))
        self.norm = nn.RMSNorm(dim)
        self.pairs = dim // heads // 2
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down_proj.weight")):
                nn.init.zeros_(weight)  # a block starts by adding nothing
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if "embedding" in name else weight.shape[1] ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        place, pair = (torch.arange(n, device=tokens.device) for n in (tokens.shape[1], self.pairs))
        angles = place[:, None] * 1000.0 ** -(pair / self.pairs)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, angles)
        return F.linear(self.norm(x), self.embedding.weight)


def windows(data: Tensor, starts: Tensor, args: argparse.Namespace) -> Tensor:
    """The bytes from these places on, one more than the context, on the device."""
    return _data.move_to(data[starts[:, None] + torch.arange(args.context + 1)], args.device).long()


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross entropy of each byte after the ones before it, in nats."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Text, args: argparse.Namespace) -> float:
    """Bits per byte of the held-out windows, each read from its own beginning; processes share them."""
    starts = torch.linspace(0, len(text.held_out) - args.context - 1, VALIDATION_WINDOWS, dtype=torch.float64).long()
    mine = starts.tensor_split(_distributed.size())[_distributed.rank()]
    # As many parts in every process, for they may gather weights from each other.
    parts = mine.tensor_split(math.ceil(VALIDATION_WINDOWS / _distributed.size() / 64))
    sums = [loss_of(model, windows(text.held_out, part, args)).double() * len(part) for part in parts]
    return _distributed.total(torch.stack(sums).sum()).item() / VALIDATION_WINDOWS / math.log(2)


@torch.no_grad()
def sample(run: _training.Run, weights: dict[str, Tensor], args: argparse.Namespace) -> str:
    """Let the model go on from the prompt, byte by byte, in this process alone."""
    model = GPT(args.dim, args.layers, args.heads, run.name, attention(run.name, args)).to(args.device)
    model.load_state_dict(weights)
    _options.seed_everything(args.seed)
    text = list(PROMPT)
    with run.autocast():
        while len(text) < SAMPLE:
            scores = model(torch.tensor([text[-args.context :]], device=args.device))[0, -1].float()
            text.append(int(torch.multinomial(torch.softmax(scores / 0.8, dim=-1), 1)))
    # What an untrained model writes would move a terminal's cursor.
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in bytes(text).decode(errors="replace"))


def start(name: str, job: _training.Job, args: argparse.Namespace) -> _training.Run:
    """A run at its first step, with the weights that --seed gives."""
    _options.seed_everything(args.seed)
    model = GPT(args.dim, args.layers, args.heads, name, attention(name, args)).to(args.device)
    if name == "patched":
        print(sigtorch.patch(model))
    return _training.Run(name, model, job, args, model.blocks)


def job_of(text: Text, args: argparse.Namespace) -> _training.Job:
    """The task: to go on from windows of the text, drawn anew for every step."""
    every = math.ceil(args.steps / MEASUREMENTS)
    warmup = min(50, args.steps // 4 + 1)  # steps up, while the rest of them go down half a cosine

    def measure(model: nn.Module, step: int, loss: float) -> _output.Row:
        bits = {"train_bits_per_byte": loss / math.log(2), "validation_bits_per_byte": evaluate(model, text, args)}
        return {"step": step} | bits

    return _training.Job(
        steps=args.steps,
        batch_of=lambda step: _data.drawn(args.seed, step, args.batch, args.samples),
        place_of=lambda starts: f"windows at the bytes {_data.first_numbers(starts)} of what it trains on",
        loss=lambda model, starts: loss_of(model, windows(text.train, starts, args)),
        measure=measure,
        measured=lambda step: step % every == 0 or step == args.steps,
        optimizer=partial(torch.optim.AdamW, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1),
        factor=lambda n: min((n + 1) / warmup, 0.51 + 0.49 * math.cos(math.pi * n / args.steps)),
        unit="tokens",
        units=args.batch * args.context,
        progress_figure=("bits", "validation_bits_per_byte"),
    )


def add_options(parser: _options.Parser) -> None:
    """Add the options of the text and of the model."""
    add, whole = parser.add_argument, _options.positive_int
    add("--data", type=Path, metavar="PATH", help="file or folder to learn from (Python's standard library)")
    add("--dim", type=whole, default=128, help="features of a token (%(default)s)")
    add("--layers", type=whole, default=4, help="blocks (%(default)s)")
    add("--heads", type=whole, default=4, help="attention heads of a block (%(default)s)")
    add("--attention", choices=("softmax", "sigmoid"), default="softmax", help="weights of attention (%(default)s)")
    add("--context", type=whole, default=128, help="bytes that attention sees (%(default)s)")
    add("--batch", type=whole, default=16, help="windows a step, of all processes (%(default)s)")
    add("--steps", type=whole, default=1000, help="(%(default)s)")
    add("--lr", type=_options.positive_float, default=3e-3, help="highest learning rate (%(default)s)")


def checked(parser: _options.Parser, args: argparse.Namespace) -> Text:
    """Read the text, or end in one line about the first of these options that makes no sense."""
    if args.dim % (2 * args.heads):
        parser.error(f"--dim {args.dim} does not split into --heads {args.heads} of an even width")
    if args.layers * args.dim**2 > 10**7:
        parser.error(f"argument --dim: --layers {args.layers} of {args.dim} features are more than 100,000,000 weights")
    try:
        text = load(args.data, args.context)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")
    args.samples = len(text.train) - args.context
    _options.check(parser, args, args.samples)
    return text


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Text]:
    """Read the options and the text, or end in one line about the first that makes no sense."""
    parser = _options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    _options.add_options(parser, __file__, out="runs/text")
    parser.set_defaults(clip=1.0)
    args = parser.parse_args(argv)
    return args, checked(parser, args)


def main() -> None:
    """Train, show and write what came out."""
    with _distributed.group():
        args, text = parse()
        with (
            _folder.for_training(args, fixed=("dim", "layers", "heads", "attention")),
            sigtorch.use_backend(args.backend),
        ):
            job = job_of(text, args)
            runs = [start(name, job, args) for name in _training.names(args)]
            _training.train(runs, job, args)
            weights = _training.write(runs, args, partial(_output.plot_curves, x="step", panels=PANELS))
            report(runs, text, args)
            if _distributed.rank() == 0:
                print(f"What it writes after {PROMPT.decode()!r}:\n\n{sample(runs[0], weights, args)}\n")
        print(f"Metrics, curves and weights are in {args.out}/")


def report(runs: list[_training.Run], text: Text, args: argparse.Namespace) -> None:
    """Print a line for each run, and how far apart two of them are."""
    table_rows = []
    for run in runs:
        bits = f"{run.rows[-1]['validation_bits_per_byte']:.3f}"
        table_rows.append({"run": run.name, "bits per byte": bits} | run.summary())
    if args.compare:
        batch = _data.share(_data.drawn(args.seed, 1, args.batch, args.samples), args.accumulate)
        for run, row in zip(runs, table_rows, strict=True):
            row["bound by"] = bound_by(lambda run=run: run.backward(batch), args.device)
            row["memory of a step"] = (
                f"{peak_extra_bytes(lambda run=run: run.backward(batch), args.device) / 2**20:.2f} MiB"
            )
    _output.show_table(f"GPT on bytes, seed {args.seed}, {args.dtype}", table_rows)
    print(f"Trained on {len(text.train):,} bytes, measured on windows of {len(text.held_out):,} others")
    _training.print_difference(runs)


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
