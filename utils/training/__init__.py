"""The training loop, what it resumes from, and passes without training. Imports utils.run."""
