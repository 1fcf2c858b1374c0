"""The vision transformer as its users train it: it learns, and sigtorch's attention computes what plain PyTorch does."""

import pytest
import torch
import train_vit
from support.scripting import assert_refuses, fork, read_csv

TINY = ("--device", "cpu", "--dim", 16, "--layers", 1, "--heads", 2, "--epochs", 2, "--batch", 64)


def test_agrees_with_plain_pytorch_and_learns(tmp_path):
    done = fork("train_vit.py", *TINY, "--lr", 5e-3, "--compare", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "out" / "metrics.csv")
    assert [row["run"] for row in rows] == ["sigtorch"] * 2 + ["torch"] * 2
    assert float(rows[1]["test_loss"]) < float(rows[0]["test_loss"]) < 2.4
    line = next(line for line in done.stdout.splitlines() if line.startswith("Largest relative difference"))
    assert float(line.split()[-1]) <= 1e-4


@pytest.mark.parametrize("weights", ["sigmoid", "softmax"])
def test_patches_are_pixels_that_are_neighbours(weights):
    args = train_vit.parse([*map(str, TINY), "--attention", weights])
    model = train_vit.VisionTransformer("sigtorch", args)
    seen = []
    model.embedding.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    assert model(torch.arange(64.0).expand(3, 64)).shape == (3, 10)
    assert seen[0][0, 5].tolist() == [18, 19, 26, 27]


def test_refused_in_one_line(capsys):
    assert_refuses(train_vit.parse, "--dim 16 --heads 3", capsys)
