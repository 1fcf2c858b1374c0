"""The mixture of experts as its users train it: its figures, how even loads become, and where it goes on."""

import math
import re
import shutil

import pytest
import torch
import train_experts
from support.scripting import SCRIPTS, TINY_TEXT, assert_picture, assert_refuses, checkpoints, fork, read_csv, table

STEPS = 12


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("experts") / "out"
    done = fork("train_experts.py", *TINY_TEXT, "--steps", STEPS, "--compare", "--out", out)
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_agrees_with_pytorchs_operators(compared):
    stdout, out = compared
    line = next(line for line in stdout.splitlines() if line.startswith("Largest relative difference"))
    assert float(line.split()[-1]) <= 1e-3
    rows = read_csv(out / "metrics.csv")
    assert [row["run"] for row in rows] == ["sigtorch"] * STEPS + ["torch"] * STEPS
    for row in rows:
        loads = [float(row[f"load_{number}"]) for number in range(16)]
        assert math.fsum(loads) == pytest.approx(16)
        assert float(row["smallest_load"]) <= min(loads) <= 1 <= max(loads) <= float(row["largest_load"])
    assert [row[2] for row in table(stdout)] == [
        f"{float(rows[n]['smallest_load']):.2f} to {float(rows[n]['largest_load']):.2f}" for n in (STEPS - 1, -1)
    ]
    assert_picture(out / "curves.png")


def test_the_bias_has_moved(compared):
    _, out = compared
    saved = torch.load(out / "model.pt", weights_only=True)["model"]
    bias = saved["blocks.0.mlp.router.e_score_correction_bias"]
    assert 0 < bias.abs().max() <= STEPS * 2e-3 * 1.001


def test_two_processes_compute_what_one_does(compared, tmp_path):
    done = fork("train_experts.py", *TINY_TEXT, "--steps", STEPS, "--out", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_csv(out / "metrics.csv") for out in (tmp_path / "two", compared[1]))
    for mine, one in zip(ours, theirs):
        for name in ("train_bits_per_byte", "largest_load", "smallest_load"):
            assert float(mine[name]) == pytest.approx(float(one[name]), rel=1e-4)


def test_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Biases and the loads counted so far are in a checkpoint."""
    options, kept = (*TINY_TEXT, "--steps", STEPS, "--checkpoint-every", 5, "--out", tmp_path), []
    for more in ((), ("--resume",)):
        done = fork("train_experts.py", *options, *more)
        assert done.returncode == 0, done.stderr
        rows = [[row[name] for name in row if "load" in name] for row in read_csv(tmp_path / "metrics.csv")]
        kept.append((torch.load(tmp_path / "model.pt", weights_only=True)["model"], rows))
        shutil.rmtree(tmp_path / "checkpoints" / checkpoints(tmp_path)[-1])
    assert "Goes on after step 10" in done.stdout
    (whole, rows), (resumed, same_rows) = kept
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert rows == same_rows


def test_refuses_in_one_line(capsys):
    for options in ("--chosen 17", "--compile", "--dim 9999"):
        assert_refuses(train_experts.parse, options, capsys)


def test_the_commands_of_its_page_are_taken():
    """Its options, at another size."""
    page = (SCRIPTS.parent / "docs" / "experts.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        args, _ = train_experts.parse([*line.split("train_experts.py ")[1].split(), *TINY_TEXT])
        assert args.steps == 500
