"""Question files as rows: JSON lists, JSON lines and Parquet, from a path, an http(s) address or an object store.

Whatever is wrong with a file is one `InputError` that names the file and the line, item or byte. A hub's address needs
a reader that is handed in.
"""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from symoe_ray.core import InputError
from symoe_ray.hub_addresses import SCHEME
from symoe_ray.storage import Storage, below

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One question as the file has it. `place` says where: "questions.json, item 3", counted from 1."""

    place: str
    values: Mapping[str, object]


ReadHub = Callable[[str], list[Row]]
"""hf:// address -> its rows."""


def read_rows(source: str, read_hub: ReadHub | None = None) -> list[Row]:
    """All rows of a .json, .jsonl (or .ndjson) or .parquet file, or of an hf:// address, in their order; never empty.

    An address that is neither http(s) nor hf is one of `Storage`, with the filesystem's options behind a question mark.
    Raises InputError for a missing, unreadable, empty or malformed file.
    """
    if source.startswith(SCHEME):
        assert read_hub is not None, "who reads task data hands in a reader of the hub"
        return read_hub(source)
    if "://" in source and not _is_web(source):
        source = _with_options_last(source)
    suffix = _suffix(urllib.parse.urlsplit(source).path if "://" in source else source)
    if suffix not in _READERS:
        raise InputError(f"{source}: unknown kind of file {suffix!r}; allowed: {', '.join(_READERS)}")
    content = _fetch(source) if _is_web(source) else _read(source)
    if not content.strip():
        raise InputError(f"{source}: the file is empty")
    rows = _READERS[suffix](source, content)
    if not rows:
        raise InputError(f"{source}: the file holds no questions")
    return rows


def _is_web(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _with_options_last(address: str) -> str:
    """`s3://BUCKET/data?OPTIONS/FILE`, which ${data_dir}/FILE comes to, with the file in its place."""
    folder, _, rest = address.partition("?")
    options, slash, name = rest.rpartition("/")
    return below(f"{folder}?{options}", name) if slash and _suffix(name) in _READERS else address


def _stored(address: str) -> bytes:
    path, mark, options = address.partition("?")
    folder, _, name = path.rpartition("/")
    return Storage(f"{folder}{mark}{options}").read_bytes(name)


def _read(source: str) -> bytes:
    try:
        return _stored(source) if "://" in source else Path(source).expanduser().read_bytes()
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error


def _fetch(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        raise InputError(f"{address}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{address}: cannot be fetched: {error}") from error


def _text(source: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}") from None


def read_json(source: str) -> object:
    """The value in a JSON file; InputError with line and column where it is missing or malformed."""
    return _json(source, _read(source))


def _json(source: str, content: bytes) -> object:
    try:
        return json.loads(_text(source, content))
    except json.JSONDecodeError as error:
        hint = " (one object a line? name the file .jsonl)" if error.msg == "Extra data" else ""
        raise InputError(
            f"{source}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}{hint}"
        ) from None
    except RecursionError:
        raise InputError(f"{source}: not valid JSON: nested too deeply") from None


def _json_rows(source: str, content: bytes) -> list[Row]:
    items = _json(source, content)
    if not isinstance(items, list):
        raise InputError(f"{source}: must hold a list of questions, but holds {_kind_of(items)}")
    return [_row(f"{source}, item {number}", item) for number, item in enumerate(items, start=1)]


def _json_lines_rows(source: str, content: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(source, content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{source}, line {number}, column {error.colno}: not valid JSON: {error.msg}") from None
        except RecursionError:
            raise InputError(f"{source}, line {number}: not valid JSON: nested too deeply") from None
        rows.append(_row(f"{source}, line {number}", item))
    return rows


def _parquet_rows(source: str, content: bytes) -> list[Row]:
    try:
        items = pq.read_table(io.BytesIO(content)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{source}: not a readable Parquet file: {reason}") from error
    return [_row(f"{source}, row {number}", item) for number, item in enumerate(items, start=1)]


def _row(place: str, item: object) -> Row:
    if not isinstance(item, dict):
        raise InputError(f"{place}: must be an object with named fields, but is {_kind_of(item)}")
    return Row(place, item)


def _kind_of(value: object) -> str:
    """JSON's word for a value, for messages."""
    words = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")


_READERS = {
    ".json": _json_rows,
    ".jsonl": _json_lines_rows,
    ".ndjson": _json_lines_rows,
    ".parquet": _parquet_rows,
}
