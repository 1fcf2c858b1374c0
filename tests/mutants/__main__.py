"""Puts slips into a copy of the code, one at a time, and asks the tests that should notice: ``make mutants``.

A slip is caught where one of its tests fails, crashes or takes ten times as long, and has survived where all pass. Without
a slip all of them must pass, which is tried first. Example: ``make mutants ARGS="--only 'kernels/_math' --jobs 2"``
"""

import argparse
import asyncio
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mutants import AREAS
from mutants.copies import FAILED, PASSED, Copy
from mutants.slip import Slip

GOOD = ("caught", "argued")  # all other ends make the whole fail


def is_stale(slip: Slip, root: Path) -> bool:
    """Tells whether the code has changed so that the slip is none any more."""
    path = root / slip.file
    if not path.exists() or path.read_text().count(slip.old) != 1:
        return True
    try:
        compile(path.read_text().replace(slip.old, slip.new), slip.file, "exec")
    except SyntaxError:
        return True
    return False


async def end_of(slip: Slip, copy: Copy, limits: dict[str, float]) -> str:
    """Returns the end of a slip, in a word."""
    if is_stale(slip, copy.root):
        return "stale"
    if slip.tests not in limits:
        return "untested"  # for they fail without it
    with copy.with_slip(slip):
        status = await copy.run(slip.tests, limits[slip.tests])
    if status == PASSED:
        return "argued" if slip.argued else "survived"
    if status is None or status == FAILED or status < 0:
        return "caught though argued" if slip.argued else "caught"
    return "broken"  # nothing can be imported, say, which is never overlooked


async def each(
    items: Iterable[Any], copies: list[Copy], do: Callable[[Any, Copy], Awaitable[None]], bar: Progress, title: str
) -> None:
    """Does something with every item, in as many copies at once as there are."""
    items = list(items)
    task, rest = bar.add_task(title, total=len(items)), iter(items)

    async def work(copy: Copy) -> None:
        for item in rest:
            await do(item, copy)
            bar.advance(task)

    await asyncio.gather(*map(work, copies))


async def main(slips: list[Slip], jobs: int) -> Counter[str]:
    """Counts the slips by what became of them."""
    limits: dict[str, float] = {}
    ends: Counter[str] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder, Progress(*columns) as bar:
        copies = [Copy(Path(folder, str(number))) for number in range(jobs)]

        async def without_slip(tests: str, copy: Copy) -> None:
            started = time.monotonic()
            if await copy.run(tests, None) == PASSED:
                limits[tests] = 60 + 10 * (time.monotonic() - started)
            else:
                bar.console.print(f"fails without a slip: pytest {tests}", highlight=False, soft_wrap=True)

        async def with_slip(slip: Slip, copy: Copy) -> None:
            end = await end_of(slip, copy, limits)
            ends[end] += 1
            if end != "caught":
                why = f": {slip.argued}" if end == "argued" else ""
                text = f"{end}: {slip.file}: {slip.effect}{why}"
                bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

        await each(dict.fromkeys(slip.tests for slip in slips), copies, without_slip, bar, "tests as they are")
        await each(slips, copies, with_slip, bar, "slips")
    return ends


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=re.compile, default="", help="slips whose file or effect this expression finds")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # copies and tests at work end, too
    chosen = [slip for area in AREAS for slip in area.SLIPS if args.only.search(f"{slip.file}: {slip.effect}")]
    found = asyncio.run(main(chosen, args.jobs))
    counted = ", ".join(f"{count} {end}" for end, count in found.most_common())
    print(f"{len(chosen)} slips: {counted}; {found['caught'] / max(1, len(chosen)):.1%} caught")
    sys.exit(any(end not in GOOD for end in found))
