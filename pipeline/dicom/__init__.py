"""Read DICOM objects into one volume in Hounsfield units: parse, check, decode, order.

Objects are passed as bytes and the volume is returned as an array; this package does no I/O.
"""
