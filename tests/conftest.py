"""What all tests share."""

import logging

import torch

torch.set_num_threads(1)  # pytest-xdist's workers would fight over the cores
logging.getLogger("torch.__trace").propagate = False  # a record for each step of a compilation, which pytest would format
