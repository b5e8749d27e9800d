"""Losses, calibration, rank metrics and ensemble weights, as functions over arrays.

These modules do no input or output.
"""
