"""The examples in public docstrings print the results that they show, and those in README and guides run."""

import doctest
import re
from pathlib import Path

import pytest
import torch

import sigtorch

ROOT = Path(__file__).parents[1]
NAMES = [name for name in sigtorch.__all__ if name != "nn"] + [f"nn.{name}" for name in sigtorch.nn.__all__]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_gives_what_it_shows(name):
    thing = sigtorch
    for part in name.split("."):
        thing = getattr(thing, part)
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, globs={"torch": torch, "sigtorch": sigtorch})
    assert any(test.examples for test in tests), "no example"
    seen = []
    for test in tests:
        doctest.DocTestRunner().run(test, out=seen.append)
    assert not seen, "".join(seen)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/attention.md"])
def test_the_examples_of_a_page_run(page):
    """Each by itself."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), {})
