"""Train a network of sigmoid layers on 1,797 scans of handwritten digits, which scikit-learn brings along.

The split is fixed and does not depend on --seed: 360 scans, about 36 of each digit, are held out, only measured.
Examples: python scripts/train_digits.py --compare
torchrun --nproc-per-node 2 scripts/train_digits.py --out runs/digits-2
"""

import _start  # isort: skip
import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import _data
import _distributed
import _folder
import _options
import _output
import _training
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import sigtorch

HELD_OUT = 360
TRAINED_ON = 1797 - HELD_OUT
PANELS = {"loss": ("test_loss", "train_loss"), "accuracy": ("test_accuracy", "train_accuracy")}


class Digits(NamedTuple):
    """8x8 scans as rows of 64 pixels around zero, and which digit each shows."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load(device: torch.device, dtype: torch.dtype) -> Digits:
    """Read the scans and hold 360 of them out, the same ones each time."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16 - 0.5, labels, test_size=HELD_OUT, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=dtype, device=device) for part in parts[:2])
    train_y, test_y = (torch.tensor(part, device=device) for part in parts[2:])
    return Digits(train_x, train_y, test_x, test_y)


def network(layers: list[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Sigmoid layers of these widths, then one linear layer that scores the ten digits."""
    modules: list[nn.Module] = []
    width = 64
    for units in layers:
        linear = nn.Linear(width, units)
        # The sigmoid's slope is 1/4 at most: weights four times as large pass the signal on undiminished.
        nn.init.xavier_normal_(linear.weight, gain=4)
        nn.init.zeros_(linear.bias)
        modules += [linear, activation()]
        width = units
    return nn.Sequential(*modules, nn.Linear(width, 10))


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss, and the share of scans that the network reads rightly; processes share the scans."""
    place, places = _distributed.rank(), _distributed.size()
    scores, labels = model(x.tensor_split(places)[place]), y.tensor_split(places)[place]
    loss, right = F.cross_entropy(scores.double(), labels, reduction="sum"), (scores.argmax(1) == labels).sum()
    loss, right = (_distributed.total(torch.stack((loss, right.double()))) / len(y)).tolist()
    return loss, right


def start(name: str, job: _training.Job, args: argparse.Namespace) -> _training.Run:
    """A run at its first step, with the weights that --seed gives."""
    _options.seed_everything(args.seed)
    activation = partial(sigtorch.nn.Sigmoid, save=args.save) if name == "sigtorch" else nn.Sigmoid
    model = network(args.layers, activation).to(args.device, weights_in(args))
    if name == "patched":
        print(sigtorch.patch(model, save=args.save))
    return _training.Run(name, model, job, args)


def weights_in(args: argparse.Namespace) -> torch.dtype:
    """The dtype of weights and scans: half types are for autocast to choose."""
    return torch.float64 if args.dtype == "float64" else torch.float32


def job_of(data: Digits, args: argparse.Namespace) -> _training.Job:
    """The task: to read scans, each of them once an epoch."""
    ends = {math.ceil(epoch * TRAINED_ON / args.batch): epoch for epoch in range(1, args.epochs + 1)}

    def loss(model: nn.Module, scans: Tensor) -> Tensor:
        scans = _data.move_to(scans, args.device)
        return F.cross_entropy(model(data.train_x[scans]), data.train_y[scans])

    def measure(model: nn.Module, step: int, _: float) -> _output.Row:
        train_loss, train_accuracy = evaluate(model, data.train_x, data.train_y)
        test_loss, test_accuracy = evaluate(model, data.test_x, data.test_y)
        row = {"epoch": ends[step], "train_loss": train_loss, "train_accuracy": train_accuracy}
        return row | {"test_loss": test_loss, "test_accuracy": test_accuracy}

    return _training.Job(
        steps=max(ends),
        batch_of=lambda step: _data.shuffled(args.seed, step, args.batch, TRAINED_ON),
        place_of=lambda scans: f"the scans {_data.first_numbers(scans)} of those it trains on",
        loss=loss,
        measure=measure,
        measured=ends.__contains__,
        optimizer=partial(torch.optim.SGD, lr=args.lr, momentum=0.9),
        factor=lambda n: 1.0,
        unit="scans",
        units=args.batch,
        progress_figure=("accuracy", "test_accuracy"),
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options, or end in one line about the first that makes no sense."""
    parser = _options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    widths = {"type": _options.positive_int, "nargs": "+", "metavar": "UNITS"}
    add("--layers", **widths, default=[128, 64], help="width of each sigmoid layer (128 64)")
    add("--epochs", type=_options.positive_int, default=60, help="passes over the training set (%(default)s)")
    add("--batch", type=_options.positive_int, default=32, help="scans a step, of all processes (%(default)s)")
    add("--lr", type=_options.positive_float, default=0.3, help="learning rate (%(default)s)")
    _options.add_options(parser, __file__, out="runs/digits", save=True, dtypes=_options.DTYPES)
    args = parser.parse_args(argv)
    weights = sum(above * below for above, below in pairwise((64, *args.layers, 10)))
    if weights > 10**8:
        parser.error(f"argument --layers: {weights:,} weights are more than 100,000,000")
    if args.batch > TRAINED_ON:
        parser.error(f"argument --batch: {args.batch} scans a step, of {TRAINED_ON} to train on")
    if args.lr > torch.finfo(weights_in(args)).max:
        parser.error(f"argument --lr: {args.lr:g} is more than a weight holds")
    _options.check(parser, args, TRAINED_ON)
    return args


def main() -> None:
    """Train, show and write what came out."""
    with _distributed.group():
        args = parse()
        if max(args.layers) < 512:
            torch.set_num_threads(1)  # so small a product gains nothing from more, and loses much on a busy machine
        data = load(args.device, weights_in(args))
        with _folder.for_training(args, fixed=("layers", "batch")), sigtorch.use_backend(args.backend):
            args.runs_on = sigtorch.backend_of(data.train_x)
            job = job_of(data, args)
            runs = [start(name, job, args) for name in _training.names(args)]
            _training.train(runs, job, args)
            _training.write(runs, args, partial(_output.plot_curves, x="epoch", panels=PANELS))
            report(runs, args)


def report(runs: list[_training.Run], args: argparse.Namespace) -> None:
    """Print a line for each run, and how far apart two of them are."""
    table_rows = []
    for run in runs:
        accuracies = {f"{part} accuracy": f"{run.rows[-1][f'{part}_accuracy']:.2%}" for part in ("train", "test")}
        backend = {"backend": "torch.sigmoid" if run.name == "torch" else args.runs_on}
        table_rows.append({"run": run.name} | accuracies | run.summary() | backend)
    _output.show_table(f"Handwritten digits, seed {args.seed}, {args.dtype}", table_rows)
    if args.compare:
        pairs = zip(*(run.rows for run in runs), strict=True)
        apart = max(abs(ours["test_loss"] - theirs["test_loss"]) for ours, theirs in pairs)
        print(f"Largest difference between the two test loss curves: {apart:.3g}")
    print(f"Metrics, curves and weights are in {args.out}/")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
