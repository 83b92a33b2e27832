"""The rooms of the package import each other one way."""

import ast
from pathlib import Path

import kerasmtl

ROOT = Path(kerasmtl.__file__).parent
# Each floor may import from those before it, and from itself.
FLOORS = [
    ["utils", "_version"],
    ["tasks"],
    ["masking"],
    ["metrics", "losses", "data"],
    ["models"],
    ["evaluation", "training"],
    ["advice", "export"],
    ["project", "serving"],
    ["cli", "__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """Every module's dotted name below kerasmtl, and its file."""
    for file in sorted(ROOT.rglob("*.py")):
        parts = list(file.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), file


def imports(file, known):
    """The modules of kerasmtl that a file imports, functions included; not for type checkers."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kerasmtl":
            base = node.module.removeprefix("kerasmtl").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                found.add(full if full in known else base)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("kerasmtl."):
                    found.add(alias.name.removeprefix("kerasmtl."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found - {""}


def graph():
    files = dict(modules())
    return {name: imports(file, files) for name, file in files.items() if name}


def test_no_module_imports_from_a_floor_above():
    upward = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if FLOOR[other.split(".")[0]] > FLOOR[name.split(".")[0]]
    ]
    assert not upward


def test_no_imports_go_in_a_circle():
    of, done = graph(), {}

    def visit(name, path):
        if name in path:
            raise AssertionError(" -> ".join([*path[path.index(name) :], name]))
        if name not in done:
            for other in sorted(of.get(name, ())):
                visit(other, [*path, name])
            done[name] = True

    for name in of:
        visit(name, [])


def test_the_package_is_as_roomy_as_it_was_built():
    files = dict(modules())
    assert len([file for file in files.values() if file.parent == ROOT]) <= 6
    assert len(files) <= 133
