"""Where DICOM objects come from: listing them, and fetching their bytes.

Not for their content: what an object holds is read by `pipeline.dicom`.
"""
