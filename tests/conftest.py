"""What all tests share: one thread each, so that pytest-xdist's workers do not fight over cores."""

import torch

torch.set_num_threads(1)
