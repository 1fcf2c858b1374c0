"""Align images of handwritten digits with their names as text, by SigLIP's loss, and read digits without labels.

A text tower reads bytes: "a scan of the number seven", in several phrasings, one of which is kept for the test. What it
says of the ten words then classifies scans that were held out: zero-shot accuracy. Of several processes each computes its
share of the pairs, and the negatives of all come round. Scans of one digit in a batch count as negatives of each other.
Examples: python scripts/train_siglip.py --steps 400 --compare
torchrun --standalone --nproc-per-node 2 scripts/train_siglip.py --out runs/siglip-2
"""

import _start  # isort: skip
import argparse
import math
from functools import partial

import _data
import _distributed
import _folder
import _options
import _output
import _training
import torch
import train_digits
from torch import Tensor, nn
from torch.nn import functional as F
from train_text import RUNS

import sigtorch

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASINGS = ("{}", "a scan of {}", "the number {}", "this is a {} by hand", "{}, as somebody writes it")
UNSEEN = "a picture of the digit {}"
LENGTH = 1 + max(len(phrase.format("seven")) for phrase in (*PHRASINGS, UNSEEN))  # bytes of a text, 0 behind its end
MEASUREMENTS = 12  # of a training
SAMPLES = train_digits.TRAINED_ON * len(PHRASINGS)
PANELS = {"loss": ("train_loss",), "zero-shot accuracy": ("accuracy", "accuracy_of_the_unseen_phrasing")}


def as_bytes(texts: list[str]) -> Tensor:
    """One row a text."""
    return torch.tensor([list(text.encode().ljust(LENGTH, b"\0")) for text in texts])


class TextTower(nn.Module):
    """Bytes to a feature: what three neighbouring ones say, the loudest of each, and a feed-forward."""

    def __init__(self, dim: int, run: str):
        super().__init__()
        self.embedding = nn.Embedding(256, dim)
        self.look = nn.Conv1d(dim, 2 * dim, 3, padding=1)
        self.mlp = RUNS[run].mlp(2 * dim, 2 * dim)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, texts: Tensor) -> Tensor:
        seen = self.look(self.embedding(texts).transpose(1, 2)).masked_fill(texts[:, None] == 0, -torch.inf)
        x = seen.amax(-1)
        return self.out(x + self.mlp(x))


class ImageTower(nn.Module):
    """64 pixels to a feature."""

    def __init__(self, dim: int, run: str):
        super().__init__()
        self.first, self.mlp = nn.Linear(64, 2 * dim), RUNS[run].mlp(2 * dim, 4 * dim)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, scans: Tensor) -> Tensor:
        x = F.silu(self.first(scans))
        return self.out(x + self.mlp(x))


class TwoTowers(nn.Module):
    """Scans and texts in; features of length one, scale and bias out."""

    def __init__(self, dim: int, run: str):
        super().__init__()
        self.run = run
        self.image, self.text = ImageTower(dim, run), TextTower(dim, run)
        # As the paper starts: a scale of 10, and a bias that expects most pairs not to belong together.
        self.log_scale, self.bias = nn.Parameter(torch.full((1,), math.log(10))), nn.Parameter(torch.full((1,), -10.0))

    def forward(self, scans: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        image, text = (F.normalize(x.float(), dim=-1) for x in (self.image(scans), self.text(texts)))
        return image, text, self.log_scale.exp(), self.bias


def eager_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Computes the loss of one process in plain PyTorch."""
    logits = image @ text.t() * scale + bias
    return -F.logsigmoid(logits * (2 * torch.eye(len(logits), device=logits.device) - 1)).sum() / len(logits)


@torch.no_grad()
def evaluate(model: nn.Module, data: train_digits.Digits, phrasings: tuple[str, ...]) -> float:
    """The share of held-out scans that are nearest to their own word, in the mean of these phrasings."""
    texts = as_bytes([phrase.format(word) for word in WORDS for phrase in phrasings]).to(data.test_x.device)
    image, text, *_ = model(data.test_x, texts)
    words = F.normalize(text.view(len(WORDS), len(phrasings), -1).mean(1), dim=-1)
    return ((image @ words.t()).argmax(1) == data.test_y).double().mean().item()


def start(name: str, job: _training.Job, args: argparse.Namespace) -> _training.Run:
    """A run at its first step, with the weights that --seed gives."""
    _options.seed_everything(args.seed)
    model = TwoTowers(args.dim, name).to(args.device)
    if name == "patched":
        print(sigtorch.patch(model))
    return _training.Run(name, model, job, args)


def job_of(data: train_digits.Digits, args: argparse.Namespace) -> _training.Job:
    """The task: which scan belongs to which text; a sample is a scan with a phrasing."""
    every = math.ceil(args.steps / MEASUREMENTS)
    texts = as_bytes([phrase.format(word) for phrase in PHRASINGS for word in WORDS]).to(args.device)
    group = torch.distributed.group.WORLD if _distributed.size() > 1 else None
    losses = {True: eager_loss, False: partial(sigtorch.siglip_loss, chunk_size=args.chunk, group=group)}

    def loss(model: nn.Module, samples: Tensor) -> Tensor:
        samples = _data.move_to(samples, args.device)
        scans, phrasing = samples % train_digits.TRAINED_ON, samples // train_digits.TRAINED_ON
        features = model(data.train_x[scans], texts[phrasing * len(WORDS) + data.train_y[scans]])
        return losses[getattr(model, "run", "") == "torch"](*features)

    def measure(model: nn.Module, step: int, mean: float) -> _output.Row:
        row = {"step": step, "train_loss": mean, "accuracy": evaluate(model, data, PHRASINGS)}
        return row | {"accuracy_of_the_unseen_phrasing": evaluate(model, data, (UNSEEN,))}

    return _training.Job(
        steps=args.steps,
        batch_of=lambda step: _data.drawn(args.seed, step, args.batch, SAMPLES),
        place_of=lambda samples: f"the pairs {_data.first_numbers(samples)} of those it trains on",
        loss=loss,
        measure=measure,
        measured=lambda step: step % every == 0 or step == args.steps,
        optimizer=partial(torch.optim.AdamW, lr=args.lr, weight_decay=0.01),
        factor=lambda n: min((n + 1) / 20, 0.51 + 0.49 * math.cos(math.pi * n / args.steps)),
        unit="pairs",
        units=args.batch,
        progress_figure=("accuracy", "accuracy"),
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options, or end in one line about the first that makes no sense."""
    parser = _options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole = parser.add_argument, _options.positive_int
    add("--dim", type=whole, default=32, help="features of a scan and of a text (%(default)s)")
    add("--batch", type=whole, default=128, help="pairs a step, of all processes (%(default)s)")
    add("--steps", type=whole, default=600, help="(%(default)s)")
    add("--chunk", type=whole, metavar="SCANS", help="of a chunk of logits (what suits the device)")
    add("--lr", type=_options.positive_float, default=3e-3, help="highest learning rate (%(default)s)")
    _options.add_options(parser, __file__, out="runs/siglip")
    args = parser.parse_args(argv)
    if args.dim > 4096:
        parser.error(f"argument --dim: {args.dim} features are more than 4,096")
    if args.accumulate > 1:
        parser.error("argument --accumulate: the pairs of a batch are each other's negatives, and cannot come in parts")
    if args.compare and _distributed.size() > 1:
        parser.error("argument --compare: PyTorch's operators compute the loss of one process")
    _options.check(parser, args, SAMPLES)
    return args


def main() -> None:
    """Train, show and write what came out."""
    with _distributed.group():
        args = parse()
        torch.set_num_threads(1)  # so small a product gains nothing from more
        data = train_digits.load(args.device, torch.float32)
        with _folder.for_training(args, fixed=("dim",)), sigtorch.use_backend(args.backend):
            job = job_of(data, args)
            runs = [start(name, job, args) for name in _training.names(args)]
            _training.train(runs, job, args)
            _training.write(runs, args, partial(_output.plot_curves, x="step", panels=PANELS))
        report(runs, args)


def report(runs: list[_training.Run], args: argparse.Namespace) -> None:
    """Print a line for each run, and how far apart two of them are."""
    table_rows = []
    for run in runs:
        last = {"zero-shot accuracy": run.rows[-1]["accuracy"]}
        last["of a phrasing never seen"] = run.rows[-1]["accuracy_of_the_unseen_phrasing"]
        table_rows.append({"run": run.name} | {key: f"{value:.2%}" for key, value in last.items()} | run.summary())
    _output.show_table(f"Digits and their names, seed {args.seed}, {args.dtype}", table_rows)
    _training.print_difference(runs)
    print(f"Metrics, curves and weights are in {args.out}/")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
