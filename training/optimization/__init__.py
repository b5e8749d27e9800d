"""Optimizer steps: the loop around Hugging Face `Trainer`, its checkpoints and its scalars.

Not for what is trained: models, examples and losses are given.
"""
