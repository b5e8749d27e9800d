"""Boosting rounds: planning, the round loop, candidates, validation and the journal.

The optimizer steps inside a round belong to `training.models` and `training.optimization`.
"""
