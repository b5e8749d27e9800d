"""Reading JSON and csv that come from outside: strict, bounded, and clear about what is wrong.

Not for the documents themselves: records, cards and annotations say which fields they have.
"""
