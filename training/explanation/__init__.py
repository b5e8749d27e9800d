"""Which slices and pixels moved a prediction: slice weights, heat maps and example cases.

Not for pages: `training.report` shows what is computed here.
"""
