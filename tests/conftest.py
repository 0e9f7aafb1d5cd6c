"""Tests run on the CPU, whatever the machine has, and on one torch thread: test processes share their cores."""

import os
import signal

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch as th  # after the variable that it reads

th.set_num_threads(1)


def pytest_configure() -> None:
    """A shell gives what it starts in the background no SIGINT, and processes pass that on: here Ctrl-C is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
