"""List the objects of a source and fetch their bytes.

Not for their content: `pipeline.dicom` parses the objects.
"""
