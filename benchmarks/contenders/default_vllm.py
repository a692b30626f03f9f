"""A fresh `vllm.LLM` for each task, as vLLM's documentation shows it: the way of the released code.

`python -m benchmarks.contenders.default_vllm JOB MARKS` does one task and exits; the comparison's clock starts before
it.
"""

from __future__ import annotations

import sys
import time

from benchmarks.contenders.peers import Mark, read_job, write_mark


def main() -> None:
    """Do the job's only task; its mark's `started` is the time when this program's code began to run."""
    started = time.time()
    job = read_job(sys.argv[1])
    (task,) = job.tasks
    from vllm import LLM, SamplingParams

    llm = LLM(model=task.model, **job.engine_args)
    sampling = SamplingParams(temperature=0, max_tokens=task.max_tokens)
    outputs = llm.chat([list(c) for c in task.conversations], sampling, use_tqdm=False)
    mark = Mark(
        started=started, finished=time.time(),
        prompt_tokens=sum(len(o.prompt_token_ids or ()) for o in outputs),
        completion_tokens=sum(len(o.outputs[0].token_ids) for o in outputs),
    )  # fmt: skip
    write_mark(sys.argv[2], mark)


if __name__ == "__main__":
    main()
