"""HTML reports of runs and of single studies, written from the run folder.

The numbers come from `training.evaluation` and `training.explanation`.
"""
