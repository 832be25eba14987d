"""What is free, planted in a file system of its own, and the refusal of what does not fit."""

import subprocess
import sys

import pytest

from sat_lens import memory
from sat_lens.memory import GIB, available_bytes, host_bytes, keep_freed_memory, require


def planted(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\n"}
V2 = {"proc/self/cgroup": "0::/box/job\n", "sys/fs/cgroup/box/job/memory.max": "max\n"}
V1 = {"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n"}


def test_without_groups_it_is_what_the_kernel_calls_available(tmp_path):
    assert host_bytes(planted(tmp_path, MEMINFO)) == 8000 * 1024


def test_a_group_of_version_2_limits_what_its_parents_and_the_kernel_do_not(tmp_path):
    limit = {
        "sys/fs/cgroup/box/memory.max": "3000000\n",
        "sys/fs/cgroup/box/memory.current": "1000000\n",
        "sys/fs/cgroup/box/memory.stat": "anon 5\ninactive_file 500000\n",
    }
    assert host_bytes(planted(tmp_path, MEMINFO | V2 | limit)) == 3_000_000 - 1_000_000 + 500_000


def test_a_group_of_version_1_limits_too(tmp_path):
    limit = {
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000000\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "2999999\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "7\n",
    }
    assert host_bytes(planted(tmp_path, MEMINFO | V1 | limit)) == 1


def test_a_container_sees_its_limit_at_the_root_of_its_groups(tmp_path):
    limit = {"sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "400\n"}
    assert host_bytes(planted(tmp_path, MEMINFO | {"proc/self/cgroup": "0::/elsewhere\n"} | limit)) == 600


def test_a_group_over_its_limit_has_nothing_left(tmp_path):
    limit = {"sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "1400\n"}
    assert host_bytes(planted(tmp_path, MEMINFO | {"proc/self/cgroup": "0::/\n"} | limit)) == 0


def test_a_group_without_a_limit_leaves_the_kernels_figure(tmp_path):
    assert host_bytes(planted(tmp_path, MEMINFO | V2)) == 8000 * 1024


def test_without_linux_files_it_is_the_hosts_memory_or_unknown(tmp_path):
    assert host_bytes(tmp_path) is None or host_bytes(tmp_path) > GIB / 4


def test_what_fits_passes_and_what_does_not_is_refused_with_estimate_room_and_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10 * GIB)
    require(9 * GIB, "a batch of 8")  # nine tenths may be asked for
    expected = "a batch of 64 needs about 12.5 GiB on cpu, where 10.0 GiB are free; lower --batch-size"
    with pytest.raises(ValueError) as refusal:
        require(12.5 * GIB, "a batch of 64", change="lower --batch-size")
    assert str(refusal.value) == expected
    with pytest.raises(ValueError, match="smaller batch or fewer examples"):
        require(9.1 * GIB, "a batch of 8")


def test_nothing_is_refused_where_the_room_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    require(1e30, "anything")


def test_this_machine_has_room_and_a_petabyte_does_not_fit():
    assert available_bytes("cpu") > 0
    with pytest.raises(ValueError, match="needs about 1,048,576.0 GiB"):
        require(2**50, "a petabyte")


def test_asking_the_c_library_to_keep_memory_works_or_says_no_in_a_process_of_its_own():
    code = "from sat_lens.memory import keep_freed_memory as keep; print(keep())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() in ("True", "False") and not done.stderr


def test_a_c_library_without_mallopt_is_no_error(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_processes_of_one_host_share_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 * memory.GIB)
    for processes in ("", "1", "none", "0"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        memory.require(7 * memory.GIB, "it")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    memory.require(1.7 * memory.GIB, "it")
    with pytest.raises(ValueError, match=r"it needs about 1\.9 GiB on cpu, where 2\.0 GiB are free for each process"):
        memory.require(1.9 * memory.GIB, "it")
    memory.require(7 * memory.GIB, "it", "cuda:0")  # a card is one process's own
