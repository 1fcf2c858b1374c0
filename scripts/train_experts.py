"""Train the small GPT of train_text.py with a mixture of experts in each block, whose loads a bias keeps even.

A sigmoid router chooses a few of many SwiGLU feed-forwards for each byte. After every step it raises the bias of each
expert with less than the mean load, and lowers that of each with more: no loss of its own balances them.
Examples: python scripts/train_experts.py --steps 500 --compare
torchrun --standalone --nproc-per-node 2 scripts/train_experts.py --parallel fsdp --out runs/experts-2
"""

import _start  # isort: skip
import argparse
import dataclasses
import math
from functools import partial
from typing import Any

import _distributed
import _folder
import _options
import _output
import _training
import torch
import train_text
from torch import Tensor, nn
from torch.nn import functional as F

import sigtorch

EXTREMES = ("largest_load", "smallest_load")


class PlainRouter(sigtorch.nn.SigmoidRouter):
    """The same in PyTorch's operators."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight).sigmoid()
        indices = (scores.detach() + self.e_score_correction_bias).topk(self.k, dim=-1).indices
        weights = scores.gather(-1, indices)
        return weights / weights.sum(-1, keepdim=True), indices


ROUTERS = {"sigtorch": sigtorch.nn.SigmoidRouter, "patched": PlainRouter, "torch": PlainRouter}


class Experts(nn.Module):
    """Sends each byte to a few of many feed-forwards, and adds up what they bring by the router's weights.

    The buffer ``loads`` counts the bytes of each expert since the last measurement, in all processes.
    """

    loads: Tensor

    def __init__(self, args: argparse.Namespace, run: str):
        super().__init__()
        hidden = math.ceil(8 * args.dim / 3 / args.chosen)  # a byte's experts are as large as one feed-forward
        self.router = ROUTERS[run](args.dim, args.experts, args.chosen)
        self.experts = nn.ModuleList(train_text.RUNS[run].mlp(args.dim, hidden) for _ in range(args.experts))
        for expert in self.experts:
            nn.init.zeros_(expert.down_proj.weight)
        self.register_buffer("loads", torch.zeros(args.experts, dtype=torch.float64))
        self.seen: list[Tensor] = []  # the choices of a step's parts

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        weights, indices = self.router(rows)
        if torch.is_grad_enabled():
            self.seen.append(indices)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):  # those without a byte too: all processes call all of them
            row, place = (indices == number).nonzero(as_tuple=True)
            brought = expert(rows[row]) * weights[row, place, None]
            out = out.index_add(0, row, brought.to(out.dtype))
        return out.view_as(x)

    def balance(self, rate: float) -> None:
        """Moves the bias by the loads of a step."""
        indices = torch.cat(self.seen)
        self.seen.clear()
        group = torch.distributed.group.WORLD if _distributed.size() > 1 else None
        self.router.update_bias(indices, rate, group)
        self.loads += _distributed.total(indices.flatten().bincount(minlength=len(self.loads)))


def mixtures(model: nn.Module) -> list[Experts]:
    """The mixtures of all blocks."""
    return [module for module in model.modules() if isinstance(module, Experts)]


def start(name: str, job: _training.Job, args: argparse.Namespace) -> _training.Run:
    """A run at its first step, with the weights that --seed gives."""
    _options.seed_everything(args.seed)
    model = train_text.GPT(args.dim, args.layers, args.heads, name, train_text.attention(name, args))
    for block in model.blocks:
        block.mlp = Experts(args, name)
    model.to(args.device)
    if name == "patched":
        print(sigtorch.patch(model))
    run = _training.Run(name, model, job, args, model.blocks)

    def balance(*_: Any) -> None:
        for mixture in mixtures(model):
            mixture.balance(args.rate)

    run.optimizer.register_step_post_hook(balance)
    return run


@torch.no_grad()
def loads_of(model: nn.Module) -> _output.Row:
    """The loads since the last measurement, 1 where they are even: of each expert the mean of all blocks, and the extremes."""
    shares = torch.stack([m.loads * len(m.loads) / m.loads.sum() for m in mixtures(model)])
    for mixture in mixtures(model):
        mixture.loads.zero_()
    row = dict(zip(EXTREMES, (shares.max().item(), shares.min().item()), strict=True))
    return row | {load_name(number): load for number, load in enumerate(shares.mean(0).tolist())}


def load_name(number: int) -> str:
    """The column of an expert's load."""
    return f"load_{number}"


def job_of(text: train_text.Text, args: argparse.Namespace) -> _training.Job:
    """The task of train_text.py, with the loads in each row."""
    job = train_text.job_of(text, args)

    def measure(model: nn.Module, step: int, loss: float) -> _output.Row:
        return job.measure(model, step, loss) | loads_of(model)

    return dataclasses.replace(job, measure=measure)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, train_text.Text]:
    """Read the options and the text, or end in one line about the first that makes no sense."""
    parser = _options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole = parser.add_argument, _options.positive_int
    train_text.add_options(parser)
    add("--experts", type=whole, default=16, help="of each block (%(default)s)")
    add("--chosen", type=whole, default=4, help="experts of a byte (%(default)s)")
    add("--rate", type=_options.positive_float, default=2e-3, help="a step of an expert's bias (%(default)s)")
    _options.add_options(parser, __file__, out="runs/experts")
    parser.set_defaults(clip=1.0)
    args = parser.parse_args(argv)
    if args.chosen > args.experts:
        parser.error(f"argument --chosen: {args.chosen} of {args.experts} experts can't be chosen")
    if args.compile:
        parser.error("argument --compile: each expert gets another number of bytes, which a compiler would not know")
    return args, train_text.checked(parser, args)


def main() -> None:
    """Train, show and write what came out."""
    with _distributed.group():
        args, text = parse()
        fixed = ("dim", "layers", "heads", "attention", "experts", "chosen")
        with _folder.for_training(args, fixed=fixed), sigtorch.use_backend(args.backend):
            job = job_of(text, args)
            runs = [start(name, job, args) for name in _training.names(args)]
            _training.train(runs, job, args)
            panels = {
                "bits per byte": ("validation_bits_per_byte", "train_bits_per_byte"),
                "load of each expert, 1 where even": (*EXTREMES, *map(load_name, range(args.experts))),
            }
            _training.write(runs, args, partial(_output.plot_curves, x="step", panels=panels))
            rows = []
            for run in runs:
                last = run.rows[-1]
                row = {"run": run.name, "bits per byte": f"{last['validation_bits_per_byte']:.3f}"}
                row |= {"loads": f"{last['smallest_load']:.2f} to {last['largest_load']:.2f}"}
                rows.append(row | run.summary())
            title = f"GPT on bytes, {args.chosen} of {args.experts} experts, seed {args.seed}, {args.dtype}"
            _output.show_table(title, rows)
            _training.print_difference(runs)
        print(f"Metrics, curves and weights are in {args.out}/")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
