"""Tests run on the CPU, whatever the machine has, and on one torch thread: test processes share their cores."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch as th  # after the variable that it reads

th.set_num_threads(1)
