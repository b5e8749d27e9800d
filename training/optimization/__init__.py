"""The optimizer loop around Hugging Face `Trainer`: schedule, EMA, checkpoints and scalars.

Models, examples and losses are passed in by `training.models`.
"""
