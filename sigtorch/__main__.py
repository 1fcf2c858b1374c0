"""Runs sigtorch's commands: ``python -m sigtorch``, ``python -m sigtorch selftest``, ``python -m sigtorch report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sigtorch.commands import CommandError, report, selftest, versions


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        arguments: what stands after ``python -m sigtorch``; by default those of the process.
    """
    parser = argparse.ArgumentParser("python -m sigtorch", description=versions.print_versions.__doc__)
    parser.set_defaults(run=versions.print_versions, parser=parser)
    commands = parser.add_subparsers(metavar="command")
    command = commands.add_parser(
        "report",
        help="run a model once, and print which of its products a kernel takes",
        description=report.report.__doc__,
    )
    command.add_argument(
        "factory", metavar="module:factory", help="a function that returns (model, args) or (model, args, kwargs)"
    )
    command.set_defaults(run=report.report, parser=command)
    command = commands.add_parser(
        "selftest", help="compare each operation with float64 on this machine", description=selftest.selftest.__doc__
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda if there is a GPU)")
    command.set_defaults(run=selftest.selftest, parser=command)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except CommandError as error:
        options.parser.error(str(error))


if __name__ == "__main__":
    main()
