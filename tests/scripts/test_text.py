"""The text and the imbalanced training as their users run them: in a process of their own, which is forked."""

import math

import pytest
import torch
import train_imbalanced
import train_text
from support.scripting import VALIDATED, assert_picture, assert_refuses, fork, read_csv, table

TINY = ("--device", "cpu", "--dim", "16", "--layers", "2", "--heads", "2", "--context", "32", "--batch", "4")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "made" / "by the script"
    done = fork(
        "train_text.py", *TINY, "--steps", 14, "--lr", 0.03, "--compare", "--out", out, PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_text_metrics(compared):
    rows = read_csv(compared[1] / "metrics.csv")
    bits = ["train_bits_per_byte", "validation_bits_per_byte"]
    assert list(rows[0]) == ["run", "step", *bits, "tokens_per_second", "peak_memory_mib", "seconds"]
    steps = ["2", "4", "6", "8", "10", "12", "14"]
    assert [(row["run"], row["step"]) for row in rows] == [(run, n) for run in ("sigtorch", "torch") for n in steps]
    for name in bits:
        assert 8.5 > float(rows[0][name]) > float(rows[6][name]) > 2  # a byte at random costs 8
    assert all(int(row["tokens_per_second"]) > 0 for row in rows)
    assert all(float(row["peak_memory_mib"]) > 100 for row in rows)  # a process with PyTorch in it


def test_text_agrees_with_eager_formulas(compared):
    stdout, out = compared
    line = next(line for line in stdout.splitlines() if line.startswith("Largest relative difference"))
    assert "first 14 steps" in line
    assert float(line.split()[-1]) <= 1e-3
    rows = read_csv(out / "metrics.csv")
    for ours, theirs in zip(rows[:7], rows[7:], strict=True):
        for name in ("train_bits_per_byte", "validation_bits_per_byte"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3)


def test_text_table_and_sample(compared):
    stdout, out = compared
    rows = read_csv(out / "metrics.csv")
    assert len(table(stdout)) == 2
    for row, last in zip(table(stdout), (rows[6], rows[13]), strict=True):
        assert row[0] == last["run"]
        assert row[1] == f"{float(last['validation_bits_per_byte']):.3f}"
        seconds = float(last["seconds"])
        assert float(row[2]) == pytest.approx(seconds, abs=0.006)
        assert float(row[3]) == pytest.approx(1000 * seconds / 14, abs=0.05)  # of 14 steps
        assert float(row[4].replace(",", "")) == pytest.approx(14 * 4 * 32 / seconds, rel=0.01)
        assert row[5] == f"{float(last['peak_memory_mib']):,.0f} MiB"
        assert row[7] == "CPU"  # what bound the time
        assert row[-1].endswith(" MiB")
        assert float(row[-1].split()[0]) > 0
    written = stdout.partition("What it writes after 'def ':\n\n")[2]
    assert written.startswith("def ")
    assert len(written) > len("def ")


def test_text_picture(compared):
    assert_picture(compared[1] / "curves.png")


def test_text_weights_give_the_loss_again(compared, monkeypatch):
    _, out = compared
    saved = torch.load(out / "model.pt", weights_only=True)
    args, text = train_text.parse(TINY)
    model = train_text.GPT(args.dim, args.layers, args.heads, "torch")  # plain PyTorch reads it, too
    model.load_state_dict(saved["model"])
    monkeypatch.setattr(train_text, "VALIDATION_WINDOWS", VALIDATED)
    found = train_text.evaluate(model, text, args)
    assert found == pytest.approx(float(read_csv(out / "metrics.csv")[6]["validation_bits_per_byte"]), rel=1e-4)
    assert saved["config"].items() >= {"dim": 16, "steps": 14, "data": None}.items()


def test_whole_files_are_held_out(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_bytes(bytes([number]) * 100)
    (tmp_path / ".hidden").write_bytes(b"\xff" * 100)
    text = train_text.load(tmp_path, 32)
    train, held_out = ({byte for byte in part.tolist() if byte != ord("\n")} for part in text)
    assert train | held_out | {ord("\n")} == set(range(30))
    assert not train & held_out
    assert len(held_out) == 2  # of 30: the first number of files that makes a twentieth
    assert all(torch.equal(a, b) for a, b in zip(text, train_text.load(tmp_path, 32), strict=True))


def test_no_more_is_held_out_than_a_twentieth_takes(tmp_path):
    for number in range(20):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 100)
    assert len(train_text.load(tmp_path, 32).held_out) == 100


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a" * 950 + b"b" * 50)
    train, held_out = train_text.load(path, 32)
    assert (set(train.tolist()), set(held_out.tolist())) == ({ord("a")}, {ord("b")})


def test_standard_library_without_packages_and_tests():
    train, held_out = train_text.load(None, 128)
    assert 0.05 <= len(held_out) / (len(train) + len(held_out)) < 0.1
    assert 2e6 < len(train) < 5e7
    assert b"def " in bytes(held_out.tolist())


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
def test_attention_sees_no_later_byte(weights):
    torch.manual_seed(0)
    args, _ = train_text.parse([*TINY, "--attention", weights])
    model = train_text.GPT(16, 2, 2, "sigtorch", train_text.attention("sigtorch", args))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # at the start the blocks add nothing
    tokens = torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 12:] = 200
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_sigmoid_attention_is_that_of_plain_pytorch():
    args, _ = train_text.parse([*TINY, "--attention", "sigmoid"])
    q, k, v = (torch.randn(2, 2, args.context, 8) for _ in range(3))
    ours, plain = (train_text.attention(run, args)(q, k, v) for run in ("sigtorch", "torch"))
    torch.testing.assert_close(ours, plain)


def test_refused_in_one_line(tmp_path):
    done = fork("train_text.py", "--data", tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    usage, _, error = done.stderr.partition("train_text.py: error: ")
    assert usage.startswith("usage: ")
    assert error == f"argument --data: there is no file or folder '{tmp_path / 'nothing'}'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--dim 0", "--dim 130 --heads 4", "--dim 100000", "--layers 0", "--heads -1", "--context 0", "--batch none",
        "--steps 0", "--lr nan", "--seed -1", "--device cuda:99", "--dtype float64", "--backend magic",
        "--accumulate 0", "--clip 0", "--checkpoint-every 0", "--parallel tp", "--data /proc/self/mem",
        "--data /dev/null", "--context 99999999", "--out /dev/null/here", "--unknown",
    ],
)  # fmt: skip
def test_text_refuses(options, capsys):
    assert_refuses(train_text.parse, options, capsys)


@pytest.mark.parametrize(
    "options",
    [
        "--seeds 1", "--seeds 0", "--percent 0", "--percent 31", "--percent some", "--steps 0", "--device cuda:99",
        "--out /dev/null/here", "--unknown",
    ],
)  # fmt: skip
def test_imbalanced_refuses(options, capsys):
    assert_refuses(train_imbalanced.parse, options, capsys)


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory):
    out = tmp_path_factory.mktemp("imbalanced") / "made"
    done = fork(
        "train_imbalanced.py", "--seeds", 3, "--steps", 100, "--percent", 6, "--out", out, PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_imbalanced_metrics(imbalanced):
    rows = read_csv(imbalanced[1] / "metrics.csv")
    losses = ["BCE", "weighted BCE", "focal"]
    assert [(row["seed"], row["loss"]) for row in rows] == [(str(n), loss) for n in range(3) for loss in losses]
    assert all(0.7 < float(row["average_precision"]) <= 1 for row in rows)  # guessing gets 0.06
    assert {row["learnt_from"] for row in rows} == {"11"}
    assert [float(row["positives"]) for row in rows] == pytest.approx([179 * 6 / 94] * 9)


def test_imbalanced_says_what_is_shown_and_what_not(imbalanced):
    stdout, out = imbalanced
    assert [row[0] for row in table(stdout)] == ["BCE", "weighted BCE", "focal"]
    assert "What it shows: " in stdout
    assert "What it does not show: which loss is best." in " ".join(stdout.split())
    assert_picture(out / "precision_recall.png")


def test_imbalanced_thinning_keeps_the_share_and_holds_the_rest_apart():
    train_x, train_y, test_x, test_y, counts = train_imbalanced.split(0, 4)
    assert train_y.mean() == pytest.approx(0.04, abs=0.005)
    assert counts[test_y].sum() / counts.sum() == pytest.approx(0.04)
    assert train_x.mean(0) == pytest.approx(0, abs=1e-9)
    known = {tuple(row) for row in train_x.tolist()}
    assert not any(tuple(row) in known for row in test_x.tolist())


def test_imbalanced_threshold_point_without_a_find():
    nothing = {"true_positives": 0.0, "false_positives": 0.0, "positives": 3.0}
    recall, precision = train_imbalanced.threshold_point([nothing])
    assert recall == 0
    assert math.isnan(precision)
