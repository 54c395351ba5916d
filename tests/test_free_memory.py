"""Free memory: what control groups allow counts, whichever version they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from normbench import memory

MIB = 2**20


def group(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


def test_what_is_free_here_is_some_and_no_more_than_the_machine_says() -> None:
    said = memory._of_machine()
    assert said is None or 0 < memory.free_mib() <= 1.1 * said


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory__max": 100 * MIB, "memory__current": 70 * MIB, "memory__stat": ""}, 30),
        ({"memory__max": 100 * MIB, "memory__current": 70 * MIB,
          "memory__stat": f"anon 5\ninactive_file {8 * MIB}\nactive_file {2 * MIB}"}, 40),
        ({"memory__max": 100 * MIB, "memory__current": 120 * MIB, "memory__stat": ""}, 0),
        ({"memory__max": "max", "memory__current": 70 * MIB, "memory__stat": ""}, None),
        ({"memory__limit_in_bytes": 100 * MIB, "memory__usage_in_bytes": 70 * MIB,
          "memory__stat": f"inactive_file 7\ntotal_inactive_file {8 * MIB}"}, 38),
        ({}, None),
    ],
)  # fmt: skip
def test_a_groups_limit_less_what_is_used_and_not_given_up(
    tmp_path: Path, files: dict[str, object], free: float | None
) -> None:
    assert memory._of_group(group(tmp_path / "g", **files)) == free


def test_the_tightest_group_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path / "job", memory__max=50 * MIB, memory__current=20 * MIB, memory__stat="")
    own = group(tmp_path / "job" / "step", memory__max=90 * MIB, memory__current=10 * MIB, memory__stat="")
    monkeypatch.setattr(memory, "groups", lambda: [own, own.parent, tmp_path])
    assert memory.free_mib() == 30


def test_a_process_in_groups_of_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/a/b\n3:cpuset:/\n0::/c\n")
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **more: read(own if str(path) == "/proc/self/cgroup" else path, **more)
    )
    root = memory.CONTROL_GROUPS
    assert memory.groups() == [
        root / "memory" / "a" / "b", root / "memory" / "a", root / "memory", root / "c", root,
    ]  # fmt: skip
