"""Wait until a Ray cluster has so many nodes: python cluster/await_nodes.py NODES (the cluster is at $RAY_ADDRESS)."""

from __future__ import annotations

import os
import sys
import time

import ray

TIMEOUT_S = 600.0


def main(wanted: int) -> str | None:
    """None when they are there, else what is wrong."""
    deadline, there = time.monotonic() + TIMEOUT_S, 0
    while time.monotonic() < deadline:
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError):  # the head is not up yet
            time.sleep(1.0)
            continue
        while there < wanted and time.monotonic() < deadline:
            there = sum(node["Alive"] for node in ray.nodes())
            time.sleep(0.5)
        break
    return None if there >= wanted else f"{there} of {wanted} Ray nodes have come within {TIMEOUT_S:.0f} s"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
