"""Whatever trinity_rec imports is declared in pyproject.toml, so that no import works by another package's grace."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trinity_rec"
# The stand-in is a package named vllm that only its own files import.
# vllm_workers.py is loaded by vLLM alone, through its entry points.
LOADED_BY = {"vllm_workers.py": {"vllm"}, "verl.py": {"verl"}}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "vllm_stand_in" not in path.parts)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.fixture(scope="module")
def providers():
    """Module -> the distributions that bring it; to look for them takes a second."""
    return importlib.metadata.packages_distributions()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path, providers):
    declared = {
        canonical(re.match(r"[\w.-]+", line).group())
        for line in importlib.metadata.requires("trinity-rec")
        if not re.search(r"extra == .(dev|lab|smollm2).", line)
    }
    modules = set(imported(path)) - sys.stdlib_module_names - {"trinity_rec"} - LOADED_BY.get(path.name, set())
    undeclared = {name for name in modules if not declared & {canonical(dist) for dist in providers.get(name, [name])}}
    assert undeclared == set()


def test_no_import_climbs():
    """Between the subpackages, and the modules beside them, imports go one way; the package itself imports lazily."""
    modules = {path.relative_to(ROOT).with_suffix("").parts: path for path in SOURCES}
    graph = {parts[1]: set() for parts in modules}
    for parts, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trinity_rec":
                named = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
                graph[parts[1]] |= set(named) & set(graph) - {parts[1]}
    graph.pop("__init__")
    while leaves := [name for name, imports in graph.items() if not imports & set(graph)]:
        for name in leaves:
            del graph[name]
    assert graph == {}, "these import each other"
