"""Manifests of tables, from files and arrays."""

from dataclasses import fields

import kerasmtl as kt

_OPTIONS = {field.name for field in fields(kt.data.Table)}


def load_table(path, tasks=None, **options):
    """Read a table; options of `kt.data.Table` and of `Manifest.from_csv` together."""
    own = {name: options.pop(name) for name in _OPTIONS & set(options)}
    return kt.Manifest.from_csv(path, tasks, kt.data.Table(**own), **options)


def table_of(features, labels, tasks, columns=(), **options):
    """A manifest of a matrix."""
    return kt.Manifest.from_arrays(features, labels, tasks, kt.data.Table(columns), **options)
