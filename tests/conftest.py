"""One thread: the networks of the tests are too small for two, which only get into each other's way."""

import torch

torch.set_num_threads(1)
