"""Every public name has an example in its docstring, and the examples run."""

import doctest
import inspect
import types

import pytest

import kerasmtl as kt

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_names():
    """The public names as users write them, `losses.pos_weight`, without `kt.`."""
    names = []
    for name in kt.__all__:
        value = getattr(kt, name)
        if isinstance(value, types.ModuleType):
            names += [f"{name}.{inner}" for inner in value.__all__]
        elif not name.startswith("__"):
            names.append(name)
    return sorted(names)


def value_of(name):
    value = kt
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", public_names())
def test_the_example_of_a_public_name_runs(name):
    value = value_of(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for test in finder.find(value, name, globs={}) if test.examples]
    assert ">>>" in (inspect.getdoc(value) or ""), f"kt.{name} has no example in its docstring"
    for test in found:
        said = []
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)
