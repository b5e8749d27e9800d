"""Boosting rounds: the plan, the loop, the candidates, their validation, and the journal.

Not for the steps inside a round: `training.models` trains each kind of model.
"""
