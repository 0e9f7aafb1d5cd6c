"""One torch thread in tests: the models are small, and test processes share their cores."""

import torch as th

th.set_num_threads(1)
