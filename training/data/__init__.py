"""Training data from a store: studies and labels, patient splits, crops and model inputs.

DICOM files are not read here; the store holds everything that training needs.
"""
