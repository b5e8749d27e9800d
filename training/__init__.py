"""Vertebra crops become a model and predictions."""
