"""Backpropagation by hand: a network of two sigmoid layers learns to read digits, in plain tensors.

No autograd, no optimizer: every gradient is written out, and the only calculus is the derivative s * (1 - s).
Example: python scripts/from_scratch.py
"""

import _start  # isort: skip
import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """Squeeze any number into (0, 1)."""
    return 1 / (1 + torch.exp(-x))


def slope(s: Tensor) -> Tensor:
    """The sigmoid's derivative, from its output alone."""
    return s * (1 - s)


def feedforward(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Pass the input through both layers; the hidden layer's output is needed on the way back."""
    hidden = sigmoid(x @ w1)
    predicted = sigmoid(hidden @ w2)
    return hidden, predicted


def gradients(x: Tensor, actual: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the loss, half the mean squared error, in each weight."""
    hidden, predicted = feedforward(x, w1, w2)
    error = actual - predicted

    # How far each output should move, times how much it moves at all where it stands now.
    output_delta = error * slope(predicted)
    # Each hidden unit answers for its share of the error: the same wires, walked backwards.
    hidden_delta = (output_delta @ w2.T) * slope(hidden)

    # The loss falls where the error points, so the gradient is its negative.
    return -(x.T @ hidden_delta) / len(x), -(hidden.T @ output_delta) / len(x)


def main() -> None:
    """Train on 1,437 scans, show how well the other 360 are read."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels / 16 - 0.5)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)  # a constant input serves as the bias
    y = torch.tensor(labels)
    actual = torch.eye(10, dtype=x.dtype)[y]

    torch.manual_seed(0)
    shuffled = torch.randperm(len(x))
    train, test = shuffled[:1437], shuffled[1437:]
    w1 = torch.randn(65, 32, dtype=x.dtype) * 0.3
    w2 = torch.randn(32, 10, dtype=x.dtype) * 0.3

    for epoch in range(1, 31):
        for batch in train[torch.randperm(len(train))].split(16):
            grad1, grad2 = gradients(x[batch], actual[batch], w1, w2)
            w1 -= 1.0 * grad1  # up where the gradient is negative, down where it is positive
            w2 -= 1.0 * grad2
        if epoch % 5 == 0:
            _, predicted = feedforward(x[test], w1, w2)
            loss = ((actual[test] - predicted) ** 2).sum(1).mean() / 2
            accuracy = (predicted.argmax(1) == y[test]).double().mean()
            print(f"epoch {epoch:2}  test loss {loss:.4f}  test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    _start.escape_what_it_lacks()
    main()
