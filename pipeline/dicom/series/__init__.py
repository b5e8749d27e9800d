"""Sort the frames of a study into series and acquisitions, and choose the stack to read.

Only headers are read. The rules are in decision 0005.
"""
