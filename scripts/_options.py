"""Options that mean the same in every script, and one line for each that makes no sense."""

import argparse
import importlib
import math
import os
import random
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import _distributed
import numpy
import torch
from _output import Row, first_line

import sigtorch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRAINED = ("float32", "bfloat16", "float16")
# What a resumed training may change without a word: it decides where and how fast, not what is computed.
SILENT = {"device", "out", "parallel", "checkpoint_every", "resume", "tensorboard", "accumulate", "compile"}


def positive_int(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"wants a whole number of at least 1, not {text!r}")
    return number


def positive_float(text: str) -> float:
    """An argparse type: a finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"wants a finite number above 0, not {text!r}")
    return number


def seed(text: str) -> int:
    """An argparse type: what torch, numpy and random all take as a seed."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"wants a whole number from 0 to 2**32 - 1, not {text!r}")
    return number


def device(text: str) -> torch.device:
    """An argparse type: a device that is there and holds numbers; "auto" takes a GPU where there is one.

    Of several processes each takes the GPU of its own number.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text
    number = _distributed.local_rank()
    if number is not None and name.startswith("cuda:"):
        raise argparse.ArgumentTypeError(f"each process takes a GPU of its own: cuda, not {text!r}")
    if number is not None and name == "cuda":
        name = f"cuda:{number}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing driver warns first and then raises
            found = torch.ones(1, device=name).cpu().to(name).device
        there = torch.device(name).index in (None, found.index)  # torch takes "cpu:1" for "cpu"
    except (RuntimeError, AssertionError, ValueError):  # torch raises any of them, on several lines
        there = False
    if not there:
        raise argparse.ArgumentTypeError(f"there is no device {name!r} here")
    return found


def folder(text: str) -> Path:
    """An argparse type: a folder that is there, or that can be made."""
    path = Path(text)
    try:
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        fits = bool(text) and there.is_dir() and os.access(there, os.W_OK)
    except OSError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"cannot write into a folder {text!r}")
    return path


class Parser(argparse.ArgumentParser):
    """A parser in each of several processes: what one of them refuses ends all, in one line."""

    def error(self, message: str) -> NoReturn:
        self.agree(message)
        raise SystemExit(2)  # not reached: there is a message

    def agree(self, message: str | None = None) -> None:
        """Hear whether another process has something to refuse."""
        refused = next((said for said in _distributed.gather(message) if said is not None), None)
        if refused is not None:
            if _distributed.rank() == 0:
                super().error(refused)
            sys.exit(2)


def add_options(
    parser: argparse.ArgumentParser,
    script: str,
    *,
    out: str,
    save: bool = False,
    dtypes: Iterable[str] = TRAINED,
    parallel: Iterable[str] = _distributed.PARALLEL,
) -> None:
    """Add what every training script takes; save only where there are sigmoids to choose it for."""
    add, flag = parser.add_argument, {"action": "store_true"}
    parser.set_defaults(script=Path(script).name, checkpoint=None, changed=())
    add("--seed", type=seed, default=0, help="start of every random number (%(default)s)")
    add("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--dtype", choices=dtypes, default="float32", help="that products are computed in; half types by autocast")
    backend = os.environ.get("SIGTORCH_BACKEND") or "auto"
    add("--backend", choices=("auto", "triton", "aten"), default=backend, help="what computes (%(default)s)")
    if save:
        saves = {"choices": ("output", "input"), "default": "output"}
        add("--save", **saves, help="what a sigmoid keeps for backward (%(default)s)")
    else:
        parser.set_defaults(save="output")
    add("--patch", **flag, help="write the model in plain PyTorch and plug sigtorch in with sigtorch.patch")
    add("--compare", **flag, help="train with PyTorch's own operators too, and show both")
    add("--compile", **flag, help="run the model through torch.compile")
    add(
        "--accumulate",
        type=positive_int,
        default=1,
        metavar="N",
        help="parts that a batch is computed in (%(default)s)",
    )
    add("--clip", type=positive_float, metavar="NORM", help="largest norm of the gradient (%(default)s)")
    add("--parallel", choices=parallel, default="ddp", help="what processes share (%(default)s)")
    add("--out", type=folder, default=out, help="folder for all that it writes (%(default)s)")
    add("--checkpoint-every", type=positive_int, metavar="STEPS", help="(only at the end, or when a signal comes)")
    add("--resume", **flag, help="go on from the newest complete checkpoint in --out")
    add("--tensorboard", **flag, help="log for TensorBoard, too")


def check(parser: Parser, args: argparse.Namespace, samples: int) -> None:
    """Refuse in one line what does not go together, or does not work here; set the device."""
    of_samples = 1 if args.parallel == "labels" else _distributed.size()
    shares, batch = of_samples * args.accumulate, args.batch
    processes = f"{_distributed.size()} process{'es' * (_distributed.size() > 1)}"
    if samples < _distributed.size():
        parser.error(f"{processes} need a sample each to train on, and the number of samples is {samples}")
    if batch % shares:
        divided = processes + f" times --accumulate {args.accumulate}" * (args.accumulate > 1)
        parser.error(f"argument --batch: {batch} a step can't be divided evenly among {divided}")
    if args.tensorboard:
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            parser.error(
                "argument --tensorboard: TensorBoard is not installed; the extra sigtorch[tensorboard] brings it"
            )
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
    try:
        with sigtorch.use_backend(args.backend):
            x = torch.ones(1, 1, device=args.device, dtype=DTYPES[args.dtype], requires_grad=True)
            sigtorch.sigmoid(x @ x, save=args.save).sum().backward()
        if args.compile:
            torch.compile(torch.sigmoid)(x)
    except (RuntimeError, TypeError, ValueError) as error:
        parser.error(first_line(error))
    parser.agree()


def config(args: argparse.Namespace) -> Row:
    """The options as plain values."""
    left_out = ("checkpoint", "changed")
    values = {name: value for name, value in vars(args).items() if name not in left_out}
    return {name: str(value) if isinstance(value, (Path, torch.device)) else value for name, value in values.items()}


def seed_everything(number: int) -> None:
    """Start every random number generator at the same place."""
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)
