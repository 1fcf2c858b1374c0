"""Draw the sigmoid and its slope, and how far off its bfloat16 gradient is with either way to save.

The table that docs/derivation.md quotes goes to the screen. With --losses there are two tables and no picture, which
docs/losses.md quotes: how far off PyTorch's losses are, and sigtorch's kernels.
Examples: python scripts/derive.py, and without a GPU TRITON_INTERPRET=1 python scripts/derive.py --losses
"""

import _start  # isort: skip
import argparse
from collections.abc import Callable
from pathlib import Path

import _folder
import _options
import _output
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import sigtorch

PICTURES = ("sigmoid.png", "gradient_error.png")
INTERVALS = ((-10, -6), (-6, 0), (0, 2), (2, 4), (4, 6), (6, 10))
POS_WEIGHT = 3.0
FOCAL_INTERVALS = ((-12, -8), (-8, -4), (-4, 0), (0, 4))


def every_bfloat16(low: float, high: float) -> Tensor:
    """Every bfloat16 value with low <= value < high, in order."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    return values[(values >= low) & (values < high)].sort().values


def relative_error(x: Tensor, save: str) -> Tensor:
    """The error of sigmoid(x)'s gradient, relative to the float64 one."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        sigtorch.sigmoid(leaf, save=save).backward(torch.ones_like(x))
    exact = torch.sigmoid(x.double()) * torch.sigmoid(-x.double())
    return (leaf.grad.double() - exact).abs() / exact


def measure() -> list[dict[str, str]]:
    """Returns for each interval the worst error of both ways to save, and the share of gradients that are exactly 0."""
    rows = []
    for low, high in INTERVALS:
        x = every_bfloat16(low, high)
        output, recomputed = relative_error(x, "output"), relative_error(x, "input")
        rows.append(
            {
                "x": f"{low} to {high}",
                'save="output": worst error': f"{output.max():.2%}",
                # An error of exactly 1 is a gradient of exactly 0.
                "gradient exactly 0": f"{(output == 1).double().mean():.1%}",
                'save="input": worst error': f"{recomputed.max():.2%}",
            }
        )
    return rows


def worst(function: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """The largest relative error of a function's values at x, and of its gradients, against another in float64."""
    found = []
    for f, leaf in ((function, x.clone().requires_grad_()), (exact, x.double().requires_grad_())):
        values = f(leaf)
        found.append((values.detach(), *torch.autograd.grad(values, leaf, torch.ones_like(values))))
    return tuple(((a.double() - e).abs() / e.abs()).max().item() for a, e in zip(*found, strict=True))


def measure_bce() -> list[dict[str, str]]:
    """Returns for each interval the worst error of a positive's gradient in bfloat16, without and with a pos_weight."""
    rows = []
    for low, high in INTERVALS[2:]:
        x = every_bfloat16(low, high)
        row = {"x": f"{low} to {high}"}
        for name, loss in (
            ("PyTorch", F.binary_cross_entropy_with_logits),
            ("sigtorch", sigtorch.binary_cross_entropy_with_logits),
        ):
            for weight in (1.0, POS_WEIGHT):
                given = {} if weight == 1 else {"pos_weight": torch.tensor(weight, dtype=x.dtype)}
                _, error = worst(
                    lambda x, loss=loss, given=given: loss(x, torch.ones_like(x), reduction="none", **given),
                    lambda x, weight=weight: weight * F.softplus(-x, threshold=50),
                    x,
                )
                row[name + (f", pos_weight={weight:g}" if given else "")] = f"{error:.1%}"
        rows.append(row)
    return rows


def torchvision_focal(x: Tensor, t: Tensor) -> Tensor:
    """Compute torchvision's sigmoid_focal_loss, in the same operators."""
    p = torch.sigmoid(x)
    cross_entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    balance = 0.25 * t + 0.75 * (1 - t)
    return balance * (cross_entropy * (1 - (p * t + (1 - p) * (1 - t))) ** 2)


def measure_focal() -> list[dict[str, str]]:
    """Returns for each interval the worst errors of a negative's focal loss and of its gradient in float32."""
    rows = []
    for low, high in FOCAL_INTERVALS:
        x = torch.linspace(low, high, 20_001)
        exact = lambda x: 0.75 * F.softplus(x, threshold=50) * torch.sigmoid(x) ** 2  # noqa: E731
        largest = exact(x[-1].double())
        row = {"x": f"{low} to {high}", "losses up to": f"{largest:.0e}"}
        for name, loss in (("torchvision", torchvision_focal), ("sigtorch", sigtorch.sigmoid_focal_loss)):
            errors = worst(lambda x, loss=loss: loss(x, torch.zeros_like(x)), exact, x)
            row[f"{name}: loss / gradient"] = f"{errors[0]:.0e} / {errors[1]:.0e}"
        rows.append(row)
    return rows


def draw_sigmoid(path: Path) -> None:
    """The sigmoid and its derivative over [-8, 8]."""
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    s = torch.sigmoid(x)
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(x, s, linewidth=2.5, label="σ(x)")
    axes.plot(x, s * (1 - s), linewidth=2.5, label="σ′(x) = σ(x)·(1 − σ(x))")
    axes.annotate("steepest at 0: slope ¼", (0, 0.25), (1.6, 0.32), fontsize=12, arrowprops={"arrowstyle": "->"})
    axes.set_xlabel("x", fontsize=12)
    axes.set_xlim(-8, 8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=12, loc="upper left")
    with _output.replacing(path) as aside:
        figure.savefig(aside)


def draw_gradient_error(path: Path) -> None:
    """Both ways to save over [-10, 10), on a logarithmic scale."""
    x = every_bfloat16(-10, 10)
    x = x[x.abs() >= 0.25]  # nearer to zero there are thousands of values and nothing happens
    figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    labels = {"output": 'save="output", as torch.sigmoid does', "input": 'save="input"'}
    for save, label in labels.items():
        axes.semilogy(x.double(), 100 * relative_error(x, save), ".", markersize=5, label=label)
    axes.axhline(100 * 2**-8, color="black", linestyle="--", linewidth=1, label="one rounding to bfloat16: 0.39 %")
    axes.text(8.2, 45, "gradient\nexactly 0", fontsize=12, ha="center", va="center")
    axes.set_ylim(0.01, 300)
    axes.set_xticks(range(-10, 11, 2))
    axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    axes.set_xlabel("x", fontsize=12)
    axes.set_ylabel("relative error of the gradient", fontsize=12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=12, loc="upper left", markerscale=2)
    with _output.replacing(path) as aside:
        figure.savefig(aside)


def main() -> None:
    """Draw both and print the numbers, or print those of the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=_options.folder, help="new folder for the pictures (runs/derive)")
    parser.add_argument("--losses", action="store_true", help="measure the losses, and draw nothing")
    args = parser.parse_args()
    if args.losses:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with device, sigtorch.use_backend("triton"):
                bce, focal = measure_bce(), measure_focal()
        except (RuntimeError, ValueError) as error:
            parser.error(str(error))
        caption = f"worst error against float64, on {device.type}"
        _output.show_table(f"Gradient of a positive's BCE in bfloat16: {caption}", bce)
        _output.show_table(f"Focal loss of a negative in float32: {caption}", focal)
        return
    with _folder.for_results(args.out, "runs/derive", PICTURES) as out:
        _output.show_table("Gradient of the sigmoid in bfloat16, against float64", measure())
        for name, draw_picture in zip(PICTURES, (draw_sigmoid, draw_gradient_error), strict=True):
            draw_picture(out / name)
        print(f"Drew {' and '.join(PICTURES)} into {out}/")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
