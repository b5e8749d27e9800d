"""The shape of the code: folders, imports, docstrings and lengths of modules.

    python benchmarks/structure.py [--before CHECKOUT] [--package NAME=FOLDER ...] [--json FILE]

Measures the four packages of this checkout, of an older one beside it (`--before`), and any other
package (`--package cubed=/tmp/cubed/cubed`), from their source alone; nothing is imported.

A *module* is a ``.py`` file other than ``__init__.py``; tests and vendored code are left out. An
*import* is a pair of modules of one package, of which one imports the other, inside functions too,
but not under ``TYPE_CHECKING``. The *longest chain* counts the modules of the longest path of
imports, a cycle as one. A *part* is a subpackage, or a module directly below the package.
"""

import ast
import statistics
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
from claims import Claim, describe_machine, report

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = ("pipeline", "training", "presentation", "storage_schemas")
MOST_MODULES = 17
"""Modules that a folder may hold (tests/unit/test_import_rules.py)."""


def list_modules(folder: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names, ``__init__`` among them as the package."""
    files = (path for path in folder.rglob("*.py") if not _is_left_out(path.relative_to(folder)))
    names = {path: path.relative_to(folder.parent).with_suffix("").parts for path in files}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def _is_left_out(path: Path) -> bool:
    return bool({"test", "tests", "vendor"} & set(path.parts)) or path.name.startswith("test_")


def list_imports(name: str, path: Path, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each import of a module as the module and the name in it, which may be empty."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _run_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *filter(None, [node.module])]) if node.level else node.module
            yield from ((str(base), alias.name) for alias in node.names)


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one, but for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_nodes(child)


def import_graph(modules: Mapping[str, Path], trees: Mapping[str, ast.Module]) -> nx.DiGraph:
    """The graph of imports between modules; packages themselves are no nodes."""
    graph = nx.DiGraph()
    nodes = {name for name, path in modules.items() if path.name != "__init__.py"}
    graph.add_nodes_from(nodes)
    for name in nodes:
        for base, member in list_imports(name, modules[name], trees[name]):
            other = f"{base}.{member}" if f"{base}.{member}" in nodes else base
            if other in nodes and other != name:
                graph.add_edge(name, other)
    return graph


def part_graph(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph of imports between subpackages and modules directly below the package."""
    parts = nx.DiGraph()
    parts.add_nodes_from(name.split(".")[1] for name in graph)
    pairs = ((one.split(".")[1], other.split(".")[1]) for one, other in graph.edges)
    parts.add_edges_from((one, other) for one, other in pairs if one != other)
    return parts


def longest_chain(graph: nx.DiGraph) -> int:
    """Nodes in the longest chain, each cycle taken as one node."""
    return int(nx.dag_longest_path_length(nx.condensation(graph))) + 1


def count_in_cycles(graph: nx.DiGraph) -> int:
    """Nodes that import each other, directly or through others."""
    return sum(len(group) for group in nx.strongly_connected_components(graph) if len(group) > 1)


def first_lines(tree: ast.Module) -> Iterator[str]:
    """Yield the first line of every docstring of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.strip():
                yield text.strip().splitlines()[0]


def measure(folder: Path) -> dict[str, Any]:
    """Every figure of one package."""
    modules = list_modules(folder)
    texts = {name: path.read_text(encoding="utf-8-sig") for name, path in modules.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    graph = import_graph(modules, trees)
    parts = part_graph(graph)
    folders = Counter(modules[name].parent for name in graph)
    lengths = [len(texts[name].splitlines()) for name in graph]
    lines = [line for tree in trees.values() for line in first_lines(tree)]
    return {
        "modules": len(graph),
        "largest folder": max(folders.values()),
        "longest chain": longest_chain(graph),
        "imports": graph.number_of_edges(),
        "in cycles": count_in_cycles(graph),
        "parts": len(parts),
        "chain of parts": longest_chain(parts),
        "imports of parts": parts.number_of_edges(),
        "parts in cycles": count_in_cycles(parts),
        "first line, chars": round(statistics.fmean(map(len, lines)), 1),
        "words": round(statistics.fmean(len(line.split()) for line in lines), 1),
        "lines a module, median": int(statistics.median(lengths)),
        "mean": round(statistics.fmean(lengths)),
        "most": max(lengths),
    }


def main() -> None:
    """Measure and report."""
    parser = ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an older checkout")
    parser.add_argument("--package", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--quick", action="store_true", help="the same; it takes seconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    places: list[tuple[str, str, Path]] = []
    for label, root in (("before", options.before), ("now", REPOSITORY)):
        found = [root / name for name in OURS] if root else []
        places += [(label, folder.name, folder) for folder in found if folder.is_dir()]
    for each in options.package:
        name, _, folder = each.partition("=")
        places.append(("other", name, Path(folder)))
    rows = [{"tree": tree, "package": name, **measure(folder)} for tree, name, folder in places]
    now = [row for row in rows if row["tree"] == "now"]
    claims = [
        Claim(name, float(max(row[column] for row in now)), target, "lower")
        for name, column, target in (
            ("modules in the largest folder", "largest folder", MOST_MODULES),
            ("modules in import cycles", "in cycles", 0),
            ("subpackages in import cycles", "parts in cycles", 0),
        )
    ]
    report(describe_machine(["networkx"]), rows, claims, options.json)


if __name__ == "__main__":
    main()
