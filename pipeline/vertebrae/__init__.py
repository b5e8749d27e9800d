"""Locate the vertebrae in a volume, and compute the box of each crop.

Not for DICOM: these modules take arrays with their geometry, and return arrays and boxes.
"""
