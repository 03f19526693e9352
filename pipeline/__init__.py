"""Train, prune, recover and audit image classifiers: what did compression do to each class?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.auditing import audit
    from pipeline.bias import cev, rates, sde
    from pipeline.pruning import prune
    from pipeline.similarities import similarity
    from pipeline.studies import study

__version__ = "0.1.0"

__all__ = ["audit", "cev", "prune", "rates", "sde", "similarity", "study"]

# Where each name lives. It is loaded when it is first asked for, so that what needs no torch loads none.
_HOMES = {
    "audit": "pipeline.auditing",
    "cev": "pipeline.bias",
    "prune": "pipeline.pruning",
    "rates": "pipeline.bias",
    "sde": "pipeline.bias",
    "similarity": "pipeline.similarities",
    "study": "pipeline.studies",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
