"""Probabilities of finished runs: prediction, the locked test, and ensembles of runs.

Not for training: no model is changed here.
"""
