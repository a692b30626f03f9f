"""What Ray has to say never stands among a command's results."""

import subprocess
import sys

SCRIPT = """
import sys, threading
import ray
from actors.cluster import connected
from symoe_ray.config import load

class Watched:
    def __init__(self, stream):
        self.stream, self.seen = stream, threading.Event()
    def write(self, text):
        if "a node's warning" in text:
            self.seen.set()
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout, sys.stderr = Watched(sys.stdout), Watched(sys.stderr)
with connected(load(["task=demo", "pool=small", "engine.kind=fake", "cluster.num_cpus=1"])):
    worker = ray._private.worker.global_worker
    ray._private.utils.publish_error_to_driver("test", "a node's warning", gcs_client=worker.gcs_client)
    assert sys.stderr.seen.wait(60) or sys.stdout.seen.is_set(), "the warning never came"
print("result")
"""


def test_a_warning_of_the_cluster_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "result\n"
    assert "a node's warning" in done.stderr
