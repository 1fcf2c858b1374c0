"""The backend that is selected, and errors that say why it cannot be Triton."""

import builtins
import os
from types import SimpleNamespace

import numpy
import pytest
import torch
from support.fresh import outcomes
from support.refusing import refused
from torch.utils.flop_counter import FlopCounterMode

import sigtorch
from sigtorch import _backend, _eligible

DECISIONS = (_backend._select_cached, _backend._triton_works_on, _backend.obstacle)  # kept, once made


def test_bad_arguments():
    x = torch.randn(3)
    refused(TypeError, lambda: sigtorch.sigmoid([1.0]), "list", "Tensor")
    refused(TypeError, lambda: sigtorch.sigmoid(None, save="input"), "NoneType")
    refused(ValueError, lambda: sigtorch.sigmoid(x, save="both"), "'both'", "'output'", "'input'")
    refused(ValueError, lambda: sigtorch.sigmoid(x, save=torch.zeros(9, 9)), "save=tensor([[0.")
    refused(ValueError, lambda: sigtorch.sigmoid(x, save=numpy.zeros(9)), "save=array([0.")
    refused(ValueError, lambda: sigtorch.nn.Sigmoid(save=1), "save=1")
    y, meta = torch.randn(4), torch.randn(3, device="meta")
    refused(ValueError, lambda: sigtorch.sigmoid_gate(x, y), "sigmoid_gate()", "x (3,)", "gate (4,)")
    refused(ValueError, lambda: sigtorch.sigmoid_gate(x, x, y), "residual (4,)")
    refused(ValueError, lambda: sigtorch.sigmoid_lerp(x, x, y), "sigmoid_lerp()", "gate (4,)")
    refused(ValueError, lambda: sigtorch.swiglu(x, y), "swiglu()", "up (4,)")
    refused(ValueError, lambda: sigtorch.swiglu(x, meta), "gate on cpu", "up on meta")
    refused(ValueError, lambda: sigtorch.swiglu(x), "dim=-1", "gate of shape (3,)")
    refused(ValueError, lambda: sigtorch.glu(x), "glu()", "input of shape (3,)")
    refused(ValueError, lambda: sigtorch.glu(y, 1), "dim=1", "(4,)")
    refused(TypeError, lambda: sigtorch.glu(y, "0"), "dim", "str")
    refused(TypeError, lambda: sigtorch.glu(y, torch.arange(2)), "dim", "tensor([0, 1])")
    refused(TypeError, lambda: sigtorch.glu(y, numpy.zeros((3, 3), int)), "dim", "array([[0,")
    refused(TypeError, lambda: sigtorch.glu(y, torch.tensor(0.0)), "dim", "tensor(0.)")
    refused(TypeError, lambda: sigtorch.nn.GLU(torch.rand(2))(y), "dim", "tensor([")
    refused(TypeError, lambda: sigtorch.sigmoid_gate(x, 1.0), "gate", "float")
    refused(TypeError, lambda: sigtorch.swiglu([1.0]), "gate", "list")


def test_triton_forced_where_it_cannot_be(monkeypatch, device):
    with sigtorch.use_backend("triton"):
        refused(TypeError, lambda: sigtorch.sigmoid(torch.arange(3, device=device)), "torch.int64")
        x = torch.randn(3, dtype=torch.complex64, device=device)
        refused(TypeError, lambda: sigtorch.sigmoid(x), "torch.complex64")
        monkeypatch.setattr(_backend, "_interprets_or_stands_in", lambda kind: False)
        for missing, kind, quoted in [
            (None, ValueError, ("cpu", "TRITON_INTERPRET")),
            ("No module named 'triton'", RuntimeError, ("No module named 'triton'",)),
        ]:
            monkeypatch.setattr(_backend, "_triton_missing", lambda missing=missing: missing)
            for f in DECISIONS:
                f.cache_clear()
            refused(kind, lambda: sigtorch.sigmoid(torch.randn(3)), *quoted)


def test_a_cuda_tensors_keys_are_plain():
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA) | torch._C.DispatchKeySet(
        torch._C.DispatchKey.AutocastCUDA
    )
    assert cuda.raw_repr() in _eligible._PLAIN_KEYS
    assert torch._C._dispatch_keys(torch.randn(2)).raw_repr() in _eligible._PLAIN_KEYS


@pytest.fixture
def on_cuda(monkeypatch):
    """Stand-ins for CUDA tensors, of a device as described; what does not look at more of them than _backend does."""

    def make(dtypes, capability=(9, 0), hip=None, failure=None):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(_backend, "_probe", lambda index: failure)
        monkeypatch.setattr(_backend, "have_plain_keys", lambda _: True)
        monkeypatch.setattr(_backend, "_interprets_or_stands_in", lambda kind: False)
        device = torch.device("cuda", 0)
        return [SimpleNamespace(dtype=d, device=device, is_cuda=True, get_device=lambda: 0) for d in dtypes]

    for f in DECISIONS:
        f.cache_clear()
    yield make
    for f in DECISIONS:
        f.cache_clear()


@pytest.mark.parametrize(
    ("dtypes", "seen", "expected"),
    [
        ([torch.bfloat16], {}, "triton"),
        ([torch.float16, torch.float32], {"capability": (8, 0)}, "triton"),
        ([torch.float64, torch.float64], {"capability": (10, 0)}, "triton"),
        ([torch.float64, torch.float32], {}, "aten"),
        ([torch.int64], {}, "aten"),
        ([torch.bfloat16], {"capability": (7, 5)}, "aten"),
        ([torch.bfloat16], {"hip": "6.0"}, "aten"),
    ],
)
def test_auto_on_cuda_takes_what_the_kernels_take(dtypes, seen, expected, on_cuda):
    assert _backend.select(*on_cuda(dtypes, **seen)) == expected


def test_tensors_of_several_devices_are_pytorchs(on_cuda):
    """PyTorch names the mistake; a kernel would read outside of its tensors."""
    here, there = *on_cuda([torch.float32]), torch.zeros(3)
    for given, beside in (((here, there), ()), ((here,), (there,)), ((here,), (there.long(),))):
        for choice in ("auto", "triton"):
            with sigtorch.use_backend(choice):
                assert _backend.select(*given, beside=beside) == "aten"


def test_auto_says_once_that_triton_fails(on_cuda):
    tensors = on_cuda([torch.float32], failure="RuntimeError: Failed to find C compiler.")
    with pytest.warns(RuntimeWarning, match="PyTorch's operators on cuda:0, .*: Failed to find C compiler") as seen:
        assert [_backend.select(*tensors) for _ in range(3)] == ["aten"] * 3
    assert len(seen) == 1
    assert "\n" not in str(seen[0].message)


@pytest.mark.parametrize(
    ("seen", "quoted"),
    [
        ({"failure": "AssertionError: libcuda.so cannot found!"}, ("cuda:0", "libcuda.so cannot found!")),
        ({"hip": "6.0"}, ("ROCm",)),
        ({"capability": (7, 5)}, ("8.0", "7.5", "cuda:0")),
    ],
    ids=str,
)
def test_triton_forced_where_it_fails(seen, quoted, on_cuda):
    with sigtorch.use_backend("triton"):
        tensors = on_cuda([torch.float32], **seen)
        refused(RuntimeError, lambda: _backend.select(*tensors), *quoted)


def test_auto_says_that_triton_is_broken(on_cuda, monkeypatch):
    monkeypatch.setattr(_backend, "_triton_missing", lambda: "OSError: libtriton: cannot open")
    with pytest.warns(RuntimeWarning, match="PyTorch's operators on cuda:0, .*: OSError: libtriton: cannot open"):
        assert _backend.select(*on_cuda([torch.float32])) == "aten"


ON_THE_CPU = "import sigtorch, torch\nwith sigtorch.use_backend('triton'): sigtorch.sigmoid(torch.randn(3))"
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, sigtorch
x = torch.randn(3, requires_grad=True)
sigtorch.sigmoid(x, save="input").sum().backward()
print(sigtorch.backend_of(x), x.grad is not None)
"""
WITH_ANOTHER_TRITON = """
import sys
sys.path.insert(0, {folder!r})
{then}
"""
OF_ANOTHER_TRITON = {"broken": "raise OSError('libtriton:\\n cannot open')", "too old": ""}
PROBE = """
import sys
sys.path.insert(0, "scripts")
{before}
from sigtorch import _backend
print(_backend._probe(0))
"""
BELIEVED = """
import contextlib, torch
torch.cuda.is_available = lambda: True
torch.cuda.device = lambda index: contextlib.nullcontext()
"""
STAND_IN = (
    """
from without_gpu import standin
standin.install({arch})
"""
    + BELIEVED
)
# What runs before the probe, its environment, and what its answer speaks of.
PROBED = {
    "no device": ("", {}, "RuntimeError: "),
    "no compiler": (BELIEVED, {"CC": "/nowhere/cc", "TRITON_LIBCUDA_PATH": "/nowhere"}, "/nowhere/cc"),
    "no driver": (BELIEVED, {}, "libcuda"),
    "a chip newer than the assembler": (STAND_IN.format(arch=999), {}, "sm_999"),
    "none": (STAND_IN.format(arch=90), {}, "None"),
    "interpreted": ("", {"TRITON_INTERPRET": "1"}, "None"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The programs below, after they ran."""
    programs = {"engine": (ON_THE_CPU, {"TRITON_INTERPRET": "0", "PATH": ""}), "missing": (WITHOUT_TRITON, os.environ)}
    for kind, source in OF_ANOTHER_TRITON.items():
        folder = tmp_path_factory.mktemp("another")
        (folder / "triton").mkdir()
        for name in ("__init__", "language"):
            (folder / "triton" / f"{name}.py").write_text(source)
        programs[kind] = WITH_ANOTHER_TRITON.format(folder=str(folder), then=ON_THE_CPU), os.environ
    for name, (before, variables, _) in PROBED.items():
        fresh = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
        programs[name] = PROBE.format(before=before), {**os.environ, **fresh, **variables}
    return outcomes(programs)


def test_without_an_engine_a_cpu_tensor_is_out_of_reach(ended):
    last = ended["engine"].raised.strip().splitlines()[-1]
    assert last.startswith("ValueError: backend 'triton' cannot reach a tensor on cpu")


def test_works_where_triton_is_missing(ended):
    assert ended["missing"].printed == "aten True\n", ended["missing"].raised


@pytest.mark.parametrize(
    ("kind", "said"), [("broken", "OSError: libtriton: cannot open"), ("too old", "AttributeError: ")]
)
def test_why_triton_cannot_be_imported_is_a_line(kind, said, ended):
    last = ended[kind].raised.strip().splitlines()[-1]
    assert last.startswith(f"RuntimeError: backend 'triton' was asked for, but triton cannot be imported: {said}"), last


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, (_, _, said) in PROBED.items()], ids=PROBED)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a stand-in for a driver that is there")
def test_why_triton_fails_is_a_line(name, said, ended):
    assert said in ended[name].printed.splitlines()[-1], ended[name].raised  # Triton itself may print before


def test_plain_means_that_nothing_watches():
    x = torch.randn(3)
    assert _eligible.plain(x, torch.nn.Parameter(x))
    with torch.device("cpu"):
        assert _eligible.plain(x), "a default device watches nothing"
    with torch.overrides.BaseTorchFunctionMode():
        assert not _eligible.plain(x)
    with FlopCounterMode(display=False):
        assert not _eligible.plain(x)
    with torch.autograd.forward_ad.dual_level():
        assert not _eligible.plain(x)
    with torch.inference_mode():
        made = torch.randn(3)
        assert _eligible.plain(made)
    assert not _eligible.plain(made), "no backward pass may save it"
    with torch.no_grad():
        assert _eligible.plain(made)
    assert not _eligible.plain(x.to_sparse())
    assert not _eligible.plain(torch.randn(3, dtype=torch.complex64).conj())
    assert not _eligible.plain(1.0)
    assert builtins.all(torch.func.vmap(lambda t: t if not _eligible.plain(t) else 1 / 0)(x) == x)


def test_an_error_that_is_raised_again_holds_nothing_of_the_first_time(monkeypatch):
    obstacle = ValueError("out of reach")
    monkeypatch.setattr(_backend, "obstacle", lambda index: obstacle)
    raised = []
    for _ in range(2):
        try:
            _backend._require_kernels(-1, ())
        except ValueError as error:
            raised.append(error)
    assert raised[0] is not raised[1]
    assert str(raised[1]) == "out of reach"
