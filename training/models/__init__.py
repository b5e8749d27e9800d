"""The kinds of models: slice models and sequence models, how each is built, trained and scored.

Not for deciding which weights are kept: `training.rounds` does.
"""
