"""Bias measures that can be trusted: what one classifier did to each class, compared with another."""

from pipeline.bias.rates import Predictions, Rates, Score, cev, rates, rates_from_confusion, relative_changes, sde

__all__ = ["Predictions", "Rates", "Score", "cev", "rates", "rates_from_confusion", "relative_changes", "sde"]
