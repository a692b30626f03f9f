"""A look at the server of an expert: is the key here, does it answer, has it the model?"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from dataclasses import replace

from actors.remote_client import RemoteClient, RemoteError
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.findings import Finding

MOST_NAMES = 10
_KEY = re.compile(r"[!-~]+")


def read_key(spec: ExpertSpec) -> str:
    """The key of an expert's server from this process' environment, "" for a server that wants none; ResourceError."""
    name = spec.server.api_key_env
    key = os.environ.get(name, "").strip() if name else ""
    if name and not _KEY.fullmatch(key):
        what = "holds no usable key" if key else "is not set"
        raise ResourceError(f"environment variable {name} {what} on {socket.gethostname()}")
    return key


async def missing_model(client: RemoteClient, model: str) -> str:
    """What is wrong where a server that lists its models does not list this one; "" for nothing."""
    names = await client.models()
    if names is None or model in names:
        return ""
    more = ", ..." if len(names) > MOST_NAMES else ""
    return f"there is no model {model!r}; there are {', '.join(names[:MOST_NAMES])}{more}"


def look_at_server(spec: ExpertSpec) -> Finding:
    """What `symoe doctor` says of an expert on a server, asked once."""
    what, value = f"expert {spec.name}", f"{spec.model} at {spec.server.base_url}"
    try:
        problem = asyncio.run(_looked(spec))
    except (ResourceError, RemoteError) as error:
        problem = str(error)
    if not problem:
        return Finding(what=what, value=f"{value}: answers, {spec.server.max_concurrency} requests at once")
    advice = "check server.base_url, server.api_key_env and model of this expert, and that the server runs"
    return Finding(what=what, value=f"{value}: {problem}", fine=False, advice=advice)


async def _looked(spec: ExpertSpec) -> str:
    client = RemoteClient(replace(spec.server, retries=0), read_key(spec))
    try:
        return await missing_model(client, spec.model)
    finally:
        await client.close()
