"""HTML report of a store: counts, quarantine, plots and pictures.

Not for processing: everything here reads a finished store and writes nothing to it.
"""
