"""`ray.data.llm` with one processor per expert, as its documentation shows it, on a Ray that is up.

`python -m benchmarks.contenders.ray_data_llm JOB MARKS`. What it needs on a machine without a GPU: a bundle without one
for the engine's worker. Imports and the start of Ray come before the first task.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.contenders.peers import Mark, Task, read_job, write_mark

LOGICAL_CPUS = 8  # each of the processor's stages asks for one; the machine's cores are shared by the kernel
BATCH_SIZE = 16
BUNDLE = {"bundle_per_worker": {"CPU": 1}}


def main() -> None:
    """Do the tasks; each mark runs from the building of the processor to its last row."""
    job = read_job(sys.argv[1])
    import ray
    import transformers  # noqa: F401  (build_processor imports these two; the clock is not to see it)
    import vllm  # noqa: F401

    ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False)
    for task in job.tasks:
        started = time.time()
        rows = _generate(task, dict(job.engine_args))
        mark = Mark(
            started=started, finished=time.time(),
            prompt_tokens=sum(row["prompt_tokens"] for row in rows),
            completion_tokens=sum(row["completion_tokens"] for row in rows),
        )  # fmt: skip
        write_mark(sys.argv[2], mark)
    ray.shutdown()


def _generate(task: Task, engine_args: dict[str, object]) -> list[dict[str, Any]]:
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=task.model, engine_kwargs=engine_args, batch_size=BATCH_SIZE, concurrency=1,
        placement_group_config=BUNDLE,
    )  # fmt: skip
    sampling = {"temperature": 0.0, "max_tokens": task.max_tokens}
    processor = build_processor(
        config,
        preprocess=lambda row: {"messages": row["messages"], "sampling_params": sampling},
        postprocess=lambda row: {
            "text": row["generated_text"],
            "prompt_tokens": row["num_input_tokens"],
            "completion_tokens": row["num_generated_tokens"],
        },
    )
    rows: list[dict[str, Any]] = processor(
        ray.data.from_items([{"messages": c} for c in task.conversations])
    ).take_all()
    return rows


if __name__ == "__main__":
    main()
