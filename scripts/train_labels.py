"""Train a linear layer of more than 100,000 labels with a BCE: which pairs of words follow in Python's own source.

It reads the Python standard library, or with --data a file or folder. A sample is a place: the words before it go in, and
the pairs of neighbours among the words behind it are its labels, of all pairs that the text has twice. A twentieth is held
out. Beside precision it draws what a step holds in memory, against eager PyTorch with a matrix of targets. Several processes
share the samples of a batch, or with --parallel labels the labels, which may then be too many for one.
Examples: python scripts/train_labels.py --steps 300
torchrun --standalone --nproc-per-node 2 scripts/train_labels.py --parallel labels --out runs/labels-2
"""

import _start  # isort: skip
import argparse
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import _data
import _distributed
import _folder
import _options
import _output
import _shares
import _training
import torch
import train_text
from _measure import peak_extra_bytes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import sigtorch

WORD = re.compile(r"[A-Za-z_]\w*")
BEFORE, BEHIND = 8, 6  # words that are seen, and words whose pairs are to be found
WORDS = 2**15  # that go in: more frequent ones have a feature of their own, the others share the last
RANKS = (1, 3, 5)
MEASUREMENTS = 8  # of a training
PLACES = 1024  # that are measured
SHARES = (8, 4, 2, 1)  # the labels are divided by these, to see how memory grows


class Text(NamedTuple):
    """Words as their numbers, and at each place the pair of it and the next: a label, or -1."""

    words: Tensor
    pairs: Tensor
    labels: int
    held_out: int  # words, the last ones


def load(place: Path | None) -> Text:
    """Read the text, its words and their pairs."""
    text = train_text.load(place, BEFORE)
    words = [WORD.findall(bytes(part.numpy()).decode(errors="replace")) for part in text]
    held_out, words = len(words[1]), words[0] + words[1]
    if held_out <= 4 * (BEFORE + BEHIND):
        raise ValueError(f"there are {held_out} words to hold out, too few to measure on")
    pairs = list(pairwise(words))
    frequent = {word: n for n, (word, _) in enumerate(Counter(words).most_common(WORDS - 1))}
    common = {pair: n for n, pair in enumerate(pair for pair, count in Counter(pairs).items() if count > 1)}
    if not common:
        raise ValueError("no pair of words is there twice")
    numbers = torch.tensor([frequent.get(word, WORDS - 1) for word in words])
    return Text(numbers, torch.tensor([common.get(pair, -1) for pair in pairs]), len(common), held_out)


def sample(
    text: Text, starts: Tensor, device: torch.device, labels: range | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The words before these places, and the labels behind them, as row pointers and columns: of all or of some labels."""
    before = text.words[starts[:, None] + torch.arange(BEFORE)]
    behind = text.pairs[starts[:, None] + BEFORE + torch.arange(BEHIND - 1)].sort(1).values
    labels = range(text.labels) if labels is None else labels
    known = (behind >= labels.start) & (behind < labels.stop)
    known[:, 1:] &= behind[:, 1:] != behind[:, :-1]
    crow = F.pad(known.sum(1).cumsum(0), (1, 0))
    return _data.move_to(before, device), tuple(_data.move_to(t, device) for t in (crow, behind[known] - labels.start))


class Model(nn.Module):
    """Words to one hidden feature, and that to labels; given these it answers with the loss, else with the logits."""

    def __init__(self, dim: int, labels: int, run: str, chunk: int | None, parallel: str = "ddp"):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, dim)
        self.places = nn.Linear(BEFORE * dim, dim)
        self.mlp = train_text.RUNS[run].mlp(dim, 2 * dim)
        nn.init.normal_(self.embedding.weight, std=0.3)  # before what may have a size of its own in each process
        group = _shares.group(parallel)
        own = labels if group is None else len(_shares.rows(labels))
        self.head = sigtorch.nn.LinearBCE(dim, own, chunk_size=chunk, reduction="sum", group=group)
        self.run = run
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, -math.log(labels / 3))  # few of them are positive

    def forward(self, words: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = F.silu(self.places(self.embedding(words).flatten(1)))
        x = F.rms_norm(x + self.mlp(x), x.shape[-1:])
        if targets is None or self.run != "torch":
            return self.head(x, targets)
        return eager_loss(x, self.head.weight, self.head.bias, targets)


def eager_loss(x: Tensor, weight: Tensor, bias: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    """Computes the loss in plain PyTorch, with all logits and a matrix of targets."""
    crow, columns = targets
    dense = torch.zeros(len(x), len(weight), device=x.device)
    dense[torch.arange(len(x), device=x.device).repeat_interleave(crow.diff()), columns] = 1
    return F.binary_cross_entropy_with_logits(F.linear(x, weight, bias), dense, reduction="sum")


@torch.no_grad()
def evaluate(model: nn.Module, text: Text, args: argparse.Namespace) -> dict[str, float]:
    """The share of right ones among the first k labels, at places that are held out."""
    last = len(text.words) - BEFORE - BEHIND
    starts = torch.linspace(len(text.words) - text.held_out, last, PLACES, dtype=torch.float64).long()
    hits = torch.zeros(max(RANKS))
    for part in starts.split(64):
        words, (crow, columns) = sample(text, part, args.device)
        first = first_labels(model(words), text, args)
        rows = torch.arange(len(part)).repeat_interleave(crow.cpu().diff())
        right = torch.zeros(len(part), text.labels, dtype=torch.bool).index_put(
            (rows, columns.cpu()), torch.tensor(True)
        )
        hits += right.gather(1, first).sum(0)
    return {f"precision_at_{k}": (hits[:k].sum() / k / PLACES).item() for k in RANKS}


def first_labels(logits: Tensor, text: Text, args: argparse.Namespace) -> Tensor:
    """The labels of the largest logits, among those of all processes if they share the labels."""
    values, labels = (t.cpu() for t in logits.topk(min(max(RANKS), logits.shape[1])))
    if _shares.group(args.parallel) is None:
        return labels
    every = _distributed.gather((values, labels + _shares.rows(text.labels).start))
    values, labels = (torch.cat(parts, 1) for parts in zip(*every, strict=True))
    return labels.gather(1, values.topk(max(RANKS)).indices)


def job_of(text: Text, args: argparse.Namespace) -> _training.Job:
    """The task: the labels of places drawn anew for every step."""
    every = math.ceil(args.steps / MEASUREMENTS)
    labels = None if _shares.group(args.parallel) is None else _shares.rows(text.labels)

    def loss(model: nn.Module, places: Tensor) -> Tensor:
        return model(*sample(text, places, args.device, labels)) / len(places)

    def measure(model: nn.Module, step: int, mean: float) -> _output.Row:
        return {"step": step, "train_loss": mean} | evaluate(model, text, args)

    return _training.Job(
        steps=args.steps,
        batch_of=lambda step: _data.drawn(args.seed, step, args.batch, args.samples),
        place_of=lambda places: f"the places {_data.first_numbers(places)} of the text that it trains on",
        loss=loss,
        measure=measure,
        measured=lambda step: step % every == 0 or step == args.steps,
        optimizer=partial(torch.optim.Adam, lr=args.lr),
        factor=lambda n: min((n + 1) / 20, 0.51 + 0.49 * math.cos(math.pi * n / args.steps)),
        unit="samples",
        units=args.batch,
        progress_figure=("precision", "precision_at_1"),
    )


def gradients(loss: Callable[..., Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
    """A step, but for what is done with these."""
    return torch.autograd.grad(loss(*given), given)


def memory(text: Text, args: argparse.Namespace) -> list[_output.Row]:
    """The memory that the layer, its loss and their gradients hold at once, as sigtorch and as PyTorch compute them."""
    rows = []
    words, (crow, columns) = sample(text, torch.arange(args.batch) * (args.samples // args.batch), args.device)
    for share in SHARES:
        labels = max(1, text.labels // share)
        kept = columns < labels
        inside = F.pad(kept.long().cumsum(0), (1, 0))[crow]
        targets = inside, columns[kept]
        x = torch.randn(len(words), args.dim, device=args.device, requires_grad=True)
        head = sigtorch.nn.LinearBCE(args.dim, labels, device=args.device, chunk_size=args.chunk, reduction="sum")
        given = [x, *head.parameters()]
        ours = lambda x, *_, head=head, targets=targets: head(x, targets)  # noqa: E731
        for name, loss in {"sigtorch": ours, "torch": partial(eager_loss, targets=targets)}.items():
            held = peak_extra_bytes(partial(gradients, loss, given), args.device)
            rows.append({"run": name, "labels": labels, "mib": held / 2**20})
    return rows


def draw_curves(path: Path, rows: list[_output.Row], held: list[_output.Row]) -> None:
    """Precision over the steps, and memory over the labels."""
    figure = Figure(figsize=(10, 3.8), dpi=120, layout="constrained")
    curves, lines = figure.subplots(1, 2)
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        mine = [row for row in rows if row["run"] == run]
        for k, style in zip(RANKS, ("-", "--", ":"), strict=True):
            points = [100 * row[f"precision_at_{k}"] for row in mine]
            curves.plot([row["step"] for row in mine], points, style, color=f"C{number}", label=f"{run}, first {k}")
    curves.set(xlabel="step", ylabel="labels that are right, %")
    for number, (run, label) in enumerate({"sigtorch": "sigtorch, in chunks", "torch": "PyTorch, all logits"}.items()):
        mine = [row for row in held if row["run"] == run]
        points = [row["mib"] for row in mine]
        lines.plot([row["labels"] for row in mine], points, "o-", markersize=4, color=f"C{number}", label=label)
    lines.set(xlabel="labels", ylabel="loss and gradients at their peak, MiB", ylim=(0, None))
    for axes in (curves, lines):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    lines.xaxis.set_major_formatter("{x:,g}")
    with _output.replacing(path) as aside:
        figure.savefig(aside)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Text]:
    """Read the options and the text, or end in one line about the first that makes no sense."""
    parser = _options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole = parser.add_argument, _options.positive_int
    add("--data", type=Path, metavar="PATH", help="file or folder to learn from (Python's standard library)")
    add("--dim", type=whole, default=64, help="hidden features (%(default)s)")
    add("--batch", type=whole, default=256, help="places a step, of all processes (%(default)s)")
    add("--steps", type=whole, default=300, help="(%(default)s)")
    add("--chunk", type=whole, metavar="LABELS", help="of a chunk of logits (what suits the device)")
    add("--lr", type=_options.positive_float, default=5e-3, help="highest learning rate (%(default)s)")
    _options.add_options(parser, __file__, out="runs/labels", parallel=(*_distributed.PARALLEL, "labels"))
    args = parser.parse_args(argv)
    if args.dim > 4096:
        parser.error(f"argument --dim: {args.dim} features are more than 4,096")
    try:
        text = load(args.data)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")
    if _shares.group(args.parallel) is not None:
        if args.compare:
            parser.error("argument --compare: PyTorch's operators need all labels in one process")
        if args.dtype == "float16":
            parser.error(
                "argument --dtype: processes that share labels have no common scale for float16; take bfloat16"
            )
    args.samples = len(text.words) - text.held_out - BEFORE - BEHIND
    if args.samples < args.batch:
        parser.error(f"argument --batch: {args.batch} places a step, of {max(0, args.samples)} to train on")
    _options.check(parser, args, args.samples)
    return args, text


def start(name: str, job: _training.Job, text: Text, args: argparse.Namespace) -> _training.Run:
    """A run at its first step, with the weights that --seed gives."""
    _options.seed_everything(args.seed)
    model = Model(args.dim, text.labels, name, args.chunk, args.parallel).to(args.device)
    if name == "patched":
        print(sigtorch.patch(model))
    return _training.Run(name, model, job, args)


def main() -> None:
    """Train, show and write what came out."""
    with _distributed.group():
        args, text = parse()
        with _folder.for_training(args, fixed=("dim",)), sigtorch.use_backend(args.backend):
            labels = f"{text.labels:,} labels: pairs of words that are there twice or more"
            print(f"{len(text.words):,} words, {labels}", flush=True)
            job = job_of(text, args)
            runs = [start(name, job, text, args) for name in _training.names(args)]
            _training.train(runs, job, args)
            held = memory(text, args)
            _training.write(runs, args, lambda path, rows: draw_curves(path, rows, held))
        report(runs, held, args)


def report(runs: list[_training.Run], held: list[_output.Row], args: argparse.Namespace) -> None:
    """Print a line for each run, and what memory a step takes."""
    table_rows = []
    for run in runs:
        precision = {f"precision at {k}": f"{run.rows[-1][f'precision_at_{k}']:.1%}" for k in RANKS}
        table_rows.append({"run": run.name} | precision | run.summary())
    _output.show_table(f"Which pairs of words follow, seed {args.seed}, {args.dtype}", table_rows)
    ours, theirs = (row["mib"] for row in held[-2:])
    print(f"Loss and gradients of {held[-1]['labels']:,} labels hold {ours:,.0f} MiB, {theirs:,.0f} in eager PyTorch")
    _training.print_difference(runs)
    print(f"Metrics, curves and weights are in {args.out}/")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
