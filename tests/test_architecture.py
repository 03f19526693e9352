"""Imports point down the layers only; the light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"
LAYERS = {
    "registry": 0,
    "files": 1,
    "stage": 1,
    "efficiency": 1,
    "table": 2,
    "predictions": 2,
    "data": 2,
    "models": 2,
    "folding": 2,
    "statistics": 3,
    "training": 3,
    "pruning": 3,
    "distillation": 3,
    "inference": 3,
    "similarity": 3,
    "progress": 3,
    "bias": 4,
    "report": 5,
    "audit": 6,
    "stages": 6,
    "experiment": 7,
    "executors": 7,
    "export": 7,
    "__main__": 8,
}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
    assert own in LAYERS, f"{own} has no layer; give it one here and in the README"
    for other in imported(path) - {own}:
        assert LAYERS[other] < LAYERS[own], f"{own} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[other]})"


@pytest.mark.parametrize(
    "module",
    [f"pipeline.{name}" for name in ("predictions", "statistics", "bias", "report", "audit", "__main__")],
)
def test_measures_and_command_line_start_without_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'pandas', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
