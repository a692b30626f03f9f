"""What the server of an expert that is served elsewhere must satisfy."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from symoe_ray.core import ExpertSpec, InputError
from symoe_ray.typed import Origin, wrong

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

# Fields of a request that follow from the request itself.
_OWN_FIELDS = ("model", "messages", "n", "stream", "stream_options")

# Keys of an expert that are an engine's: a server has its own, and their values elsewhere mean "not set".
_ENGINE_FIELDS = {
    "lora": "", "chat_template": "", "chat_template_kwargs": {}, "add_bos": False, "trust_remote_code": False,
    "tensor_parallel_size": 1, "accelerator_type": "", "engine_args": {},
}  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_server(expert: ExpertSpec, key: str, origin: Origin, *, required: bool) -> None:
    """InputError for the first thing about an expert's server that does not fit; `required`: it must have one."""
    server, place = expert.server, f"{key}.server"
    if not server.base_url:
        if required:
            raise InputError(
                f"{origin(place)}: {place}.base_url is missing: with engine.kind=openai every expert has a server "
                "(pool.defaults.server.base_url=URL gives all the same)"
            )
        return
    _check_address(server.base_url, f"{place}.base_url", origin)
    if server.api_key_env and not _VARIABLE.fullmatch(server.api_key_env):  # perhaps a key: it is not repeated
        raise InputError(f"{origin(place)}: {place}.api_key_env must be the name of an environment variable, not a key")
    for name, least in (("max_concurrency", 1), ("timeout_s", 1), ("retries", 0)):
        if getattr(server, name) < least:
            raise wrong(f"{place}.{name}", getattr(server, name), f"must be {least} or more", origin)
    if server.token_limit not in TOKEN_LIMITS:
        raise wrong(f"{place}.token_limit", server.token_limit, f"must be one of {', '.join(TOKEN_LIMITS)}", origin)
    for name in _OWN_FIELDS:
        if name in server.extra_body:
            raise wrong(f"{place}.extra_body.{name}", server.extra_body[name], "is set by each request itself", origin)
    for name, unset in _ENGINE_FIELDS.items():
        if (value := getattr(expert, name)) != unset:
            raise wrong(f"{key}.{name}", value, "is for engines of ours; a server renders and loads by itself", origin)


def _check_address(address: str, key: str, origin: Origin) -> None:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise InputError(f"{origin(key)}: {key} is no address") from None
    if parts.username or parts.password:
        raise InputError(f"{origin(key)}: {key} holds a name or password; name a variable with the key in api_key_env")
    if not usable or parts.query or parts.fragment:
        raise wrong(key, address, "must be http(s)://HOST[:PORT]/PATH, without a query", origin)
