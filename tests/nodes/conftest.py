"""An S3 server on this machine, and a cluster of several Ray nodes."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.nodes.machines import wait_for

KEYS = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
BUCKET = "runs"


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """A server of the S3 protocol with an empty bucket `BUCKET`; its port, on every address of this machine."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto, the S3 server of these tests, is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "s3.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(port)],
            env={**os.environ, **KEYS}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for(lambda: _answers(port), "the S3 server", tell=(folder / "s3.log").read_text)
        there = pafs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True,
            access_key=KEYS["AWS_ACCESS_KEY_ID"], secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        there.create_dir(BUCKET)
        yield port
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
