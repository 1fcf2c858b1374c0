"""Several processes that work together, over gloo."""

import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from support.forking import forks


def group_of(work, processes, timeout=60, *, interpret=False, **given):
    """Returns the answers of work(rank, **given) in each process, or the last line of what it raised; None of one that died.

    To interpret kernels, processes start anew, for those that are forked have imported Triton to compile.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn") if interpret else forks()
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=_member, args=(work, rank, processes, port, timeout, folder, given), daemon=True)
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            assert process.exitcode is not None, "a process hangs"
        files = [Path(folder, str(rank)) for rank in range(processes)]
        return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _member(work, rank, processes, port, timeout, folder, given):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(processes))
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    try:
        answer = work(rank, **given)
    except Exception as error:
        answer = "".join(traceback.format_exception_only(error)).strip()
    torch.save(answer, Path(folder, str(rank)))
    if not isinstance(answer, str):
        dist.barrier()
        time.sleep(0.2)  # gloo's threads free what they sent last
        dist.destroy_process_group()
    os._exit(0)
