"""Loading what a user named: files and modules, once per content, with errors that mend."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from normbench.errors import ConfigError, UnknownName
from normbench.targets import is_target, load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("WIDTH = 7\n")
    (tmp_path / "nets.py").write_text(
        "import math\nfrom helper import WIDTH\nclass Wide:\n    width = WIDTH\ndef narrow(): return 1\nNUMBER = 3\n"
    )
    yield tmp_path
    sys.modules.pop("helper", None)


def test_a_file_by_its_path(folder: Path) -> None:
    found, sha256 = load("nets.py:Wide", "architecture")
    assert found.width == 7  # its neighbour was imported
    assert sha256 == hashlib.sha256((folder / "nets.py").read_bytes()).hexdigest()
    assert load(f"{folder}/nets.py:Wide", "architecture")[0] is found
    assert str(folder) not in sys.path


def test_an_edited_file_is_another_module(folder: Path) -> None:
    found, sha256 = load("nets.py:narrow", "architecture")
    path = folder / "nets.py"
    path.write_text(path.read_text().replace("return 1", "return 2"))
    again, sha256_again = load("nets.py:narrow", "architecture")
    assert (found(), again()) == (1, 2)
    assert sha256 != sha256_again


def test_a_module_by_its_name() -> None:
    found, sha256 = load("normbench.targets:load", "architecture")
    assert found is load
    assert sha256 is not None
    assert load("math:sqrt", "architecture")[0](4) == 2


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("net.py:Wide", ConfigError, "no file net.py here; did you mean 'nets.py'"),
        ("nets.py:Wyde", UnknownName, "Did you mean 'Wide'.*Choices: Wide, narrow"),
        ("nets.py:NUMBER", ConfigError, "expected a class or a function, got int 3"),
        ("nets.py:", ConfigError, "expected file.py:name or package.module:name"),
        ("no_such_package.nets:Wide", ConfigError, "no module 'no_such_package'; is it installed"),
        ("broken.py:Wide", ConfigError, "importing it raised ZeroDivisionError: division by zero"),
        ("lost.py:Wide", ConfigError, "no module 'no_such_neighbour'"),
    ],
)
def test_errors(folder: Path, target: str, error: type[Exception], words: str) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "lost.py").write_text("import no_such_neighbour\n")
    with pytest.raises(error, match=words):
        load(target, "architecture")
    assert not any(name.startswith("normbench_user_broken") for name in sys.modules)


def test_what_a_target_is() -> None:
    assert is_target("nets.py:Wide")
    assert is_target("package.nets:Wide")
    assert not is_target("resnet50")
