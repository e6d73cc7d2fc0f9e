"""Work that is spread over processes."""

import os
import time

import torch

from dasvit.engine.spread import spread


def test_processes_that_keep_memory_go_on():
    """Joblib takes it for a leak, and would start new processes for every few pieces."""

    def work(megabytes):
        vars(os).setdefault("kept", []).append(torch.ones(2**18 * megabytes))  # in a module, which outlives the piece
        time.sleep(1.1)  # joblib looks once a second
        return os.getpid()

    pieces = [1, 1, 400, 400, 400, 400]
    assert len(set(spread(work, pieces, jobs=2, title="working", progress=False))) <= 2
