"""Networks of tests are as small as those of runs, and like there one thread is the fastest."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
