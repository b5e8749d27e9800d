"""Convert DICOM studies on any object store to a Zarr store with one crop per vertebra.

Not for training: this package needs no torch, and reads no model but the localizer's ONNX file.
"""
