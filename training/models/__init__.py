"""Slice models and sequence models: how each kind is built, trained and scored.

Which weights are kept is decided in `training.rounds`.
"""
