"""Train a small GPT on bytes: SwiGLU feed-forwards, and a sigmoid gate on what attention brings, before its projection.

It reads the Python standard library's own source, or with --data a file, or every file in a folder that is not hidden.
A twentieth is held out and only measured, whole files of it, the same ones each time; of a single file its end.
Example: ``python scripts/train_text.py --steps 400 --compare``
"""

import argparse
import math
import statistics
import sysconfig
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import _stdout
import _training
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sigtorch

STDLIB = Path(sysconfig.get_path("stdlib"))
# Installed packages, tests, which not every machine has, and tables of characters and topics.
NOT_READ = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
COMPARED_STEPS = 300  # in which the two losses may be a thousandth apart; rounding adds up with every step
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


class TorchMLP(sigtorch.nn.GatedMLP):
    """The same parameters, computed with by PyTorch's own operators: for --compare."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# The two places where a run uses sigtorch, or does without: the feed-forward, and the gate on attention.
RUNS = {
    "sigtorch": (sigtorch.nn.GatedMLP, sigtorch.sigmoid_gate),
    "torch": (TorchMLP, lambda x, gate: torch.sigmoid(gate) * x),
}


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of features by an angle that grows with the position: attention then sees distances."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Attention whose output passes a sigmoid gate, then a SwiGLU feed-forward; each adds to the stream."""

    def __init__(self, dim: int, heads: int, run: str):
        super().__init__()
        mlp, self.gate = RUNS[run]
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.projections = nn.Linear(dim, 4 * dim, bias=False)  # queries, keys, values, gates
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = mlp(dim, 8 * math.ceil(dim / 3))  # three matrices as large as a plain MLP's two

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        *parts, gate = self.projections(self.attention_norm(x)).chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = (rotate(F.rms_norm(part, part.shape[-1:]), angles) for part in (q, k))
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.out(self.gate(attention, gate))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Bytes in, a score for each next byte out."""

    def __init__(self, dim: int, layers: int, heads: int, run: str):
        super().__init__()
        self.embedding = nn.Embedding(256, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, run) for _ in range(layers))
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
    return data[starts[:, None] + torch.arange(args.context + 1)].long().to(args.device)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross entropy of each byte after the ones before it, in nats."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Text, args: argparse.Namespace) -> float:
    """Bits per byte of the held-out windows, each read from its own beginning."""
    starts = torch.linspace(0, len(text.held_out) - args.context - 1, VALIDATION_WINDOWS, dtype=torch.float64)
    batches = [windows(text.held_out, part, args) for part in starts.long().split(64)]
    return statistics.fmean(loss_of(model, tokens).item() for tokens in batches) / math.log(2)


@torch.no_grad()
def sample(model: nn.Module, args: argparse.Namespace) -> str:
    """Let the model go on from the prompt, byte by byte."""
    text = list(PROMPT)
    while len(text) < SAMPLE:
        scores = model(torch.tensor([text[-args.context :]], device=args.device))[0, -1].float()
        text.append(int(torch.multinomial(torch.softmax(scores / 0.8, dim=-1), 1)))
    return bytes(text).decode(errors="replace")


class Run:
    """A model in training, with what was measured on the way."""

    def __init__(self, name: str, args: argparse.Namespace):
        _training.seed_everything(args.seed)
        model = GPT(args.dim, args.layers, args.heads, name)
        self.name, self.model = name, model.to(args.device, _training.DTYPES[args.dtype])
        self.losses, self.seconds, self.rows = [], [], []  # of each step, of each step, of each measurement
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
        warmup = min(50, args.steps // 4 + 1)  # steps up, while the rest of them go down half a cosine
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda n: min((n + 1) / warmup, 0.51 + 0.49 * math.cos(math.pi * n / args.steps))
        )

    def step(self, tokens: Tensor) -> float:
        """One step down the slope; answers the loss before it."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_of(self.model, tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())  # now the loss has been read: a GPU has finished, too
        self.seconds.append(time.perf_counter() - started)
        return self.losses[-1]

    def measure(self, text: Text, args: argparse.Namespace) -> None:
        """Add a row about the steps since the last one."""
        since = slice(self.rows[-1]["step"] if self.rows else 0, None)
        row = {"run": self.name, "step": len(self.losses)}
        row["train_bits_per_byte"] = statistics.fmean(self.losses[since]) / math.log(2)
        row["validation_bits_per_byte"] = evaluate(self.model, text, args)
        row["tokens_per_second"] = round(args.batch * args.context / statistics.fmean(self.seconds[since]))
        self.rows.append(row | {"seconds": round(sum(self.seconds), 3)})


def train(names: list[str], text: Text, args: argparse.Namespace) -> list[Run]:
    """Train the runs on the same batches, taking turns, so that a busy machine slows all of them alike."""
    runs = [Run(name, args) for name in names]
    random = torch.Generator().manual_seed(args.seed)
    every = math.ceil(args.steps / MEASUREMENTS)
    with _training.progress(names[0] if len(names) == 1 else "both", args.steps) as step:
        for number in range(1, args.steps + 1):
            starts = torch.randint(len(text.train) - args.context, (args.batch,), generator=random)
            for run in runs if number % 2 else reversed(runs):
                loss = run.step(windows(text.train, starts, args))
                if not math.isfinite(loss):
                    _training.give_up(loss, f"step {number}")
                if number % every == 0 or number == args.steps:
                    run.measure(text, args)
            shown = {"tokens/s": args.batch * args.context / statistics.median(runs[0].seconds[-every:])}
            for row in runs[0].rows[-1:]:
                shown["bits"] = row["validation_bits_per_byte"]
            step(**shown, loss=runs[0].losses[-1])
    return runs


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Text]:
    """Read the options and the text, or end in one line about the first that makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole = parser.add_argument, _training.positive_int
    add("--data", type=Path, metavar="PATH", help="file or folder to learn from (Python's standard library)")
    add("--dim", type=whole, default=128, help="features of a token (%(default)s)")
    add("--layers", type=whole, default=4, help="blocks (%(default)s)")
    add("--heads", type=whole, default=4, help="attention heads of a block (%(default)s)")
    add("--context", type=whole, default=128, help="bytes that attention sees (%(default)s)")
    add("--batch", type=whole, default=16, help="windows a step (%(default)s)")
    add("--steps", type=whole, default=1000, help="(%(default)s)")
    add("--lr", type=_training.positive_float, default=3e-3, help="highest learning rate (%(default)s)")
    _training.add_options(parser, out="runs/text", dtypes=("float32", "bfloat16"))
    args = parser.parse_args(argv)
    if args.dim % (2 * args.heads):
        parser.error(f"argument --dim: {args.dim} features don't make {args.heads} heads of an even width")
    if args.layers * args.dim**2 > 10**7:
        parser.error(f"argument --dim: {args.layers} layers of {args.dim} features are more than 100,000,000 weights")
    try:
        text = load(args.data, args.context)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")
    _training.check_backend(parser, args)
    return args, text


def main() -> None:
    """Train, show and write what came out."""
    args, text = parse()
    with sigtorch.use_backend(args.backend):
        runs = train(["sigtorch", "torch"] if args.compare else ["sigtorch"], text, args)
        rows = [row for run in runs for row in run.rows]
        _training.write_csv(args.out / "metrics.csv", rows)
        _training.plot_curves(args.out / "curves.png", rows, x="step", panels=PANELS)
        config = {**vars(args), "device": str(args.device), "out": str(args.out), "data": args.data and str(args.data)}
        _training.save_checkpoint(args.out / "checkpoint.pt", runs[0].model, config)
        report(runs, text, args)
        _training.seed_everything(args.seed)
        print(f"What it writes after {PROMPT.decode()!r}:\n\n{sample(runs[0].model, args)}\n")
    print(f"Metrics, curves and checkpoint are in {args.out}/")


def report(runs: list[Run], text: Text, args: argparse.Namespace) -> None:
    """Print a line for each run, and how far apart two of them are."""
    shown = [
        {
            "run": run.name,
            "bits per byte": f"{run.rows[-1]['validation_bits_per_byte']:.3f}",
            "seconds": f"{sum(run.seconds):.1f}",
            "ms a step": f"{1000 * statistics.median(run.seconds):.1f}",
            "device": args.device,
        }
        for run in runs
    ]
    if args.compare:
        from benchmark import peak_extra_bytes  # slow to import, and only needed here

        tokens = windows(text.train, torch.arange(args.batch), args)
        for run, row in zip(runs, shown, strict=True):
            peak = peak_extra_bytes(lambda model=run.model: loss_of(model, tokens).backward(), args.device)
            row["peak memory a step"] = f"{peak / 2**20:.2f} MiB"
    _training.show_table(f"GPT on bytes, seed {args.seed}, {args.dtype}", shown)
    print(f"Trained on {len(text.train):,} bytes, measured on windows of {len(text.held_out):,} others")
    if args.compare:
        ours, theirs = (run.losses[:COMPARED_STEPS] for run in runs)
        apart = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
        print(f"Largest relative difference between the two losses in the first {len(ours)} steps: {apart:.2g}")


if __name__ == "__main__":
    _stdout.escape_what_it_lacks()
    main()
