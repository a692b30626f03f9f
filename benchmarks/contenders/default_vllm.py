"""A fresh `vllm.LLM` for each task, as vLLM's documentation shows it: the way of the released code.

`python -m benchmarks.contenders.default_vllm JOB MARKS` does one task and exits; the comparison's clock starts before
it.
"""

from __future__ import annotations

import sys
import time

from benchmarks.contenders.peers import answered, read_job, write_mark


def main() -> None:
    """Do the job's only task; its mark's `started` is the time when this program's code began to run."""
    started = time.time()
    job = read_job(sys.argv[1])
    (task,) = job.tasks
    from vllm import LLM

    llm = LLM(model=task.model, **job.engine_args)
    write_mark(sys.argv[2], answered(llm, task, started))


if __name__ == "__main__":
    main()
