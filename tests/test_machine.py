"""Devices, threads, peak memory, provenance."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest
import torch

from normbench import machine
from normbench.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert machine.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "tpu:0"])
def test_a_device_that_is_not_here_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        machine.device(name)


def test_deterministic_runs_have_one_thread_and_all_is_put_back() -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    with machine.numerics(deterministic=True, values=10**9) as threads:
        assert threads == torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    with machine.numerics(deterministic=False, values=10**9) as threads:
        assert threads == before[0]
    with machine.numerics(deterministic=False, values=1, exactly=2) as threads:
        assert threads == torch.get_num_threads() == 2
    assert before == (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
    )  # fmt: skip


def test_a_small_cell_has_one_thread_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.threads_for(machine.SMALL - 1) == 1
    assert machine.threads_for(machine.SMALL) == torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert machine.threads_for(machine.SMALL) == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert machine.threads_for(1) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_of_this_cell_and_not_of_the_one_before() -> None:
    torch.ones(64 * 2**20).sum()  # 256 MiB, given back
    machine.reset_peak_memory(CPU)
    quiet = machine.peak_memory_mib(CPU)
    held = torch.ones(32 * 2**20)  # 128 MiB
    assert 100 < machine.peak_memory_mib(CPU) - quiet < 200
    del held


def test_provenance_tells_versions_and_no_names() -> None:
    found = machine.provenance(CPU, 2)
    assert found["torch"] == torch.__version__
    assert found["threads"] == 2
    text = json.dumps(found)
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_memory_is_kept_and_what_was_set_is_told() -> None:
    assert told_of_memory() in (["mallopt(M_MMAP_MAX=0, M_TRIM_THRESHOLD=2^31-1)"] * 2, [None, None])  # musl: None


def test_where_the_environment_sets_memory_all_stays_as_it_is() -> None:
    assert told_of_memory(MALLOC_ARENA_MAX="2") == [None, None]


def test_where_the_c_library_has_no_such_settings_all_stays_as_it_is() -> None:
    assert told_of_memory(before="import ctypes; ctypes.CDLL = lambda name: None") == [None, None]


def told_of_memory(before: str = "pass", **environment: str) -> list[str | None]:
    """What a process of its own says, asked twice."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    code = f"from normbench import machine; {before}; print([machine.keep_memory(), machine.keep_memory()])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=others | environment, capture_output=True, text=True, check=True)
    found = ast.literal_eval(done.stdout)
    assert isinstance(found, list)
    return found
