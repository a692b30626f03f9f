"""A finished run's results under the file names of lm-evaluation-harness 0.4, so that its readers find and load them.

lm-eval writes `<model>/results_<date>.json` and `<model>/samples_<task>_<date>.jsonl`, and takes task and date from
these names (`lm_eval.utils.get_file_task_name`, `get_file_datetime`). The contents are in its layout already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def lm_eval_files(results: Mapping[str, Any], samples: bytes) -> dict[str, bytes]:
    """Path -> content, from a run's results.json and samples_<task>.jsonl.

    What is ours in the results goes to a file of its own, since lm-eval's readers infer one column type per key.
    """
    date = datetime.fromtimestamp(results["date"], UTC).replace(tzinfo=None).isoformat().replace(":", "-")
    folder = results["model_name_sanitized"]
    (task,) = results["results"]
    name = re.sub(r"\W", "_", task)
    theirs = {key: value for key, value in results.items() if key != "symoe"}
    return {
        f"{folder}/results_{date}.json": _json(theirs),
        f"{folder}/samples_{name}_{date}.jsonl": samples,
        f"{folder}/symoe_{date}.json": _json(results["symoe"]),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
