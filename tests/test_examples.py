"""The examples in public docstrings print the results that they show."""

import doctest

import pytest
import torch

import sigtorch

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
