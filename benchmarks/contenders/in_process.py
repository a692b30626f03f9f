"""Engines one after the other in one process: the old one shut down, vLLM's state cleaned up, memory collected, the
next one built.

`python -m benchmarks.contenders.in_process JOB MARKS`, with VLLM_ENABLE_V1_MULTIPROCESSING=0 so that an engine has no
processes of its own to start and end.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

from benchmarks.contenders.peers import answered, read_job, write_mark


def main() -> None:
    """Do the tasks; each mark begins with the end of the engine before."""
    job = read_job(sys.argv[1])
    from vllm import LLM

    llm: Any = None
    for task in job.tasks:
        started = time.time()
        if llm is not None:
            _tear_down(llm)
            del llm
            gc.collect()
        llm = LLM(model=task.model, **job.engine_args)
        write_mark(sys.argv[2], answered(llm, task, started))


def _tear_down(llm: Any) -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
