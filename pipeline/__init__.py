"""Train, prune, recover and audit image classifiers: what did compression do to each class?"""

__version__ = "0.1.0"
