"""Imports point down the layers only; the light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"
# From the lowest to the highest.
ROWS = (
    ("registry", "divergences"),
    ("files", "machine", "groups"),
    ("stage", "table", "yamlfile"),
    ("store", "predictions", "data", "models", "folding", "efficiency"),
    ("statistics", "training", "pruning", "distillation", "inference", "similarities", "progress", "plan_notes"),
    ("bias", "recovery", "executors"),
    ("report",),
    ("stages", "requirements", "publication"),
    ("schema", "auditing", "export", "garbage"),
    ("config", "plan", "worker_imports"),
    ("studies",),
    ("__main__",),
)
LAYERS = {name: layer for layer, row in enumerate(ROWS) for name in row}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, wherever in the file but for type hints alone."""
    found = set()
    tree = ast.parse(path.read_text())
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_hints = {id(below) for node in hints for below in ast.walk(node)}
    for node in (node for node in ast.walk(tree) if id(node) not in only_hints):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pipeline" and len(parts) > 1 and parts[1] in LAYERS:
                found.add(parts[1])
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if module_of(path) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = module_of(path)
    assert own in LAYERS, f"{own} has no layer; give it one here and in docs/architecture.md"
    for other in imported(path) - {own}:
        assert LAYERS[other] < LAYERS[own], f"{own} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[other]})"


@pytest.mark.parametrize(
    "module",
    [
        *("pipeline.bias", "pipeline.data", "pipeline.auditing", "pipeline.__main__", "pipeline.predictions"),
        *("pipeline.statistics", "pipeline.store", "pipeline.plan_notes", "pipeline.executors", "pipeline.publication"),
        "pipeline.report",
    ],
)
def test_measures_data_and_command_line_start_without_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'torchvision', 'pandas', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
