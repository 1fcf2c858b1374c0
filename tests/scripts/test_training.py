"""The training scripts as their users run them: in a process of their own, which is forked, on tiny settings."""

import pytest
import torch
import train_digits
from support.scripting import assert_picture, assert_refuses, fork, read_csv

TINY = ("--device", "cpu", "--epochs", "2", "--layers", "12", "9")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "made" / "by the script"
    done = fork("train_digits.py", *TINY, "--compare", "--out", out, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_metrics(compared):
    _, out = compared
    rows = read_csv(out / "metrics.csv")
    measured = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    assert list(rows[0]) == ["run", "epoch", *measured, "scans_per_second", "peak_memory_mib", "seconds"]
    assert [(row["run"], row["epoch"]) for row in rows] == [
        ("sigtorch", "1"), ("sigtorch", "2"), ("torch", "1"), ("torch", "2")
    ]  # fmt: skip
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    for row in rows:
        assert 0.3 < float(row["test_accuracy"]) <= 1  # far from the tenth that guessing gets


def test_curves_are_identical_on_cpu(compared):
    stdout, out = compared
    rows = [
        {key: value for key, value in row.items() if key.endswith(("loss", "accuracy", "epoch"))}
        for row in read_csv(out / "metrics.csv")
    ]
    assert rows[:2] == rows[2:]
    assert "curves: 0\n" in stdout


def test_table(compared):
    stdout, out = compared
    last = read_csv(out / "metrics.csv")[1]
    _, *lines = (line for line in stdout.splitlines() if line.startswith("| "))
    assert [line.split()[1] for line in lines] == ["sigtorch", "torch"]
    for metric in ("train_accuracy", "test_accuracy"):
        assert all(f"{float(last[metric]):.2%}" in line for line in lines)
    assert all("cpu" in line for line in lines)


def test_picture(compared):
    _, out = compared
    assert_picture(out / "curves.png")


def test_weights_give_the_accuracy_again(compared):
    _, out = compared
    saved = torch.load(out / "model.pt", weights_only=True)
    assert saved["config"]["layers"] == [12, 9]
    assert saved["config"]["seed"] == 0
    model = train_digits.network(saved["config"]["layers"], torch.nn.Sigmoid)
    model.load_state_dict(saved["model"])
    data = train_digits.load(torch.device("cpu"), torch.float32)
    _, accuracy = train_digits.evaluate(model, data.test_x, data.test_y)
    assert f"{accuracy:.6f}" == f"{float(read_csv(out / 'metrics.csv')[1]['test_accuracy']):.6f}"


def test_split_holds_the_same_scans_out():
    torch.manual_seed(1)
    first = train_digits.load(torch.device("cpu"), torch.float32)
    torch.manual_seed(2)
    again = train_digits.load(torch.device("cpu"), torch.float32)
    assert torch.equal(first.test_x, again.test_x)
    assert (len(first.train_x), len(first.test_x)) == (1437, 360)
    known = {tuple(scan) for scan in first.train_x.tolist()}
    assert not any(tuple(scan) in known for scan in first.test_x.tolist())


def test_interpreted_kernels_in_bfloat16_from_the_input(tmp_path):
    options = ("--device", "cpu", "--epochs", 1, "--batch", 1437, "--layers", 12, "--seed", 7)
    choices = ("--backend", "triton", "--dtype", "bfloat16", "--save", "input")
    done = fork("train_digits.py", *options, *choices, "--out", tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert "triton" in done.stdout
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {value.dtype for value in saved["model"].values()} == {torch.float32}  # autocast computes in the half type
    assert saved["config"].items() >= {"save": "input", "seed": 7, "runs_on": "triton"}.items()
    assert {row["run"] for row in read_csv(tmp_path / "metrics.csv")} == {"sigtorch"}


@pytest.mark.parametrize("options", [("--device", "cuda:99"), ("--device", "cpu", "--backend", "triton")])
def test_refused_in_one_line(options, tmp_path):
    done = fork("train_digits.py", "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert done.stdout == ""
    usage, _, error = done.stderr.partition("train_digits.py: error: ")
    assert usage.startswith("usage: ")
    assert options[-1] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--layers 0", "--layers 8 -1", "--layers", "--layers 99999999999", "--epochs 0", "--epochs 1.5", "--batch -3",
        "--batch 1438", "--lr 0", "--lr -0.1", "--lr nan", "--lr inf", "--lr fast", "--seed -1", "--seed 4294967296",
        "--device cpu:1", "--device nowhere", "--device meta", "--lr 1e39", "--dtype int8",
        "--backend magic", "--save nothing", "--out /dev/null/here", "--unknown",
    ],
)  # fmt: skip
def test_refused_option(options, capsys):
    assert_refuses(train_digits.parse, options, capsys)


def test_refused_variable(monkeypatch, capsys):
    monkeypatch.setenv("SIGTORCH_BACKEND", "banana")
    with pytest.raises(SystemExit) as ended:
        train_digits.parse(["--device", "cpu"])
    assert ended.value.code == 2
    assert "error: use_backend(): unknown backend 'banana'" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_in_one_line(tmp_path):
    options = ("--device", "cpu", "--dtype", "float16", "--lr", 1e30, "--layers", 12)
    done = fork("train_digits.py", *options, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--lr" in done.stderr
    assert not (tmp_path / "out").exists()


def test_derive_draws_both_pictures(tmp_path):
    done = fork("derive.py", "--out", tmp_path / "images", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    for name in ("sigmoid.png", "gradient_error.png"):
        assert_picture(tmp_path / "images" / name)
    assert "91.7%" in done.stdout


def test_derive_measures_the_losses(tmp_path):
    done = fork("derive.py", "--losses", "--out", tmp_path / "images", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    for text in ("PyTorch, pos_weight=3", "162.0%", "torchvision", "on cpu"):
        assert text in done.stdout
    assert not (tmp_path / "images").exists()
    refused = fork("derive.py", "--losses", CUDA_VISIBLE_DEVICES="")
    assert refused.returncode == 2
    assert "TRITON_INTERPRET=1" in refused.stderr.splitlines()[-1]


def test_from_scratch_learns():
    done = fork("from_scratch.py")
    assert done.returncode == 0, done.stderr
    accuracies = [float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines()]
    assert len(accuracies) == 6
    assert accuracies[-1] > 94
