"""The training loop, its checkpoints, and inference. Imports utils.run."""
