"""Train a small classifier where positives are rare, with plain BCE, BCE that weights positives, and focal loss.

The data are scikit-learn's 569 breast tumours. Each seed learns from half of them, with malignant ones left out until
a few percent remain; in the other half each malignant one counts for less, which makes the same share.
Example: python scripts/train_imbalanced.py --seeds 20 --percent 4
"""

import _start  # isort: skip
import argparse
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import _folder
import _options
import _output
import numpy
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import sigtorch

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "BCE": sigtorch.binary_cross_entropy_with_logits,
    "weighted BCE": lambda scores, is_malignant: sigtorch.binary_cross_entropy_with_logits(
        scores, is_malignant, pos_weight=(1 - is_malignant).sum() / is_malignant.sum()
    ),
    "focal": lambda scores, is_malignant: sigtorch.sigmoid_focal_loss(
        scores, is_malignant, alpha=0.25, gamma=2.0, reduction="mean"
    ),
}
RECALLS = numpy.linspace(0, 1, 101)
MOST_PERCENT = 30  # of what the data hold, 37 %, so that there is something to leave out


def split(seed: int, percent: float) -> tuple[numpy.ndarray, ...]:
    """Features and labels to learn from, the same to measure on, and what each of the latter counts."""
    features, labels = load_breast_cancer(return_X_y=True)
    halves = train_test_split(features, labels == 0, test_size=0.5, stratify=labels, random_state=seed)
    train_x, test_x, train_y, test_y = halves
    odds = percent / (100 - percent)
    malignant = numpy.flatnonzero(train_y)[: max(1, round(odds * (~train_y).sum()))]
    kept = numpy.concatenate([numpy.flatnonzero(~train_y), malignant])
    train_x, train_y = train_x[kept], train_y[kept]
    mean, spread = train_x.mean(0), train_x.std(0)
    counts = numpy.where(test_y, odds * (~test_y).sum() / test_y.sum(), 1.0)
    return (train_x - mean) / spread, train_y, (test_x - mean) / spread, test_y, counts


def fit(loss: Loss, train_x: numpy.ndarray, train_y: numpy.ndarray, args: argparse.Namespace) -> nn.Module:
    """Train a network of one hidden layer on all examples at once."""
    model = nn.Sequential(nn.Linear(train_x.shape[1], 16), sigtorch.nn.Sigmoid(), nn.Linear(16, 1)).to(args.device)
    x, y = (torch.tensor(part, dtype=torch.float32, device=args.device) for part in (train_x, train_y))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss(model(x).squeeze(-1), y).backward()
        optimizer.step()
    return model


def measure(scores: numpy.ndarray, is_malignant: numpy.ndarray, counts: numpy.ndarray) -> _output.Row:
    """Average precision, precision over RECALLS, and what a threshold of one half finds, rightly and wrongly."""
    precision, recall, _ = precision_recall_curve(is_malignant, scores, sample_weight=counts)
    reached = [precision[recall >= wanted].max() for wanted in RECALLS]  # the best precision at this recall or more
    found = scores > 0
    return {
        "average_precision": average_precision_score(is_malignant, scores, sample_weight=counts),
        "true_positives": counts[found & is_malignant].sum(),
        "false_positives": counts[found & ~is_malignant].sum(),
        "positives": counts[is_malignant].sum(),
        "precision": reached,
    }


def train(args: argparse.Namespace) -> list[_output.Row]:
    """Train with every loss from every seed: the same examples and the same start for each of the three."""
    rows = []
    with _output.progress("three losses", args.seeds * len(LOSSES)) as step:
        for seed in range(args.seeds):
            train_x, train_y, test_x, test_y, counts = split(seed, args.percent)
            for name, loss in LOSSES.items():
                _options.seed_everything(seed)
                model = fit(loss, train_x, train_y, args)
                with torch.no_grad():
                    scores = model(torch.tensor(test_x, dtype=torch.float32, device=args.device)).squeeze(-1)
                row = measure(scores.cpu().double().numpy(), test_y, counts)
                rows.append({"loss": name, "seed": seed, "learnt_from": int(train_y.sum()), **row})
                step(average_precision=row["average_precision"])
    return rows


def threshold_point(rows: list[_output.Row]) -> tuple[float, float]:
    """Recall and precision of a threshold of one half, all seeds' cases together."""
    right, wrong, there = (sum(row[key] for row in rows) for key in ("true_positives", "false_positives", "positives"))
    return right / there, right / (right + wrong) if right + wrong else math.nan


def differences(rows: list[_output.Row], name: str) -> numpy.ndarray:
    """Average precision of a loss less BCE's, seed by seed."""
    of = {key: [row["average_precision"] for row in rows if row["loss"] == key] for key in ("BCE", name)}
    return numpy.subtract(of[name], of["BCE"])


def draw_curves(path: Path, rows: list[_output.Row], said: str) -> None:
    """Precision over recall of each loss, and beside it how its average precision differs from BCE's."""
    figure = Figure(figsize=(10.5, 6), dpi=120, layout="constrained")
    curves, strips = figure.subplots(1, 2, width_ratios=(3, 2))
    points = []
    for number, name in enumerate(LOSSES):
        mine = [row for row in rows if row["loss"] == name]
        low, middle, high = numpy.percentile([row["precision"] for row in mine], (25, 50, 75), axis=0)
        curves.plot(100 * RECALLS, 100 * middle, color=f"C{number}", label=f"{name}: median of the seeds")
        curves.fill_between(100 * RECALLS, 100 * low, 100 * high, color=f"C{number}", alpha=0.15, linewidth=0)
        recall, precision = threshold_point(mine)
        points.append(recall)
        curves.plot(100 * recall, 100 * precision, "o", color=f"C{number}", markeredgecolor="black", markersize=9)
        if number:
            apart = 100 * differences(rows, name)
            places = number + numpy.linspace(-0.2, 0.2, len(apart))
            strips.plot(places, apart, "o", color=f"C{number}", alpha=0.6)
            strips.hlines(apart.mean(), number - 0.3, number + 0.3, color="black")
    curves.set_xlim(max(-2, 100 * min(points) - 10), 102)  # further left the curves have nothing to tell
    curves.plot([], [], "o", color="white", markeredgecolor="black", label="threshold 0.5, all seeds together")
    curves.plot([], [], color="gray", linewidth=8, alpha=0.3, label="middle half of the seeds")
    curves.set(xlabel="recall: malignant tumours found (%)", ylabel="precision: found that are malignant (%)")
    curves.legend(loc="lower left", fontsize="small")
    curves.grid(alpha=0.3)
    strips.axhline(0, color="C0", label="BCE")
    strips.set(ylabel="average precision less BCE's (points)", xlabel="a dot a seed, a line their mean")
    strips.set_xticks(range(1, len(LOSSES)), list(LOSSES)[1:])
    strips.set_xlim(0.5, len(LOSSES) - 0.5)
    strips.grid(alpha=0.3, axis="y")
    strips.legend(fontsize="small")
    figure.supxlabel(textwrap.fill(said, 150), x=0.02, ha="left", fontsize="small")
    with _output.replacing(path) as aside:
        figure.savefig(aside)


def verdict(rows: list[_output.Row], name: str) -> str:
    """One sentence about a loss against BCE, no bolder than the seeds allow."""
    apart = 100 * differences(rows, name)
    mean, error = apart.mean(), apart.std(ddof=1) / math.sqrt(len(apart))
    most = student_t.ppf(0.975, len(apart) - 1) * error  # of 19 in 20 repetitions without a difference
    found = "more than these seeds' noise" if abs(mean) > most else "which these seeds cannot tell from nothing"
    change = f"changes average precision by {mean:+.1f} ± {error:.1f} points (standard error)"
    return f"{name[0].upper()}{name[1:]} {change}, {found}."


def conclude(rows: list[_output.Row], args: argparse.Namespace) -> str:
    """Say what the picture shows, and what it does not."""
    recalls = [f"{threshold_point([row for row in rows if row['loss'] == name])[0]:.0%} ({name})" for name in LOSSES]
    sentences = [
        f"What it shows: at a threshold of 0.5, the three find {', '.join(recalls)} of the malignant tumours:",
        "mostly the loss moves that point along the curve, as moving the threshold would.",
        *(verdict(rows, name) for name in list(LOSSES)[1:]),
        f"What it does not show: which loss is best. It is one small, easy data set, with {rows[0]['learnt_from']}",
        f"positives to learn from; all {args.seeds} splits share its 569 tumours, so that the true errors are larger;",
        "nothing was tuned (learning rate, steps, positives weighted by their rarity, alpha 0.25, gamma 2);",
        "and the share of positives that precision depends on is made by weights, not met in a clinic.",
    ]
    return " ".join(sentences)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options, or end in one line about the first that makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=_options.positive_int, default=20, help="trainings with each loss, at least 2 (%(default)s)")
    add("--percent", type=_options.positive_float, default=4.0, help="share of positives (%(default)g)")
    add("--steps", type=_options.positive_int, default=300, help="of each training (%(default)s)")
    add("--device", type=_options.device, default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add(
        "--out",
        type=_options.folder,
        help="new folder for all that it writes (runs/imbalanced, runs/imbalanced-2, ...)",
    )
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error("argument --seeds: a single one has no spread")
    if args.percent > MOST_PERCENT:
        parser.error(f"argument --percent: {args.percent:g} is more than {MOST_PERCENT}, which is not rare")
    return args


def main() -> None:
    """Train, show and write what came out."""
    args = parse()
    torch.set_num_threads(1)  # so small a product gains nothing from more
    with _folder.for_results(args.out, "runs/imbalanced", ("metrics.csv", "precision_recall.png")) as out:
        rows = train(args)
        said = conclude(rows, args)
        report(rows, said, args)
        _output.write_csv(out / "metrics.csv", [{k: row[k] for k in row if k != "precision"} for row in rows])
        draw_curves(out / "precision_recall.png", rows, said)
        print(f"Table and picture are in {out}/")


def report(rows: list[_output.Row], said: str, args: argparse.Namespace) -> None:
    """Print a line for each loss, and what the picture shows."""
    table_rows = []
    for name in LOSSES:
        mine = [row for row in rows if row["loss"] == name]
        recall, precision = threshold_point(mine)
        average = [100 * row["average_precision"] for row in mine]
        ranked = f"{numpy.mean(average):.1f} ± {numpy.std(average, ddof=1):.1f} %"
        table_rows.append({"loss": name, "average precision": ranked, "recall at 0.5": f"{recall:.0%}"})
        table_rows[-1]["precision at 0.5"] = f"{precision:.0%}" if recall else "none found"
    _output.show_table(f"{args.percent:g} % positives, mean and deviation of {args.seeds} seeds", table_rows)
    print(textwrap.fill(said, 110))


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
