"""Output of both command lines: progress, messages, tables, HTML pages and figures.

Not for their content: this package has no knowledge of studies or models, it formats the text and
numbers that it is given.
"""
