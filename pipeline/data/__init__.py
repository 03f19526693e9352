"""Examples as arrays: registered datasets, stratified splits, imbalance. Batches of tensors are in `.batches`."""

from pipeline.data.datasets import DATASETS
from pipeline.data.folder import ImageFolder
from pipeline.data.split import (
    Augmentation,
    ClassGroups,
    Data,
    Dataset,
    Normalisation,
    Source,
    Split,
    Splits,
    steps_per_epoch,
    stratified,
)

__all__ = [
    "DATASETS",
    "Augmentation",
    "ClassGroups",
    "Data",
    "Dataset",
    "ImageFolder",
    "Normalisation",
    "Source",
    "Split",
    "Splits",
    "steps_per_epoch",
    "stratified",
]
