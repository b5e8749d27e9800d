"""Prediction with finished runs, the test-set evaluation, and ensembles of runs.

No model is trained or changed here.
"""
