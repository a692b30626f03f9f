"""How well a finished run guessed which of its answers would be long: the order in which they were generated.

`python -m benchmarks.lengths [RUN] [--json]`, RUN the folder of a run whose `answer` stage has run: runs/demo, as
`make demo` leaves it, unless said otherwise. For each expert: its answers, the spread of their lengths (sigma of the
logarithm of the tokens), and the correlation of the guesses with the truth, both as logarithms. Failed and copied
samples are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from symoe_ray.ledger import responses
from symoe_ray.storage import Storage

STAGE = "answer"
FEWEST = 10
GUESSES = pa.schema([("request_id", pa.string()), ("shard", pa.int32()), ("relative_length", pa.float32())])


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/demo", help="a run's folder or address")
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    options = parser.parse_args()
    table = sys.stderr if options.json else sys.stdout
    rows = measure(Storage(options.run))
    if not rows:
        print(f"{options.run} has no answers: `make demo` makes runs/demo", file=sys.stderr)
    print(f"{'expert':<16}{'answers':>10}{'sigma':>10}{'correlation':>14}", file=table)
    for expert, row in rows.items():
        print(f"{expert:<16}{row['answers']:>10}{row['sigma']:>10.2f}{row['correlation']:>14.2f}", file=table)
    told = [row["correlation"] for row in rows.values()]
    print(json.dumps({"benchmark": "lengths", "experts": rows,
                      "median_correlation": round(statistics.median(told), 3) if told else None}))  # fmt: skip


def measure(storage: Storage) -> dict[str, dict[str, float]]:
    """The figures of each expert with `FEWEST` answers at least; a correlation is 0 where all guesses are equal."""
    files = storage.names(f"requests/{STAGE}", ".parquet")
    guesses = storage.read_tables(files, GUESSES, GUESSES.names).to_pylist()
    guess_of = {(row["request_id"], row["shard"]): row["relative_length"] for row in guesses}
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in responses(storage, STAGE).to_pylist():
        if row["failure"] is None and row["completion_tokens"] > 0 and row["sample"] == 0:
            pairs[row["expert"]].append((guess_of[row["request_id"], row["shard"]], row["completion_tokens"]))
    return {expert: figures(own) for expert, own in sorted(pairs.items()) if len(own) >= FEWEST}


def figures(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of (guess, length) pairs."""
    guesses, lengths = np.log(np.array(pairs, dtype=float)).T
    is_known = guesses.std() > 0 and lengths.std() > 0
    correlation = float(np.corrcoef(guesses, lengths)[0, 1]) if is_known else 0.0
    return {"answers": len(pairs), "sigma": round(float(lengths.std()), 3), "correlation": round(correlation, 3)}


if __name__ == "__main__":
    main()
