"""Losses, calibration, rank metrics and ensemble weights, as functions over arrays.

Not for reading or writing: these modules know neither stores nor run folders.
"""
