"""From DICOM objects to one volume in Hounsfield units: parse, check, decode, order.

Not for sources or stores: objects come as bytes, and the volume goes as an array.
"""
