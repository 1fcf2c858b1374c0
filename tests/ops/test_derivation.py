"""docs/derivation.md, read and checked: its formulas by computer algebra, its numbers by measuring again."""

import re
from pathlib import Path

import derive
import from_scratch
import pytest
import sympy
import torch

import sigtorch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
FORMULAS = re.findall(r"```math\n(.*?)\n```", PAGE, re.DOTALL)
STEPS = re.findall(r"^\*\*(\d)\..*?```math\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)


def braces(text: str, start: int) -> tuple[str, int]:
    """Returns the text between the brace at start and the one that closes it, and where that one is."""
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + 1 : end], end
    raise ValueError(f"unbalanced braces in {text}")


def python(latex: str) -> str:
    """The page's LaTeX as a Python expression over x, exp, abs, sigma, slope and g."""
    while (at := latex.find(r"\frac{")) >= 0:
        top, end = braces(latex, at + 5)
        bottom, end = braces(latex, end + 1)
        fraction = "derivative" if (top, bottom) == ("d", "dx") else f"(({top})/({bottom}))"
        latex = latex[:at] + fraction + latex[end + 1 :]
    while (at := latex.find("e^{")) >= 0:
        power, end = braces(latex, at + 2)
        latex = f"{latex[:at]}exp({power}){latex[end + 1 :]}"
    latex = re.sub(r"\|(.*?)\|", r"abs(\1)", latex)
    latex = re.sub(r"derivative\s*(\(\(1\)/\(.*?\)\)\))", r"derivative(\1)", latex)  # of a fraction without brackets
    for tex, code in ((r"\left", ""), (r"\right", ""), (r"\cdot", "*"), (r"\sigma'", "slope"), (r"\sigma", "sigma")):
        latex = latex.replace(tex, code)
    return latex.replace("^", "**")


def sides(formula: str, sign: int) -> list[sympy.Expr]:
    """Each side of the formula's equals signs, for x on one side of zero."""
    half_line, x = sympy.Symbol("p", positive=True), sympy.Symbol("x", real=True)
    names = {
        "x": x,
        "g": sympy.Symbol("g", real=True),
        "exp": sympy.exp,
        "abs": sympy.Abs,
        "derivative": lambda expression: sympy.diff(expression, x),
        "sigma": lambda at: 1 / (1 + sympy.exp(-at)),
        "slope": lambda at: sympy.diff(1 / (1 + sympy.exp(-x)), x).subs(x, at),
    }
    found = [sympy.sympify(eval(python(side), {"__builtins__": {}}, names)) for side in formula.split("=")]
    return [side.subs(x, sign * half_line) for side in found]


def holds(formula: str) -> bool:
    """Checks whether all sides of the formula are the same function of x, on either side of zero."""
    for sign in (1, -1):
        first, *others = sides(formula, sign)
        if not others or any(sympy.simplify(first - other) != 0 for other in others):
            return False
    return True


def test_there_are_five_steps():
    assert [number for number, _ in STEPS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formula_holds(formula):
    assert holds(formula)


def test_each_step_goes_on_where_the_last_one_ended():
    quotient, chain, reduce, split, swap = ([side.strip() for side in formula.split("=")] for _, formula in STEPS)
    assert quotient[0] == r"\frac{d}{dx} " + FORMULAS[0].split("= ")[1]
    assert reduce[0] == quotient[-1].replace(chain[0], f"({chain[-1]})")
    assert swap[1] == reduce[-1].replace(split[0], rf"\left({split[-1]}\right)")


@pytest.mark.parametrize("step", range(5))
def test_a_wrong_step_is_noticed(step):
    """Every single plus or minus of every step, turned round, must make the step fail."""
    formula = STEPS[step][1].replace(r"0 \cdot (1 + e^{-x})", "0")  # signs there make no difference
    signs = [match.start() for match in re.finditer(r"[+-]", formula)]
    assert signs
    for at in signs:
        wrong = formula[:at] + {"+": "-", "-": "+"}[formula[at]] + formula[at + 1 :]
        assert not holds(wrong), wrong


def rows_of(page):
    """The tables' lines as cells, without their headers."""
    lines = [line.strip("|").split("|") for line in page.splitlines() if re.match(r"\| [−\d]", line)]
    return [[cell.strip().replace("−", "-") for cell in line] for line in lines]


def test_page_has_what_derive_measures_of_losses(device):
    section = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8").split("## Losses that")[1].split("\n## ")[0]
    with torch.device(device), sigtorch.use_backend("triton"):
        bce, focal = derive.measure_bce(), derive.measure_focal()
    rows = rows_of(section)
    assert [row[0] for row in rows] == [row["x"] for row in bce + focal]
    for row, (_, theirs, weighted, *ours) in zip(rows, (row.values() for row in bce), strict=False):
        assert max(float(cell.strip("%")) for cell in (*ours, row[3])) <= 0.4
        if device == "cpu":  # where PyTorch was measured; processors differ in the last bit of an exponential
            measured = [float(cell.strip("%")) for cell in (theirs, weighted)]
            assert [float(cell.strip("%")) for cell in row[1:3]] == pytest.approx(measured, abs=0.1)
    for row, (_, size, theirs, ours) in zip(rows[len(bce) :], (row.values() for row in focal), strict=True):
        assert row[1] == size
        assert row[3] == "below 1e-06"
        assert max(map(float, ours.split("/"))) < 1e-6
        if device == "cpu":
            assert [*map(float, theirs.split("/"))] == pytest.approx([*map(float, row[2].split("/"))], rel=0.5)


def test_table_is_what_derive_measures():
    rows = rows_of(PAGE)
    measured = derive.measure()
    assert [row[0] for row in rows] == [row["x"] for row in measured]
    for row, (_, *numbers) in zip(rows, (row.values() for row in measured), strict=True):
        # Processors differ in the last bit of an exponential, hence a tenth of a percent point.
        assert [float(cell.strip("%")) for cell in row[1:]] == pytest.approx(
            [float(n.strip("%")) for n in numbers], abs=0.1
        )


def test_numbers_in_the_text():
    x = torch.tensor([16.6355, 16.6356], requires_grad=True)
    sigtorch.sigmoid(x).sum().backward()
    assert x.grad[0] > 0
    assert x.grad[1] == 0
    x = derive.every_bfloat16(6, 7)
    gradient_is_zero = derive.relative_error(x, "output") == 1
    assert x[gradient_is_zero].min() == 6.25  # the first bfloat16 value above ln 511
    assert not gradient_is_zero[x < 6.25].any()


@pytest.mark.parametrize("save", ["output", "input"])
def test_from_scratch_has_the_gradients_of_autograd(save):
    generator = torch.Generator().manual_seed(0)
    x, w1, w2 = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((9, 5), (5, 4), (4, 3)))
    actual = torch.eye(3, dtype=torch.float64)[torch.arange(9) % 3]
    by_hand = from_scratch.gradients(x, actual, w1, w2)

    w1.requires_grad_(), w2.requires_grad_()
    hidden = sigtorch.sigmoid(x @ w1, save=save)
    error = actual - sigtorch.sigmoid(hidden @ w2, save=save)
    (error**2).sum(1).mean().div(2).backward()
    torch.testing.assert_close(by_hand, (w1.grad, w2.grad), rtol=1e-13, atol=1e-16)
