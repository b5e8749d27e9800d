"""Train fracture classifiers on the vertebra crops of a store, and predict with them."""
