"""Weights on this node's disk, fetched from a hub over HTTP, from folders and from addresses."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants
from pyarrow import fs

from actors import models, node_cache
from actors.hub_commits import commits, pinned
from actors.weight_checks import record, verify
from actors.weights import stage, staged
from symoe_ray.core import ExpertSpec, RemoteServer, ResourceError
from tests.hub_server import Hub, running_hub

MODEL = "org/model"
CHUNK = 1 << 16


def safetensors(size: int, seed: int = 0) -> bytes:
    """A file of one tensor of so many bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    data = hashlib.shake_128(bytes([seed])).digest(size)
    return struct.pack("<Q", len(header)) + header + data


FILES = {
    "config.json": b'{"model_type": "toy"}',
    "model-1.safetensors": safetensors(10 * CHUNK),
    "model-2.safetensors": safetensors(100, seed=1),
    "onnx/model.safetensors": b"not wanted",
    "README.md": b"not wanted",
}
WANTED = {"config.json", "model-1.safetensors", "model-2.safetensors"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of ours, and an empty one of the hub library."""
    monkeypatch.setenv("SYMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the hub library talks to, in small pieces and without waiting before it tries again."""
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield hub


def content(folder: Path) -> dict[str, bytes]:
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"checksums.json"}
    return {name: (folder / name).read_bytes() for name in names}


def interrupted_after(size: int) -> Callable[[int], None]:
    """What is told of bytes that come, and interrupts when so many of the large file are on the disk."""

    def told(_: int) -> None:
        part = next(node_cache.cache_folder().rglob("model-1.safetensors.part"))
        if part.stat().st_size >= size:
            raise KeyboardInterrupt

    return told


def test_a_hub_model_comes_whole_at_the_commit_that_its_branch_is(hub: Hub) -> None:
    commit = hub.add(MODEL, FILES)
    came: list[int] = []
    made = stage(MODEL, on_bytes=came.append)
    assert (made.version, made.folder.name) == (commit, commit)
    assert content(made.folder) == {name: FILES[name] for name in WANTED}
    assert sum(came) == made.fetched_bytes == made.size_bytes == sum(len(FILES[name]) for name in WANTED)
    sums = json.loads((made.folder / "checksums.json").read_text())
    assert sums["version"] == commit
    assert sums["files"]["config.json"]["sha256"] == hashlib.sha256(FILES["config.json"]).hexdigest()


def test_what_is_here_is_not_fetched_again_and_needs_no_hub(hub: Hub) -> None:
    stage(MODEL if hub.add(MODEL, FILES) else "")
    asked = len(hub.requests)
    assert stage(MODEL).fetched_bytes == 0
    hub.files.clear()
    assert models.local_path(MODEL) == staged(MODEL)
    assert len(hub.requests) == asked


def test_a_branch_that_moves_is_another_folder_and_a_pinned_commit_stays(hub: Hub) -> None:
    old = hub.add(MODEL, FILES)
    before = stage(MODEL).folder
    new = hub.add(MODEL, {**FILES, "config.json": b"{}"})
    assert models.local_path(MODEL) == before  # a run asks through its driver, see hub_commits
    assert stage(MODEL).folder.name == new
    assert models.local_path(MODEL, old) == before
    assert models.local_path(f"{MODEL}@{old}") == before
    assert (models.local_path(MODEL, new) / "config.json").read_bytes() == b"{}"


def test_a_connection_that_is_cut_goes_on_in_the_middle_of_the_file(hub: Hub) -> None:
    hub.add(MODEL, FILES)
    hub.cut_after["model-1.safetensors"] = [3 * CHUNK + 5, 2 * CHUNK]
    assert content(stage(MODEL).folder)["model-1.safetensors"] == FILES["model-1.safetensors"]
    firsts = [first for name, first in hub.requests if name == "model-1.safetensors"]
    assert len(firsts) == 3
    assert 0 == firsts[0] < firsts[1] < firsts[2]


def test_an_interrupted_fetch_is_gone_on_with_in_the_middle_of_the_file(hub: Hub) -> None:
    hub.add(MODEL, FILES)
    with pytest.raises(KeyboardInterrupt):
        stage(MODEL, on_bytes=interrupted_after(4 * CHUNK))
    assert staged(MODEL) is None
    hub.requests.clear()
    made = stage(MODEL)
    assert content(made.folder)["model-1.safetensors"] == FILES["model-1.safetensors"]
    assert [first > 0 for name, first in hub.requests if name == "model-1.safetensors"] == [True]
    assert made.fetched_bytes < made.size_bytes


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
def test_a_file_with_another_checksum_is_refused_and_fetched_again(hub: Hub, name: str) -> None:
    hub.add(MODEL, FILES)
    hub.corrupt.add(name)
    with pytest.raises(ResourceError, match=rf"{name} came with \d+ bytes and checksum [0-9a-f]+; the source says"):
        stage(MODEL)
    assert staged(MODEL) is None
    hub.corrupt.clear()
    assert content(stage(MODEL).folder)[name] == FILES[name]


def test_a_file_that_the_hub_does_not_give_is_one_line(hub: Hub) -> None:
    hub.add(MODEL, FILES)
    hub.refuse.add("model-2.safetensors")
    with pytest.raises(ResourceError, match=r"model org/model: model-2\.safetensors cannot be had") as caught:
        stage(MODEL)
    assert "\n" not in str(caught.value)


def test_a_model_without_safetensors_is_refused(hub: Hub) -> None:
    hub.add(MODEL, {"pytorch_model.bin": b"x", "config.json": b"{}"})
    with pytest.raises(ResourceError, match="no safetensors files"):
        stage(MODEL)


def test_room_on_the_disk_is_checked_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(MODEL, FILES)
    monkeypatch.setattr(node_cache, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ResourceError, match=r"0\.0 GB are to be fetched .* set SYMOE_CACHE to a larger disk"):
        stage(MODEL)
    assert hub.requests == []


def test_several_slots_of_a_node_fetch_a_model_once(hub: Hub) -> None:
    hub.add(MODEL, FILES)
    barrier = threading.Barrier(4)

    def slot(_: int) -> int:
        barrier.wait()
        return stage(MODEL).fetched_bytes

    with ThreadPoolExecutor(4) as threads:
        fetched = sorted(threads.map(slot, range(4)))
    assert fetched[:3] == [0, 0, 0]
    assert sorted(name for name, _ in hub.requests) == sorted(WANTED)


def test_an_address_is_copied_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "model"
    for name, data in FILES.items():
        (shared / name).parent.mkdir(parents=True, exist_ok=True)
        (shared / name).write_bytes(data)
    address = shared.as_uri()
    first = models.local_path(address)
    assert content(first) == {name: FILES[name] for name in WANTED}
    assert models.local_path(address) == first
    os.utime(shared / "config.json", ns=(1, 1))
    second = models.local_path(address)
    assert second != first
    (shared / "config.json").rename(shared / "gone.bin")
    for path in shared.glob("*.safetensors"):
        path.unlink()
    assert models.local_path(address) == second  # what is no model any more is taken as it was


def test_an_object_store_is_read_over_its_protocol_and_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        store = fs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        store.create_dir("models/toy")
        for name in WANTED:
            with store.open_output_stream(f"models/toy/{name}") as stream:
                stream.write(FILES[name])
        address = f"s3://models/toy?{options}"
        monkeypatch.setattr("actors.weight_sources.BLOCK_BYTES", CHUNK)
        with pytest.raises(KeyboardInterrupt):
            stage(address, on_bytes=interrupted_after(4 * CHUNK))
        made = stage(address)
        assert content(made.folder) == {name: FILES[name] for name in WANTED}
        assert made.fetched_bytes < made.size_bytes
        assert models.local_path(address) == made.folder
    finally:
        server.stop()


def test_copies_of_a_folder_with_checksums_are_compared_with_them(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in WANTED:
        (shared / name).write_bytes(FILES[name])
    assert record(shared) == 3
    assert verify(str(shared)).checked == 3
    assert content(models.local_path(shared.as_uri())) == {name: FILES[name] for name in WANTED}
    damaged = bytearray(FILES["model-2.safetensors"])
    damaged[-1] ^= 1
    (shared / "model-2.safetensors").write_bytes(damaged)
    (shared / "model-1.safetensors").write_bytes(FILES["model-1.safetensors"] + b"x")
    (problems := list(verify(str(shared)).problems)).sort()
    assert [p.removeprefix(f"{shared}/").split(":")[0] for p in problems] == [
        "model-1.safetensors", "model-1.safetensors", "model-2.safetensors",
    ]  # fmt: skip
    assert "header says" in problems[0] + problems[1]
    with pytest.raises(ResourceError, match=r"model-.\.safetensors came with"):
        stage(shared.as_uri())


def test_verify_finds_what_changed_after_it_was_staged(hub: Hub) -> None:
    hub.add(MODEL, FILES)
    folder = stage(MODEL).folder
    assert verify(MODEL).problems == ()
    assert verify(MODEL).checked == len(WANTED)
    (folder / "model-2.safetensors").unlink()
    (folder / "config.json").write_bytes(b"{}")
    problems = " ".join(verify(MODEL).problems)
    assert "config.json: SHA-256 is not" in problems
    assert "model-2.safetensors: No such file" in problems


def test_the_hub_librarys_own_cache_is_used_and_verified(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub.file_download import repo_folder_name

    commit = hub.add(MODEL, FILES)
    place = tmp_path / "hub" / repo_folder_name(repo_id=MODEL, repo_type="model")
    snapshot = place / "snapshots" / commit
    for folder in (snapshot, place / "blobs", place / "refs"):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    for entry in hub.tree(MODEL, commit):
        if entry["path"] in WANTED:
            blob = place / "blobs" / entry.get("lfs", entry)["oid"]
            blob.write_bytes(FILES[entry["path"]])
            (snapshot / entry["path"]).symlink_to(os.path.relpath(blob, snapshot))
    assert models.local_path(MODEL) == snapshot
    assert hub.requests == []
    assert (verify(MODEL).checked, verify(MODEL).problems) == (3, ())
    (snapshot / "config.json").resolve().write_bytes(b"{ }")
    assert "git's SHA-1 is not" in verify(MODEL).problems[0]


def test_verify_of_what_is_not_here_says_how_to_have_it() -> None:
    with pytest.raises(ResourceError, match="symoe models pull"):
        verify("org/absent", "a" * 40)


def test_a_run_uses_one_commit_of_each_hub_model_on_all_nodes_and_attempts(hub: Hub, tmp_path: Path) -> None:
    commit, adapter = hub.add(MODEL, FILES), hub.add("org/adapter", FILES)
    branch = hub.add(MODEL, {**FILES, "x.json": b"1"}, branch="v1")
    specs = [
        ExpertSpec(name="A", model=MODEL, lora="org/adapter"),
        ExpertSpec(name="B", model=MODEL, revision="v1"),
        ExpertSpec(name="C", model=MODEL, revision=commit),
        ExpertSpec(name="D", model=str(tmp_path)),
        ExpertSpec(name="E", model="org/remote", server=RemoteServer(base_url="http://x/v1")),
        ExpertSpec(name="F", model="org/absent"),
    ]
    known = commits(specs, {})
    assert known == {
        MODEL: commit, f"{MODEL}@v1": branch, f"{MODEL}@{commit}": commit, "org/adapter": adapter, "org/absent": "",
    }  # fmt: skip
    hub.add(MODEL, {**FILES, "y.json": b"2"})
    assert commits(specs, known) == known
    a, b, c, d, e, f = (pinned(spec, known) for spec in specs)
    assert (a.model, a.revision, a.lora) == (MODEL, commit, f"org/adapter@{adapter}")
    assert (b.revision, c.revision) == (branch, commit)
    assert (d, e, f) == tuple(specs[3:])
    assert models.local_path(a.lora).name == adapter


def test_without_a_hub_the_commit_is_the_one_that_is_here(hub: Hub) -> None:
    commit = hub.add(MODEL, FILES)
    stage(MODEL)
    hub.files.clear()
    assert commits([ExpertSpec(name="A", model=MODEL)], {}) == {MODEL: commit}
