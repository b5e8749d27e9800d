"""Explanations of predictions: slice weights, heat maps and example cases.

Pages that show them belong to `training.report`.
"""
