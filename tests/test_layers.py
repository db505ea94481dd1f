"""The house: a module imports only from its own folder and from lower levels, and nothing in a circle."""

import ast
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ingestor"

LEVELS = {
    "errors": 0,
    "schema": 0,
    "texts": 0,
    "config": 1,
    "logs": 1,
    "metrics": 1,
    "layout": 1,
    "store": 1,
    "system": 0,
    "parquet": 1,
    "facts": 1,
    "ledger": 1,
    "trade_ids": 1,
    "history": 1,
    "coverage": 1,
    "accounts": 1,
    "closed_days": 1,
    "us_market": 1,
    "feeds": 2,
    "journal": 2,
    "capture": 3,
    "sinks": 3,
    "dataset": 3,
    "recording": 4,
    "operations": 5,
    "backfill": 6,
    "daemon": 6,
    "simulator": 6,
    "live": 6,
    "charts": 6,
    "cli": 7,
    "ingestor": 7,  # __init__.py: the analysis API
    "__main__": 8,
}
"""Of each room: a folder, or a file at the top. Those files share a folder: within a level they may import
each other.
"""

MODULES = {
    ".".join(("ingestor", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    return module if module == "ingestor" else module.split(".")[1]


def is_folder(name: str) -> bool:
    return (PACKAGE / name).is_dir()


@cache
def imports(module: str, path: Path) -> frozenset[str]:
    """The modules of this package that one imports anywhere: at its top, in a function, for type checking."""
    return frozenset(_imports_in(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), module))


def imports_of_registry(module: str, path: Path) -> set[str]:
    """The imports of a folder's own modules inside functions of its `__init__`.

    `make_feed` names each feed, and each feed speaks in the types beside it: this one circle is meant.
    """
    if path.name != "__init__.py":
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    inside = _imports_in((node for function in functions for node in ast.walk(function)), module)
    return {name for name in inside if name.startswith(f"{module}.")}


def _imports_in(nodes: Iterable[ast.AST], module: str) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            if node.module == "ingestor" and [alias.name for alias in node.names] == ["__version__"]:
                continue  # a number, whoever asks: it stands before anything that __init__ imports
            source = node.module or ""
            submodules = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            found.update(submodules or {source})
    return {name for name in found if name.partition(".")[0] == "ingestor"}


def is_allowed(importer: str, imported: str) -> bool:
    here, there = room(importer), room(imported)
    if importer != "ingestor" and imported == "ingestor":
        return here == "cli"  # the analysis API
    if here == there or LEVELS[there] < LEVELS[here]:
        return True
    return LEVELS[there] == LEVELS[here] and not is_folder(here) and not is_folder(there)


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Each way along the imports that comes back to where it began, found once or more."""
    found: list[list[str]] = []
    finished: set[str] = set()

    def follow(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in finished:
            for imported in sorted(graph.get(module, ())):
                follow(imported, [*way, module])
            finished.add(module)

    for module in graph:
        follow(module, [])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_level(module: str) -> None:
    assert room(module) in LEVELS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_folder_and_below(module: str) -> None:
    above = [name for name in sorted(imports(module, MODULES[module])) if not is_allowed(module, name)]
    assert above == []


def test_no_circles() -> None:
    graph = {module: imports(module, path) - imports_of_registry(module, path) for module, path in MODULES.items()}
    assert circles(graph) == []


# That the checks can fail


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("ingestor.config", "ingestor.errors", True),
        ("ingestor.config.sections", "ingestor.config.types", True),
        ("ingestor.errors", "ingestor.config", False),
        ("ingestor.capture.session", "ingestor.capture.buffer", True),
        ("ingestor.capture.session", "ingestor.sinks.runner", False),
        ("ingestor.capture.session", "ingestor.daemon", False),
        ("ingestor.recording", "ingestor.history", True),
        ("ingestor.daemon", "ingestor.operations.health", True),
        ("ingestor.operations.health", "ingestor.daemon", False),
        ("ingestor.daemon", "ingestor.simulator.venue", False),
        ("ingestor.cli.main", "ingestor", True),
        ("ingestor.daemon", "ingestor", False),
        ("ingestor", "ingestor.dataset.trades", True),
        ("ingestor", "ingestor.cli.main", False),
        ("ingestor.__main__", "ingestor.cli.main", True),
    ],
)
def test_the_rule(importer: str, imported: str, allowed: bool) -> None:
    assert is_allowed(importer, imported) is allowed


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import json\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ingestor.config import Settings\n"
        "def load():\n    import ingestor.schema\n    from ingestor import errors\n"
    )
    assert imports("ingestor.x", path) == {"ingestor.config", "ingestor.schema", "ingestor.errors"}


def test_a_registry_may_name_what_is_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "__init__.py"
    path.write_text("from ingestor.x.a import A\ndef make():\n    from ingestor.x.b import B\n    import ingestor.y\n")
    assert imports_of_registry("ingestor.x", path) == {"ingestor.x.b"}


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
