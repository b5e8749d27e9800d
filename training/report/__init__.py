"""HTML pages about a run and about single studies, written from what a run folder holds.

Not for scoring: the numbers come from `training.evaluation` and `training.explanation`.
"""
