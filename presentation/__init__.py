"""What people see of both command lines: progress, messages, tables, pages and figures.

Not for what is shown: this package knows neither studies nor models, only text and numbers that it
is given.
"""
