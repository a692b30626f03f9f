"""Free memory of this machine, of its control groups and GPUs; what an engine needs; waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from actors import inspection, memory, nvml
from actors.memory import (
    CUDA_CONTEXT_BYTES,
    GIB,
    Need,
    engine_need,
    host_available_bytes,
    kv_room_bytes,
    shortage,
    until_free,
)
from symoe_ray.core import ResourceError


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """8 GiB are available, in no control group. Returns the folder of `proc` and `cgroups`."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    (tmp_path / "cgroups").mkdir()
    return tmp_path


def available(machine: Path) -> int:
    return host_available_bytes(machine / "proc", machine / "cgroups")


def group(folder: Path, limit: str, use: int, cache: int, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, use_file, prefix = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / use_file).write_text(f"{use}\n")
    (folder / "memory.stat").write_text(
        f"anon 1\n{prefix}inactive_file {cache // 2}\n{prefix}active_file {cache // 2}\n"
    )


class TestHost:
    def test_without_a_control_group_it_is_what_the_kernel_says(self, machine: Path) -> None:
        assert available(machine) == 8 * GIB

    def test_a_group_leaves_its_limit_less_its_use_and_page_cache_is_free(self, machine: Path) -> None:
        (machine / "proc/self/cgroup").write_text("0::/pod\n")
        group(machine / "cgroups/pod", str(4 * GIB), 3 * GIB, GIB)
        assert available(machine) == 2 * GIB

    def test_the_tightest_of_the_groups_above_decides(self, machine: Path) -> None:
        (machine / "proc/self/cgroup").write_text("0::/slice/pod\n")
        group(machine / "cgroups/slice", str(2 * GIB), GIB, 0)
        group(machine / "cgroups/slice/pod", "max", GIB, 0)
        assert available(machine) == GIB

    def test_the_root_counts_where_a_container_does_not_see_its_own_path(self, machine: Path) -> None:
        (machine / "proc/self/cgroup").write_text("0::/not/mounted/here\n")
        group(machine / "cgroups", str(3 * GIB), GIB, 0)
        assert available(machine) == 2 * GIB

    def test_version_1_with_an_unlimited_root(self, machine: Path) -> None:
        (machine / "proc/self/cgroup").write_text("9:name=systemd:/\n4:memory:/job\n0::/\n")
        group(machine / "cgroups/memory", "9223372036854771712", 7 * GIB, 0, version=1)
        group(machine / "cgroups/memory/job", str(6 * GIB), 5 * GIB, 2 * GIB, version=1)
        assert available(machine) == 3 * GIB

    def test_a_group_over_its_limit_leaves_nothing(self, machine: Path) -> None:
        (machine / "proc/self/cgroup").write_text("0::/pod\n")
        group(machine / "cgroups/pod", str(GIB), 2 * GIB, 0)
        assert available(machine) == 0

    def test_this_machine_has_some(self) -> None:
        total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        assert 0 < host_available_bytes() <= total


class NVMLError(Exception):
    """NVML's own."""


class Nvml:
    """NVML of a machine with three GPUs of 80 GiB, of which the i-th has i GiB free."""

    NVMLError = NVMLError
    uuids = ("GPU-aaaa-0", "GPU-bbbb-1", "GPU-cccc-2")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's spelling
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index > 2:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return self.uuids[handle]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.uuids:
            raise NVMLError("Not Found")
        return self.uuids.index(uuid)

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"H{handle}00"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13020

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(free=handle * GIB, total=80 * GIB)


class TestGpu:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nvml, "_nvml", Nvml)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    @pytest.mark.parametrize(
        ("visible", "index", "gpu"),
        [(None, 2, 2), ("2,1", 0, 2), ("2, 1", 1, 1), ("GPU-cccc-2", 0, 2), ("GPU-aaaa-0,GPU-bbbb", 1, 1)],
    )
    def test_the_index_counts_the_visible_ones(
        self, visible: str | None, index: int, gpu: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert memory.gpu_free_bytes(index) == gpu * GIB
        assert memory.gpu_total_bytes(index) == 80 * GIB

    @pytest.mark.parametrize(("visible", "index"), [("0", 1), ("", 0), ("7", 0), ("GPU-dddd", 0)])
    def test_one_that_is_not_there_is_a_resource_error(
        self, visible: str, index: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(ResourceError, match=f"GPU {index}: "):
            memory.gpu_free_bytes(index)

    def test_a_gpu_is_named_with_its_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
        assert nvml.gpu_and_driver(0) == "H200, driver 580.65.06"
        with pytest.raises(ResourceError, match="GPU 2: "):
            nvml.gpu_and_driver(2)

    @pytest.mark.parametrize(("built_for", "fine"), [("12.9", True), ("13.0", True), ("14.1", False), ("", False)])
    def test_doctor_wants_a_driver_for_the_cuda_of_torch(self, built_for: str, fine: bool) -> None:
        found = inspection._cuda(built_for)
        assert (found.fine, bool(found.advice)) == (fine, not fine)
        assert not built_for or found.value == f"torch is built for {built_for}, the driver runs 13.2"

    def test_doctor_says_that_there_is_no_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Nvml, "nvmlSystemGetCudaDriverVersion_v2", lambda self: self.nvmlDeviceGetHandleByIndex(9))
        found = inspection._cuda("13.0")
        assert (found.fine, found.advice) == (False, "the NVIDIA driver does not answer: Invalid Argument")

    def test_the_cuda_of_torch_is_read_without_importing_it(self) -> None:
        torch = pytest.importorskip("torch")
        assert inspection._torch_cuda() == (torch.version.cuda or "")

    def test_an_engine_on_several_gpus_has_what_the_fullest_leaves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
        free = memory.free_memory(cuda=True)
        assert (free.gpu_bytes, free.host_bytes > 0) == (GIB, True)


class TestNeed:
    def test_on_the_cpu_weights_and_kv_cache_count(self) -> None:
        small = engine_need({"kv_cache_memory_bytes": GIB}, 4 * GIB, cuda=False)
        assert 5 * GIB < small.host_bytes < 8 * GIB
        assert small.gpu_bytes == 0
        assert engine_need({"kv_cache_memory_bytes": 3 * GIB}, 4 * GIB, cuda=False).host_bytes >= 7 * GIB
        wide = engine_need({"kv_cache_memory_bytes": GIB, "dtype": "float32"}, 4 * GIB, cuda=False)
        assert wide.host_bytes - small.host_bytes >= 4 * GIB

    @pytest.mark.parametrize(
        ("weights_mib", "kv_mib", "peak_mib"), [(12, 64, 127), (256, 64, 603), (256, 512, 1059), (511, 64, 1431)]
    )
    def test_it_covers_what_forked_engines_took(self, weights_mib: int, kv_mib: int, peak_mib: int) -> None:
        need = engine_need({"kv_cache_memory_bytes": kv_mib << 20}, weights_mib << 20, cuda=False).host_bytes
        assert peak_mib << 20 <= need <= (peak_mib + 600) << 20

    def test_on_a_gpu_each_has_its_share_of_the_weights(self) -> None:
        args: dict[str, object] = {"kv_cache_memory_bytes": 2 * GIB, "gpu_memory_utilization": 0.1}
        one = engine_need(args, 16 * GIB, cuda=True, gpu_total_bytes=80 * GIB)
        assert 18 * GIB < one.gpu_bytes < 20 * GIB
        two = engine_need(args | {"tensor_parallel_size": 2}, 16 * GIB, cuda=True, gpu_total_bytes=80 * GIB)
        assert one.gpu_bytes - two.gpu_bytes == 8 * GIB

    def test_vllm_asks_for_its_whole_share_of_a_gpu(self) -> None:
        def asked(utilization: float | None) -> int:
            args = {"gpu_memory_utilization": utilization} if utilization else {}
            return engine_need(args, GIB, cuda=True, gpu_total_bytes=100 * GIB).gpu_bytes

        context = CUDA_CONTEXT_BYTES
        assert (asked(0.9), asked(None)) == (90 * GIB + context, 92 * GIB + context)
        assert asked(0.995) == 99.5 * GIB, "an idle GPU has never more free than all but a context"

    def test_an_engine_that_may_sleep_keeps_its_weights_in_pinned_host_memory(self) -> None:
        awake = engine_need({}, 16 * GIB, cuda=True)
        assert engine_need({"enable_sleep_mode": True}, 16 * GIB, cuda=True).host_bytes - awake.host_bytes == 24 * GIB


class TestKvCache:
    ARGS: ClassVar[dict[str, object]] = {"gpu_memory_utilization": 0.9, "tensor_parallel_size": 2}

    def test_on_a_gpu_it_is_what_weights_and_steps_leave(self) -> None:
        assert kv_room_bytes(self.ARGS, 30 * GIB, cuda=True, gpu_total_bytes=80 * GIB) == 2 * (72 - 15) * GIB - 3 * GIB
        wide = self.ARGS | {"dtype": "float32"}
        assert kv_room_bytes(wide, 30 * GIB, cuda=True, gpu_total_bytes=80 * GIB) == 2 * (72 - 30) * GIB - 3 * GIB
        assert kv_room_bytes(self.ARGS, 200 * GIB, cuda=True, gpu_total_bytes=80 * GIB) == 0

    @pytest.mark.parametrize("cuda", [False, True])
    def test_what_the_user_asks_for_is_for_each_gpu(self, cuda: bool) -> None:
        assert kv_room_bytes({"kv_cache_memory_bytes": GIB}, 30 * GIB, cuda=cuda, gpu_total_bytes=80 * GIB) == GIB
        both = self.ARGS | {"kv_cache_memory_bytes": GIB}
        assert kv_room_bytes(both, 30 * GIB, cuda=cuda, gpu_total_bytes=80 * GIB) == 2 * GIB


class TestShortage:
    def test_what_fits_lacks_nothing(self) -> None:
        free = Need(host_bytes=2 * GIB, gpu_bytes=GIB)
        assert shortage(Need(host_bytes=2 * GIB), free) == shortage(free, free) == ""

    def test_one_line_says_what_is_needed_what_is_free_and_what_helps(self) -> None:
        said = shortage(Need(host_bytes=3 * GIB), Need(host_bytes=2 * GIB))
        assert "3.00 GiB of host memory and 2.00 GiB are free" in said
        assert "engine.kv_cache_memory_bytes" in said
        assert "engine.slots" in said
        assert "GPU" not in said

    def test_on_a_gpu_other_things_help(self) -> None:
        said = shortage(Need(host_bytes=GIB, gpu_bytes=2 * GIB), Need(host_bytes=GIB, gpu_bytes=GIB))
        assert "2.00 GiB of GPU memory and 1.00 GiB are free" in said
        assert "gpu_memory_utilization" in said
        assert "host" not in said


class TestWaiting:
    def test_memory_is_read_until_it_suffices(self) -> None:
        readings: Iterator[Need] = iter([Need(host_bytes=free * GIB) for free in (1, 1, 4, 0)])
        assert asyncio.run(until_free(Need(host_bytes=2 * GIB), timeout_s=60, read=lambda: next(readings)))
        assert next(readings).host_bytes == 0  # and not once more

    def test_memory_that_is_there_is_not_waited_for(self) -> None:
        async def first_turn() -> bool:
            task = asyncio.ensure_future(until_free(Need(host_bytes=1), timeout_s=60, read=lambda: Need(host_bytes=1)))
            await asyncio.sleep(0)
            return task.done() and task.result()

        assert asyncio.run(first_turn())

    def test_at_the_time_out_it_is_given_up(self) -> None:
        readings: list[int] = []

        def read() -> Need:
            readings.append(1)
            return Need(host_bytes=0)

        assert not asyncio.run(until_free(Need(host_bytes=1), timeout_s=0.05, read=read))
        assert len(readings) > 1
