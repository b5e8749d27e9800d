"""The HTML report of a store: counts, quarantine, plots and pictures.

Not for processing: everything here is read from a finished store.
"""
