"""The benchmark as a user runs it, and the report that it fills."""

import csv
import resource
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import _chunked
import _host
import _report
import _timing
import benchmark as benchmark_script
import pytest
import torch
from _cases import CASES, one_pass
from matplotlib.image import imread
from support.device import DEVICE
from support.forking import forks
from support.scripting import assert_picture, fork, run

import sigtorch

RECORD = _report.Record("op", "forward", "float32", "4x32", "eager", "cpu", "bandwidth", 1.5, "GB/s", "measured")


# The report.


def test_records_survive_json(tmp_path):
    records = [RECORD, replace(RECORD, pass_="both", value=0.1, kind="modelled")]
    _report.write(tmp_path / "new", "r", {"torch": "2"}, records)
    assert _report.read_json(tmp_path / "new" / "r.json") == ({"torch": "2"}, records)


def test_csv_has_a_line_a_figure(tmp_path):
    _report.write(tmp_path, "r", {}, [RECORD, RECORD])
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == "op,pass,dtype,shape,implementation,device,metric,value,unit,kind"
    assert rows[1]["pass"] == "forward"
    assert rows[1]["value"] == "1.5"


def no_room(tmp_path):
    """Write a report where files of no more than 100 bytes fit; in a process of its own."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    for write in (_report.write, lambda folder, name, *_: _report.picture(folder / "r.png", [RECORD], "bandwidth", "")):
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path, "r", {}, [RECORD])


def test_a_full_disk_leaves_no_torn_report(tmp_path):
    (tmp_path / "r.csv").write_text("before")
    process = forks().Process(target=no_room, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"r.csv": "before"}


def test_table_has_a_row_a_subject_and_a_column_a_metric():
    records = [RECORD, replace(RECORD, metric="time", value=12345.6), replace(RECORD, implementation="compile")]
    table = _report.table("measured", records)
    assert [column.header for column in table.columns] == ["implementation", "bandwidth\nGB/s", "time\nGB/s"]
    assert [list(column.cells) for column in table.columns] == [["eager", "compile"], ["1.5", "1.5"], ["12,346", ""]]
    assert table.title == "measured · op · forward · float32 · 4x32 · cpu"


def test_header_names_versions_and_hardware():
    head = _report.header()
    assert head["torch"] == __import__("torch").__version__
    assert {"triton", "python", "cpu", "gpu", "threads", "date"} <= set(head)


def test_conditions_are_one_line_however_long(capsys):
    _report.show({"cpu": "a long name " * 30, "driver": "none"}, [RECORD])
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"cpu {'a long name ' * 30}, driver none"


def test_picture_draws_only_the_metric_asked_for(tmp_path):
    records = [replace(RECORD, shape=shape, implementation=i) for shape in ("8", "4x32") for i in ("eager", "copy")]
    _report.picture(tmp_path / "a.png", records, "bandwidth", "title")
    _report.picture(tmp_path / "b.png", [*records, replace(RECORD, metric="time")], "bandwidth", "title")
    _report.picture(tmp_path / "c.png", [*records, replace(RECORD, shape="16")], "bandwidth", "title")
    a, b, c = (imread(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    assert (a == b).all()
    assert (a != c).any()


def test_bars_of_all_implementations_stand_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(_report.Figure, "savefig", lambda figure, path: (drawn.append(figure), path.touch()))
    speed = replace(RECORD, pass_="both", metric="speed", value=2.0)
    names = benchmark_script.IMPLEMENTATIONS
    _report.overview(tmp_path / "a.png", [replace(speed, op=op, implementation=i) for op in "ab" for i in names], "")
    bars = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in drawn[0].axes[0].patches)
    assert len(bars) == 2 * (len(names) - 1)  # eager is a line
    assert all(end < start for (_, end), (start, _) in pairwise(bars))


# The benchmark.


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    settings = ["--ops", "sigmoid", "--sizes", 300, 4096, "--dtypes", "float32", "--device", "cpu", "--rounds", 2]
    made = fork("benchmark.py", *settings, "--machine-code", "--bytes", "--out", out, PYTHONIOENCODING="ascii")
    return made, out


def test_benchmark_prints_its_tables(benchmark):
    result, out = benchmark
    assert result.returncode == 0, result.stderr
    for text in (
        r"measured \xb7 sigmoid",
        r"modelled \xb7 sigmoid",
        "bandwidth",
        r"\xd7 eager",
        "share of copy",
        "sm_90",
        str(out),
    ):
        assert text in result.stdout


def test_benchmark_records_are_complete(benchmark):
    head, records = _report.read_json(benchmark[1] / "benchmark.json")
    assert head["backend"] == "aten"
    measured = [record for record in records if record.kind == "measured"]
    names = {record.implementation for record in measured}
    compiled = set(benchmark_script.COMPILED) & names  # where there is a C++ compiler
    assert compiled in (set(), set(benchmark_script.COMPILED))
    assert names == {"eager", "sigtorch", "copy"} | compiled
    metrics = {"time", "spread", "bandwidth", "share of copy", "speed", "peak extra memory"}
    for name in names:
        found = {(r.pass_, r.shape, r.metric) for r in measured if r.implementation == name}
        wanted = metrics if name != "copy" else {"time", "spread", "bandwidth"}
        passes = ("forward", "backward", "both")
        assert found == {(p, n, m) for p in passes for n in ("300", "4096") for m in wanted}
    assert all(record.value > 0 for record in measured if record.metric != "spread")
    with (benchmark[1] / "benchmark.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(records)


def test_benchmark_figures_agree_with_each_other(benchmark):
    _, records = _report.read_json(benchmark[1] / "benchmark.json")
    figures = {(r.pass_, r.shape, r.implementation, r.metric): r.value for r in records if r.kind == "measured"}
    for (pass_, shape, name, metric), value in figures.items():
        time, rate = figures[pass_, shape, name, "time"], figures[pass_, shape, name, "bandwidth"]
        if metric == "bandwidth":
            floats = {"forward": 2, "backward": 3, "both": 5}[pass_] if name != "copy" else 2
            assert value == pytest.approx(floats * 4 * int(shape) / time / 1e6)
        elif metric == "speed":
            assert value == pytest.approx(figures[pass_, shape, "eager", "time"] / time)
        elif metric == "share of copy":
            assert value == pytest.approx(100 * rate / figures[pass_, shape, "copy", "bandwidth"])
        elif metric == "peak extra memory":  # forward's output, backward's gradient, rounded up by the allocator
            held = {"forward": 1, "backward": 1, "both": 2}[pass_] * 4 * int(shape) / 2**20
            assert held <= value <= 1.3 * held + 256 / 2**20


def test_benchmark_counts_machine_code(benchmark):
    _, records = _report.read_json(benchmark[1] / "benchmark.json")
    figures = {(r.device, r.pass_, r.metric): r.value for r in records if r.kind == "modelled"}
    for arch in ("sm_80", "sm_90", "sm_100"):
        assert figures[arch, "forward", "MUFU per element"] == 2  # an exponential and a reciprocal
        assert figures[arch, "backward", "MUFU per element"] == 0
        assert 2 < figures[arch, "forward", "instructions per element"] < 30
        assert figures[arch, "forward", "narrowest access"] >= 128


def test_benchmark_counts_bytes(benchmark):
    _, records = _report.read_json(benchmark[1] / "benchmark.json")
    figures = {(r.implementation, r.metric): r.value for r in records if r.device == "any"}
    assert figures == {
        ("eager", "bytes per element"): 20,  # read and write; read two and write one
        ("eager", "operators"): 2,
        ("sigtorch", "bytes per element"): 20,
    }


@pytest.mark.parametrize(
    ("op", "expected"), [("swiglu", (28, 5)), ("swiglu-packed", (36, 6)), ("sigmoid_lerp", (66, 12)), ("glu", (16, 2))]
)
def test_bytes_of_eager_operators(op, expected):
    eager = [r.value for r in benchmark_script.traffic(op, "bfloat16", 4096) if r.implementation == "eager"]
    assert tuple(eager) == expected


def test_benchmark_draws_a_picture(benchmark):
    assert_picture(benchmark[1] / "sigmoid.png")
    assert_picture(benchmark[1] / "speed.png")


@pytest.mark.skipif(DEVICE == "cpu" and not shutil.which("cc"), reason="a driver's stand-in needs a C compiler")
def test_benchmark_tells_what_a_call_costs_the_host(tmp_path):
    result = run("benchmark.py", "--host", "--ops", "swiglu", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["host.csv", "host.json"]
    assert "threads 1," in result.stdout
    assert ("a stand-in that does nothing" in result.stdout) == (DEVICE == "cpu")
    names = ("autograd.Function", "eager", "sigtorch", "operator", "patched")
    rows = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    times = {row[1]: float(row[2]) for row in rows if len(row) == 4 and row[1] in names}
    assert tuple(times) == names
    assert all(0 < time < 1000 for time in times.values())


@pytest.mark.kernels
@pytest.mark.any_arch
@pytest.mark.parametrize("op", CASES)
def test_the_hosts_time_of_an_operator_is_of_the_same_work(op):
    """One operator forward and one backward, as under a dispatch mode, and the same gradients."""
    is_summed = CASES[op].moved is one_pass
    inputs, seen, grads = CASES[op].inputs(2048, torch.float32, torch.device(DEVICE)), [], []
    with sigtorch.use_backend("triton"):
        for function in (CASES[op].ours, _host.by_operator(CASES[op].ours, inputs)):
            torch.manual_seed(0)
            step = _timing.passes_of(function, inputs)["both"]
            with _host.Calls() as calls:
                grads.append(step())
            seen.append([str(called) for called, _ in calls.kept])
    assert seen[0] == seen[1]
    forward, backward = seen[0]
    expected = forward.replace(".default", "_backward.default")
    assert backward == ("sigtorch.scale_loss_gradient_.default" if is_summed else expected)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_without_a_compiler_nothing_is_compiled(monkeypatch, tmp_path):
    timed = []
    monkeypatch.setattr(benchmark_script, "can_compile", lambda device: False)
    monkeypatch.setattr(benchmark_script, "measure", lambda op, dtype, n, args, done: timed.append(args.backends) or [])
    settings = ["--ops", "sigmoid", "--sizes", "4", "--dtypes", "float32", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *settings, "--out", str(tmp_path)])
    benchmark_script.main()
    assert timed == [["eager", "sigtorch"]]


def test_what_does_not_fit_is_left_out(monkeypatch, capsys, tmp_path):
    def measure(op, dtype, n, args, done):
        if n == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [replace(RECORD, op=op, shape=str(n))]

    monkeypatch.setattr(benchmark_script, "measure", measure)
    settings = [
        "--ops",
        "sigmoid",
        "--sizes",
        "4",
        "8",
        "--dtypes",
        "float32",
        "--backends",
        "eager",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *settings, "--out", str(tmp_path)])
    benchmark_script.main()
    assert "sigmoid of 8 elements in float32 is left out: out of memory on cpu" in capsys.readouterr().out
    assert {r.shape for r in _report.read_json(tmp_path / "benchmark.json")[1]} == {"4"}
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *settings, "--sizes", "8", "--out", str(tmp_path / "again")])
    benchmark_script.main()
    assert capsys.readouterr().out.splitlines()[-1].endswith("benchmark.csv, benchmark.json"), "nothing to draw"


def test_on_a_gpu_sets_of_inputs_take_turns(monkeypatch):
    """There are as many sets as its cache does not hold."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50 * 2**20))
    t = SimpleNamespace(device=torch.device("cuda"), numel=lambda: 2**22, element_size=lambda: 2)
    assert _timing.rotation(t) == 13
    assert _timing.rotation(torch.ones(4)) == 1
    seen = []
    step = _timing.in_turn([lambda i=i: seen.append(i) for i in range(3)])
    for _ in range(6):
        step()
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_a_gpus_time_is_its_events(monkeypatch):
    clock, log = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            return 40.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += 0.003
        log.append("step")

    assert _timing.on_device(step, 2) == (pytest.approx(0.02), pytest.approx(0.003))
    assert log == ["wait", "sleep", "record", "step", "step", "record", "wait"]


def test_benchmark_refuses_in_one_line():
    result = fork("benchmark.py", "--sizes", 0)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("argument --sizes: wants a whole number of at least 1, not '0'")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--ops", "tanh"], "argument --ops: invalid choice: 'tanh'"),
        (["--dtypes", "int8"], "argument --dtypes: invalid choice: 'int8'"),
        (["--passes", "sideways"], "argument --passes: invalid choice: 'sideways'"),
        (["--backends", "jax"], "argument --backends: invalid choice: 'jax'"),
        (["--rounds", "-1"], "argument --rounds: wants a whole number of at least 1, not '-1'"),
        (["--device", "cuda:99"], "argument --device: there is no device 'cuda:99'"),
        (["--out", "/dev/null/x"], "argument --out: cannot write into a folder '/dev/null/x'"),
        (["--machine-code"], "--machine-code: TRITON_INTERPRET is set"),
        (["--host"], "--host: TRITON_INTERPRET is set"),
        (["--host", "--bytes"], "--host: it measures the host and nothing else; leave out --bytes"),
        (
            ["--chunked", "--machine-code"],
            "--chunked: it measures losses in chunks and nothing else; leave out --machine-code",
        ),
    ],
)
def test_benchmark_refuses_nonsense(arguments, reason, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        benchmark_script.parse(arguments)
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_nothing_stands_in_for_a_gpu(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        benchmark_script.parse(["--host", "--device", "cpu"])
    assert "--host --device cpu: there is a GPU" in capsys.readouterr().err.splitlines()[-1]


# The losses in chunks.


def test_benchmark_measures_losses_in_chunks(tmp_path, monkeypatch):
    """Eight of the nine processes are forked, for speed."""
    start = _chunked.in_its_own_process
    settings = ["--chunked", "--sizes", 1500, "--rounds", 1, "--device", "cpu", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, settings)])
    with forks().Pool(1, torch.set_num_threads, (1,), maxtasksperchild=1) as pool:

        def in_its_own_process(op, name, *of):
            new = (op, name) == ("siglip", "eager")
            return start(op, name, *of) if new else pool.apply(_chunked.extra_memory, (op, name, *of))

        monkeypatch.setattr(_chunked, "in_its_own_process", in_its_own_process)
        benchmark_script.main()
    _, records = _report.read_json(tmp_path / "chunked.json")
    names = {(r.op, r.implementation) for r in records}
    assert names == {(op, name) for op in _chunked.LOSSES for name in _chunked.NAMES}
    figures = {(r.op, r.implementation, r.shape.split("x")[0], r.metric): r.value for r in records}
    eager, ours = (figures["siglip", name, "1500", "extra memory"] for name in ("eager", "sigtorch"))
    assert eager > 3 * 1500**2 * 4 / 2**20  # logits, their losses and gradients
    assert 0 < ours < eager
    assert figures["siglip", "eager", "1500", "of eager's time"] == 1
    assert_picture(tmp_path / "chunked.png")


@pytest.mark.parametrize("op", _chunked.LOSSES)
def test_all_ways_to_a_loss_agree(op):
    loss = _chunked.LOSSES[op]
    given, targets = loss.inputs(1100, torch.device("cpu"))
    eager, *others = (torch.autograd.grad(way(given, targets), given) for way in loss.ways.values())
    for grads in others:
        torch.testing.assert_close(grads, eager, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_not_tried(monkeypatch):
    assert _chunked.fits("siglip", "eager", 64, torch.device("cpu"))
    assert not _chunked.fits("siglip", "eager", 10**6, torch.device("cpu"))
    assert _chunked.fits("siglip", "sigtorch", 10**6, torch.device("cpu"))
