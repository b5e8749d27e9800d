"""Where the vertebrae C1 to C7 lie in a volume, and the box that a crop takes of each.

Not for DICOM: these modules take arrays and their geometry, and return arrays and boxes.
"""
