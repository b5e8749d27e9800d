"""What training reads from a store: studies and labels, patient splits, crops and model inputs.

Not for pixels of DICOM files: the store holds all that is read here.
"""
