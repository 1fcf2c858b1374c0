"""Draw the sigmoid and its slope, and how far off its bfloat16 gradient is with either way to save.

The pictures go to docs/images/; the table that docs/derivation.md quotes goes to the screen.
Example: ``python scripts/derive.py``
"""

import argparse
from pathlib import Path

import _options
import _output
import torch
from matplotlib.figure import Figure
from torch import Tensor

import sigtorch

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
INTERVALS = ((-10, -6), (-6, 0), (0, 2), (2, 4), (4, 6), (6, 10))


def every_bfloat16(low: float, high: float) -> Tensor:
    """Every bfloat16 value with low <= value < high, in order."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    return values[(values >= low) & (values < high)].sort().values


def relative_error(x: Tensor, save: str) -> Tensor:
    """How far the gradient of sigmoid(x) is from the float64 one, as a share of it."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        sigtorch.sigmoid(leaf, save=save).backward(torch.ones_like(x))
    exact = torch.sigmoid(x.double()) * torch.sigmoid(-x.double())
    return (leaf.grad.double() - exact).abs() / exact


def measure() -> list[dict[str, str]]:
    """For each interval: the worst error of both ways to save, and the share of gradients that are exactly zero."""
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
    figure.savefig(path)


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
    figure.savefig(path)


def main() -> None:
    """Draw both, print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=_options.folder, default=IMAGES, help="folder for the pictures (docs/images)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    draw_sigmoid(out / "sigmoid.png")
    draw_gradient_error(out / "gradient_error.png")
    _output.show_table("Gradient of the sigmoid in bfloat16, against float64", measure())
    print(f"Drew sigmoid.png and gradient_error.png into {out}/")


if __name__ == "__main__":
    main()
