"""Work that is spread over processes."""

import os
import sys
import time

import pytest
import torch

from dasvit.engine.spread import spread


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_processes_that_free_much_memory_go_on():
    """Joblib takes memory that the C library keeps for a leak, and would start new processes for every few pieces."""
    kept = []

    def work(megabytes):
        chunks = []
        for _ in range(megabytes):
            chunks.append(torch.ones(2**18))
            kept.append(torch.ones(16))  # what stays between them keeps the heap from shrinking
        del chunks
        time.sleep(1.1)  # joblib looks once a second
        return os.getpid()

    pieces = [1, 1, 700, 700, 700, 700]
    assert len(set(spread(work, pieces, jobs=2, title="working", progress=False))) <= 2
