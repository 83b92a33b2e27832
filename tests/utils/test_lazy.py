"""Names that are imported on first use."""

import sys

import pytest

from kerasmtl.utils.lazy import namespace


def test_a_namespace_imports_its_names_on_first_use():
    made = namespace("kerasmtl_lazy_test", "A test.", {"sqrt": "math", "root": "math:sqrt"})
    try:
        assert sys.modules["kerasmtl_lazy_test"] is made and "sqrt" not in vars(made)
        assert made.sqrt(4.0) == made.root(4.0) == 2.0 and "sqrt" in vars(made)
        assert dir(made) == made.__all__ == ["root", "sqrt"] and made.__doc__ == "A test."
        with pytest.raises(AttributeError, match="has no attribute 'cube'"):
            made.cube  # noqa: B018
    finally:
        del sys.modules["kerasmtl_lazy_test"]
