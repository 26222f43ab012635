"""Processes that train together, as Ray's workers do, without Ray."""

import multiprocessing
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Processes that are forked from one which has imported all this start at once. torch._dynamo takes as long as all the
# rest, and the first optimizer would import it.
PRELOADED = ["torch._dynamo", "deepspeed", "pandas", "raysrec.training.worker", "engine_workers"]


def run_together(function, num_workers, folder, *arguments):
    """Call `function(worker, num_workers, *arguments)` in so many processes of one group; they meet in the folder."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    (folder / "rendezvous").unlink(missing_ok=True)
    mp.start_processes(
        _member, (function, num_workers, folder, arguments), nprocs=num_workers, start_method="forkserver"
    )


def _member(worker, function, num_workers, folder, arguments):
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(worker)  # as a launcher sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=worker, world_size=num_workers)
    function(worker, num_workers, *arguments)
    dist.destroy_process_group()
