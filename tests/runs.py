"""The settings of a run that takes seconds; it learns little, but walks through every line."""

SETTINGS = [
    *("--preset", "demo", "--size", "32", "--patch", "8", "--width", "16"),
    *("--rounds", "3", "--slices-per-round", "60", "--epochs", "1.5", "--batch-size", "16"),
    *("--guard", "0.2", "--calibration", "0.2", "--test", "0.2", "--checkpoint-steps", "2"),
]
