"""The benchmark of attention: its ways compute one thing, and what it writes."""

import json
import warnings

import benchmark_attention
import pytest
import torch

import sigtorch


@pytest.mark.parametrize("causal", [False, True])
def test_its_ways_compute_the_same(causal):
    q, k, v = torch.randn(3, 1, 2, 32, 16)
    expected = sigtorch.sigmoid_attention(q, k, v, is_causal=causal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FlexAttention, not compiled
        for way in (benchmark_attention.plain, benchmark_attention.flex):
            torch.testing.assert_close(way(q, k, v, causal), expected, rtol=1e-4, atol=1e-5)


def test_it_measures(tmp_path, capsys, monkeypatch):
    options = ["--contexts", "16", "32", "--heads", "1", "--dim", "8", "--rounds", "1", "--device", "cpu", "--causal"]
    monkeypatch.setattr("sys.argv", ["benchmark_attention.py", *options, "--out", str(tmp_path / "out")])
    benchmark_attention.main()
    written = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert written["header"]["causal"]
    assert {r["implementation"] for r in written["records"]} == {"plain", "sigtorch", "softmax"}
    assert {r["shape"] for r in written["records"]} == {"1x1x16x8", "1x1x32x8"}
    assert all(r["value"] > 0 for r in written["records"] if r["metric"] != "spread")
    assert "attention.csv" in capsys.readouterr().out
