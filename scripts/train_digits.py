"""Train a network of sigmoid layers on 1,797 scans of handwritten digits, which scikit-learn brings along.

The split is fixed and does not depend on --seed: 360 scans, about 36 of each digit, are held out, only measured.
Example: ``python scripts/train_digits.py --compare``
"""

import argparse
import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import _stdout
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
    """Mean loss, and the share of scans that the network reads rightly."""
    scores = model(x)
    return F.cross_entropy(scores, y).item(), (scores.argmax(1) == y).double().mean().item()


def train(
    run: str, activation: Callable[[], nn.Module], args: argparse.Namespace, data: Digits
) -> tuple[nn.Module, list[_training.Row]]:
    """Feedforward, error, backpropagation, a step down the slope; epoch by epoch, a row of metrics after each."""
    _training.seed_everything(args.seed)
    model = network(args.layers, activation).to(args.device, _training.DTYPES[args.dtype])
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    rows, seconds = [], 0.0
    with _training.progress(run, args.epochs) as step:
        for epoch in range(1, args.epochs + 1):
            started = time.perf_counter()
            for batch in torch.randperm(len(data.train_y)).to(args.device).split(args.batch):
                optimizer.zero_grad()
                F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
                optimizer.step()
            train_loss, train_accuracy = evaluate(model, data.train_x, data.train_y)
            seconds += time.perf_counter() - started  # the loss has been read: a GPU has finished, too
            test_loss, test_accuracy = evaluate(model, data.test_x, data.test_y)
            if not math.isfinite(train_loss):
                _training.give_up(train_loss, f"epoch {epoch}")
            row = {"run": run, "epoch": epoch, "train_loss": train_loss, "train_accuracy": train_accuracy}
            rows.append(row | {"test_loss": test_loss, "test_accuracy": test_accuracy, "seconds": round(seconds, 3)})
            step(loss=train_loss, accuracy=test_accuracy)
    return model, rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options, or end in one line about the first that makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    widths = {"type": _training.positive_int, "nargs": "+", "metavar": "UNITS"}
    add("--layers", **widths, default=[128, 64], help="width of each sigmoid layer (128 64)")
    add("--epochs", type=_training.positive_int, default=60, help="passes over the training set (%(default)s)")
    add("--batch", type=_training.positive_int, default=32, help="scans a step (%(default)s)")
    add("--lr", type=_training.positive_float, default=0.3, help="learning rate (%(default)s)")
    _training.add_options(parser, out="runs/digits", save=True)
    args = parser.parse_args(argv)
    weights = sum(above * below for above, below in pairwise((64, *args.layers, 10)))
    if weights > 10**8:
        parser.error(f"argument --layers: {weights:,} weights are more than 100,000,000")
    if args.batch > TRAINED_ON:
        parser.error(f"argument --batch: {args.batch} scans a step, of {TRAINED_ON} to train on")
    if args.lr > torch.finfo(_training.DTYPES[args.dtype]).max:
        parser.error(f"argument --lr: {args.lr:g} is more than a {args.dtype} holds")
    _training.check_backend(parser, args)
    return args


def main() -> None:
    """Train, show and write what came out."""
    args = parse()
    if max(args.layers) < 512:
        torch.set_num_threads(1)  # so small a product gains nothing from more, and loses much on a busy machine
    data = load(args.device, _training.DTYPES[args.dtype])
    with sigtorch.use_backend(args.backend):
        args.runs_on = sigtorch.backend_of(data.train_x)
        model, rows = train("sigtorch", lambda: sigtorch.nn.Sigmoid(save=args.save), args, data)
    if args.compare:
        rows += train("torch", nn.Sigmoid, args, data)[1]

    _training.write_csv(args.out / "metrics.csv", rows)
    _training.plot_curves(args.out / "curves.png", rows, x="epoch", panels=PANELS)
    config = {**vars(args), "device": str(args.device), "out": str(args.out)}
    _training.save_checkpoint(args.out / "checkpoint.pt", model, config)
    report(args, rows)


def report(args: argparse.Namespace, rows: list[_training.Row]) -> None:
    """Print a line for each run, and how far apart two of them are."""
    runs_on = {"sigtorch": args.runs_on, "torch": "torch.sigmoid"}
    last = [row for row in rows if row["epoch"] == args.epochs]
    shown = [
        {
            "run": row["run"],
            "train accuracy": f"{row['train_accuracy']:.2%}",
            "test accuracy": f"{row['test_accuracy']:.2%}",
            "seconds": f"{row['seconds']:.2f}",
            "backend": runs_on[row["run"]],
            "device": args.device,
        }
        for row in last
    ]
    _training.show_table(f"Handwritten digits, seed {args.seed}, {args.dtype}", shown)
    if args.compare:
        pairs = zip(rows[: args.epochs], rows[args.epochs :], strict=True)
        apart = max(abs(ours["test_loss"] - theirs["test_loss"]) for ours, theirs in pairs)
        print(f"Largest difference between the two test loss curves: {apart:.3g}")
    print(f"Metrics, curves and checkpoint are in {args.out}/")


if __name__ == "__main__":
    _stdout.escape_what_it_lacks()
    main()
