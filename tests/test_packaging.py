"""The wheel: built, installed into an empty environment, and used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*words: object, cwd: Path, **kwargs: object) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_every_config_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"normbench/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(configs) > 20
    assert configs <= names
    published = {str(path.relative_to(ROOT)) for path in (ROOT / "normbench/paper/published").glob("*.csv")}
    assert published
    assert published <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "runs/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_sweeps_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """The environment is empty but for the wheel; what it depends on is borrowed from this one."""
    env, here = tmp_path / "env", tmp_path / "here"
    here.mkdir()
    run(sys.executable, "-m", "venv", env, cwd=tmp_path)
    python = env / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = env.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    where = run(python, "-c", "import normbench; print(normbench.__file__)", cwd=here, env=clean)
    assert Path(where.strip()).is_relative_to(env)
    said = run(
        python, "-m", "normbench.sweep", "norm=bn,gn", "batch=8", "data.limit=40", "epochs=1", cwd=here, env=clean
    )  # fmt: skip
    assert "2 ok" in said
    assert [path.name for path in here.iterdir()] == ["runs"]
    rows = (here / "runs" / "resnet8-digits" / "results.csv").read_text().splitlines()
    assert len(rows) == 3


def test_wheel_and_source_hold_what_the_page_of_a_sweep_is_made_of(wheel: Path, tmp_path: Path) -> None:
    page = ROOT / "normbench" / "report" / "page"
    parts = {str(path.relative_to(ROOT)) for path in page.iterdir() if path.suffix in (".html", ".css", ".js")}
    assert len(parts) >= 6
    assert parts <= set(zipfile.ZipFile(wheel).namelist())
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        assert parts <= {name.partition("/")[2] for name in archive.getnames()}
