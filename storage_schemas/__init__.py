"""The contract between the pipeline that writes the store and the training that reads it."""
