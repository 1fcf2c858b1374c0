"""The trainings with losses in chunks, at a small size: one process and two, what they leave, what they refuse."""

import shutil

import pytest
import torch
import train_labels
import train_siglip
from support.scripting import SCRIPTS, assert_one_line, assert_picture, assert_refuses, fork, losses, read_csv, table

STEPS = 12
SIGLIP = tuple(f"--device cpu --dim 8 --batch 16 --steps {STEPS} --checkpoint-every {STEPS}".split())
LABELS = (*f"--device cpu --dim 8 --batch 16 --steps {STEPS} --checkpoint-every {STEPS} --data".split(), SCRIPTS)


def trained(script, options, out, processes=1):
    ended = fork(script, *options, "--out", out, processes=processes)
    assert ended.returncodes == [0] * processes, ended.stderr + ended.others
    assert ended.stderr == ended.others == ""
    return ended.stdout


@pytest.mark.parametrize(
    ("script", "options", "chunk"), [("train_siglip.py", SIGLIP, 5), ("train_labels.py", LABELS, 2000)]
)
def test_two_processes_learn_what_one_does(script, options, chunk, tmp_path):
    for processes in (1, 2):
        trained(script, (*options, "--chunk", chunk), tmp_path / str(processes), processes)
    one, two = (losses(tmp_path / str(n), STEPS) for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    rows = [read_csv(tmp_path / str(n) / "metrics.csv") for n in (1, 2)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert_picture(tmp_path / "2" / "curves.png")


def test_processes_that_share_labels_learn_what_one_does(tmp_path):
    """Trains on a batch that two cannot divide, clipped by the norm of all gradients; other numbers of processes go on."""
    half, later = STEPS // 2, 3 * STEPS // 4
    options = (*LABELS, "--batch", 15, "--clip", 0.5, "--parallel", "labels", "--checkpoint-every", STEPS // 4)

    def goes_on(source, step, processes):
        """Returns a training that goes on from that step of another."""
        out = tmp_path / f"{source.name}, then {processes}"
        name = f"step-{step:09}"
        shutil.copytree(source / "checkpoints" / name, out / "checkpoints" / name)
        said = trained("train_labels.py", (*options, "--resume"), out, processes)
        assert f"Goes on after step {step}, " in said
        assert_same_training(out, one)
        return out

    one, three = tmp_path / "1", tmp_path / "3"
    trained("train_labels.py", options, one)
    trained("train_labels.py", options, three, 3)
    assert_same_training(three, one)
    goes_on(three, half, 1)
    two = goes_on(one, half, 2)
    goes_on(two, later, 3)


def assert_same_training(out, other):
    assert losses(out, STEPS) == pytest.approx(losses(other, STEPS), rel=1e-5)
    same_weights(out, other)
    rows = [read_csv(folder / "metrics.csv")[-1] for folder in (out, other)]
    # A rounding may decide which of two nearly equal logits is among the first five.
    assert float(rows[0]["precision_at_5"]) == pytest.approx(float(rows[1]["precision_at_5"]), abs=1e-3)


def same_weights(out, other):
    mine, theirs = (torch.load(folder / "model.pt", weights_only=True)["model"] for folder in (out, other))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():  # as a whole: Adam makes much of the rounding of a gradient near 0
        assert weight.shape == theirs[name].shape
        assert (weight - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


@pytest.mark.parametrize(("script", "options"), [("train_siglip.py", SIGLIP), ("train_labels.py", LABELS)])
def test_eager_code_learns_the_same(script, options, tmp_path):
    said = trained(script, (*options, "--compare"), tmp_path)
    assert [row[0] for row in table(said)] == ["sigtorch", "torch"]
    (apart,) = (line.split()[-1] for line in said.splitlines() if line.startswith("Largest relative difference"))
    assert float(apart) < 1e-4


def test_scans_find_their_words(tmp_path):
    trained("train_siglip.py", (*SIGLIP[:2], "--batch", 64, "--steps", 150), tmp_path)
    last = read_csv(tmp_path / "metrics.csv")[-1]
    assert float(last["accuracy"]) > 0.6  # guessing gets a tenth
    assert float(last["accuracy_of_the_unseen_phrasing"]) > 0.4


def test_words_tell_what_follows(tmp_path):
    """The text is a ring: the words before a position determine the pairs that follow."""
    (tmp_path / "round.py").write_text(" ".join(f"w{n * n % 31}" for n in range(4000)))
    options = ("--device", "cpu", "--dim", 16, "--batch", 32, "--lr", 0.02, "--data", tmp_path / "round.py")
    trained("train_labels.py", (*options, "--steps", 150), tmp_path)
    assert float(read_csv(tmp_path / "metrics.csv")[-1]["precision_at_1"]) > 0.9


def test_targets_are_the_pairs_behind_a_place():
    text = train_labels.Text(torch.arange(40), torch.tensor([-1, 5, 5, 7] * 10), 8, 4)
    words, (crow, columns) = train_labels.sample(text, torch.tensor([0, 1]), torch.device("cpu"))
    assert words.tolist() == [[*range(8)], [*range(1, 9)]]
    assert crow.tolist() == [0, 2, 4]
    assert columns.tolist() == [5, 7, 5, 7]


def test_what_is_refused(tmp_path, capsys):
    for options in ("--dim 9999", "--accumulate 2", "--chunk 0", "--steps 0"):
        assert_refuses(train_siglip.parse, options, capsys)
    for options in ("--dim 9999", "--chunk -1", "--data /nowhere"):
        assert_refuses(train_labels.parse, options, capsys)
    (tmp_path / "short").write_text("a b c")
    with pytest.raises(SystemExit):
        train_labels.parse(["--data", str(tmp_path / "short")])
    assert "argument --data: " in capsys.readouterr().err
    for options, said in (
        (("--compare",), "argument --compare: PyTorch's operators need all labels in one process"),
        (("--dtype", "float16"), "argument --dtype: processes that share labels have no common scale for float16"),
    ):
        given = (*LABELS, "--parallel", "labels", *options, "--out", tmp_path / "out")
        assert_one_line(fork("train_labels.py", *given, processes=2), said, "train_labels.py")
    with pytest.raises(SystemExit):
        train_siglip.parse(["--parallel", "labels"])
    assert "invalid choice: 'labels'" in capsys.readouterr().err
    ended = fork("train_siglip.py", *SIGLIP, "--compare", "--out", tmp_path / "out", processes=2)
    assert_one_line(ended, "PyTorch's operators compute the loss of one process", "train_siglip.py")
