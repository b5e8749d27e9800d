"""Sort the frames of a study into series and acquisitions, and choose the stack to read.

The rules are decision 0005; only headers are looked at here.
"""
