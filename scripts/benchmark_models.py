"""Time whole models in training, eager, patched by sigtorch, compiled, and both: tokens a second and peak memory.

A Llama of transformers, and a vision transformer of timm with packed SwiGLUs: their own code, random weights. Each way trains
a copy of its own (forward, backward and an AdamW step); the ways take turns, so that drift hits all alike, and the median of
the rounds counts. Peak memory is that of one step beyond weights and optimizer, gradients included.
On a CPU, patched models run PyTorch's operators: a difference there is noise, or the plug-in's own cost.

Needs models: pip install ".[scripts,models]". Sizes that fill a GPU: --layers 8 --dim 1024 --batch 8 --context 2048.
Example: python scripts/benchmark_models.py --models llama --ways eager patched
"""

import _start  # isort: skip
import argparse
import copy
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import _folder
import _report
import torch
import torch.nn.functional as F
from _measure import Step, peak_extra_bytes
from _options import DTYPES, device, folder, positive_int
from _output import progress, replacing
from _report import Record
from _timing import interleaved
from matplotlib.figure import Figure
from torch import Tensor

import sigtorch

WAYS = ("eager", "patched", "compiled", "patched and compiled")
PATCH, HEAD, VOCABULARY, CLASSES = 16, 64, 8192, 1000  # pixels of a patch, features of a head


def llama(args: argparse.Namespace) -> tuple[torch.nn.Module, Callable[[torch.nn.Module], Tensor]]:
    """A decoder, and its loss of the next token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, args.dim // HEAD)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=args.dim, intermediate_size=8 * args.dim // 3 // 32 * 32,
        num_hidden_layers=args.layers, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4), max_position_embeddings=args.context,
    )  # fmt: skip
    text = torch.randint(VOCABULARY, (args.batch, args.context), device=args.device)

    def loss(model: torch.nn.Module) -> Tensor:
        logits = model(text, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), text[:, 1:].flatten())

    return LlamaForCausalLM(config), loss


def vit(args: argparse.Namespace) -> tuple[torch.nn.Module, Callable[[torch.nn.Module], Tensor]]:
    """A vision transformer over as many patches as there is context, and its loss of a class."""
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    hidden = 16 * args.dim // 3 // HEAD * HEAD  # of gate and up together
    side = PATCH * max(1, round(args.context**0.5))
    model = VisionTransformer(
        img_size=side, patch_size=PATCH, embed_dim=args.dim, depth=args.layers, num_heads=max(1, args.dim // HEAD),
        mlp_ratio=(hidden + 0.5) / args.dim, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, num_classes=CLASSES,
    )  # fmt: skip
    images = torch.randn(args.batch, 3, side, side, device=args.device)
    classes = torch.randint(CLASSES, (args.batch,), device=args.device)
    return model, lambda model: F.cross_entropy(model(images).float(), classes)


MODELS = {"llama": llama, "vit": vit}


def step_of(model: torch.nn.Module, loss: Callable[[torch.nn.Module], Tensor], dtype: torch.dtype, kind: str) -> Step:
    """One step of training; half types by autocast, as in the training scripts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            value = loss(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps_of(name: str, args: argparse.Namespace) -> tuple[dict[str, Step], int]:
    """A step of each way, compiled and warm, and how many tokens it takes."""
    torch.manual_seed(0)
    plain, loss = MODELS[name](args)
    plain = plain.to(args.device).train()
    steps: dict[str, Step] = {}
    for way in args.ways:
        model = copy.deepcopy(plain)
        if "patched" in way:
            sigtorch.patch(model)
        if "compiled" in way:
            model.compile()
        steps[way] = step_of(model, loss, DTYPES[args.dtype], args.device.type)
        for _ in range(2):  # the optimizer's state comes with the first
            steps[way]()
    tokens = args.batch * (args.context if name == "llama" else round(args.context**0.5) ** 2 + 1)
    return steps, tokens


def measure(name: str, args: argparse.Namespace) -> list[Record]:
    """Tokens a second, the spread of the rounds, and peak memory of each way."""
    steps, tokens = steps_of(name, args)
    times, _ = interleaved(steps, args.rounds, args.device)
    shape = f"{args.batch}x{tokens // args.batch}"
    record = partial(Record, name, "step", args.dtype, shape)
    records = []
    for way, step in steps.items():
        seconds = times[way].median
        figures = [
            ("tokens a second", tokens / seconds, ""),
            ("spread", 100 * times[way].iqr / seconds, "%"),
            ("peak memory", peak_extra_bytes(step, args.device) / 2**20, "MiB"),
        ]
        if "eager" in times:
            figures.append(("speed", times["eager"].median / seconds, "× eager"))
        records += [record(way, args.device.type, metric, value, unit, "measured") for metric, value, unit in figures]
    return records


def draw(path: Any, records: Sequence[Record], title: str) -> None:
    """Bars of tokens a second and of peak memory, a row for each model."""
    names = list(dict.fromkeys(r.op for r in records))
    metrics = ("tokens a second", "peak memory")
    figure = Figure(figsize=(10, 1 + 1.8 * len(names)), dpi=110, layout="constrained")
    panels = figure.subplots(len(names), len(metrics), squeeze=False)
    for row, name in zip(panels, names, strict=True):
        for panel, metric in zip(row, metrics, strict=True):
            found = {r.implementation: r.value for r in records if (r.op, r.metric) == (name, metric)}
            bars = panel.barh(list(found), list(found.values()), color=[f"C{WAYS.index(way)}" for way in found])
            panel.bar_label(bars, [f"{value:,.0f}" for value in found.values()], padding=3)
            panel.set(title=f"{name}: {metric}{', MiB' if metric == 'peak memory' else ''}")
            panel.set_xlim(0, 1.2 * max(found.values()))
            panel.invert_yaxis()
    figure.suptitle(title, fontsize="medium")
    with replacing(path) as aside:
        figure.savefig(aside)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, or one line on what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(all)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="(all)")
    add("--layers", type=positive_int, default=4, help="of each model (%(default)s)")
    add("--dim", type=positive_int, default=256, help=f"features, a multiple of {HEAD} (%(default)s)")
    add("--batch", type=positive_int, default=2, help="texts or images a step (%(default)s)")
    add("--context", type=positive_int, default=256, help="tokens of a text, or patches of an image (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 by autocast (%(default)s)")
    add("--rounds", type=positive_int, default=10, help="times each way is timed; the median counts (%(default)s)")
    add("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--out", type=folder, help="new folder for CSV, JSON and picture (runs/models, runs/models-2, ...)")
    args = parser.parse_args(arguments)
    if args.dim % HEAD:
        parser.error(f"--dim: wants a multiple of {HEAD}, not {args.dim}")
    for name, package in (("llama", "transformers"), ("vit", "timm")):
        if name in args.models and importlib.util.find_spec(package) is None:
            parser.error(f"--models {name} needs {package}: pip install '.[models]'")
    return args


def main() -> None:
    """Measure what the options ask for."""
    args = parse()
    with _folder.for_results(args.out, "runs/models", ("models.csv", "models.json")) as out:
        records: list[Record] = []
        with progress("models", len(args.models)) as done:
            for name in args.models:
                records += measure(name, args)
                done()
        head = _report.header(args.device if args.device.type == "cuda" else None)
        _report.show(head, records)
        _report.write(out, "models", head, records)
        hardware = head["gpu"] if args.device.type == "cuda" else f"{head['cpu']}, {head['threads']} threads"
        draw(out / "models.png", records, f"A training step in {args.dtype}, {hardware}")
        print(f"written: {out}{os.sep}models.csv, models.json, models.png")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
