"""Train a small vision transformer on the scans of train_digits.py, whose attention is of sigmoids or a softmax.

A scan of 8x8 pixels is 16 patches of 2x2. The split is that of train_digits.py, and does not depend on --seed.
Examples: python scripts/train_vit.py --compare
python scripts/train_vit.py --attention softmax --out runs/vit-2
"""

import _start  # isort: skip
import argparse
import dataclasses
import math
from functools import partial

import _distributed
import _folder
import _options
import _output
import _training
import torch
import train_digits
from torch import Tensor, nn
from torch.nn import functional as F

import sigtorch

PATCHES, PIXELS = 16, 4  # of a scan, and of a patch
BIAS = -math.log(PATCHES)


def plain_sigmoid_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sigtorch.sigmoid_attention in plain PyTorch."""
    return torch.sigmoid(q @ k.mT * q.shape[-1] ** -0.5 + BIAS) @ v


class Block(nn.Module):
    """Attention, then a feed-forward; each adds to the stream."""

    def __init__(self, run: str, args: argparse.Namespace):
        super().__init__()
        dim, self.heads = args.dim, args.heads
        sigmoids = sigtorch.sigmoid_attention if run == "sigtorch" else plain_sigmoid_attention
        self.attend = sigmoids if args.attention == "sigmoid" else F.scaled_dot_product_attention
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.projections, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.projections(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = (F.rms_norm(part, part.shape[-1:]) for part in (q, k))
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class VisionTransformer(nn.Module):
    """Rows of 64 pixels in, scores of the ten digits out."""

    def __init__(self, run: str, args: argparse.Namespace):
        super().__init__()
        self.embedding = nn.Linear(PIXELS, args.dim)
        self.places = nn.Parameter(torch.randn(PATCHES, args.dim) * 0.02)
        self.blocks = nn.ModuleList(Block(run, args) for _ in range(args.layers))
        self.norm, self.scores = nn.RMSNorm(args.dim), nn.Linear(args.dim, 10)

    def forward(self, scans: Tensor) -> Tensor:
        patches = scans.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, PATCHES, PIXELS)
        x = self.embedding(patches) + self.places
        for block in self.blocks:
            x = block(x)
        return self.scores(self.norm(x.mean(1)))


def start(name: str, job: _training.Job, args: argparse.Namespace) -> _training.Run:
    """A run at its first step, with the weights that --seed gives."""
    _options.seed_everything(args.seed)
    model = VisionTransformer(name, args).to(args.device)
    if name == "patched":
        print(sigtorch.patch(model))
    return _training.Run(name, model, job, args, model.blocks)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options, or end in one line about the first that makes no sense."""
    parser = _options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole = parser.add_argument, _options.positive_int
    add("--attention", choices=("sigmoid", "softmax"), default="sigmoid", help="weights of attention (%(default)s)")
    add("--dim", type=whole, default=48, help="features of a patch (%(default)s)")
    add("--layers", type=whole, default=2, help="blocks (%(default)s)")
    add("--heads", type=whole, default=4, help="attention heads of a block (%(default)s)")
    add("--epochs", type=whole, default=30, help="passes over the training set (%(default)s)")
    add("--batch", type=whole, default=32, help="scans a step, of all processes (%(default)s)")
    add("--lr", type=_options.positive_float, default=2e-3, help="learning rate (%(default)s)")
    _options.add_options(parser, __file__, out="runs/vit")
    args = parser.parse_args(argv)
    if args.dim % args.heads:
        parser.error(f"argument --dim: {args.dim} features don't make {args.heads} heads")
    if args.layers * args.dim**2 > 10**7:
        parser.error(f"argument --dim: --layers {args.layers} of {args.dim} features are more than 80,000,000 weights")
    if args.batch > train_digits.TRAINED_ON:
        parser.error(f"argument --batch: {args.batch} scans a step, of {train_digits.TRAINED_ON} to train on")
    _options.check(parser, args, train_digits.TRAINED_ON)
    return args


def main() -> None:
    """Train, show and write what came out."""
    with _distributed.group():
        args = parse()
        data = train_digits.load(args.device, torch.float32)
        fixed = ("attention", "dim", "layers", "heads", "batch")
        with _folder.for_training(args, fixed=fixed), sigtorch.use_backend(args.backend):
            optimizer = partial(torch.optim.AdamW, lr=args.lr, weight_decay=0.05)
            job = dataclasses.replace(train_digits.job_of(data, args), optimizer=optimizer)
            runs = [start(name, job, args) for name in _training.names(args)]
            _training.train(runs, job, args)
            _training.write(runs, args, partial(_output.plot_curves, x="epoch", panels=train_digits.PANELS))
            rows = []
            for run in runs:
                accuracy = {"test accuracy": f"{run.rows[-1]['test_accuracy']:.2%}"}
                rows.append({"run": run.name} | accuracy | run.summary())
            _output.show_table(f"Digits, attention of {args.attention} weights, seed {args.seed}, {args.dtype}", rows)
            _training.print_difference(runs)
        print(f"Metrics, curves and weights are in {args.out}/")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
