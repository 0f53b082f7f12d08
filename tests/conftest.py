"""What all tests share."""

import logging
import os

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers beside pytest-xdist's workers

import torch

torch.set_num_threads(1)  # pytest-xdist's workers would fight over the cores
logging.getLogger(
    "torch.__trace"
).propagate = False  # a record for each step of a compilation, which pytest would format
