"""The choice of a tracker, and what a sweep pays for one it does not use."""

import subprocess
import sys

import pytest

from normbench import track
from normbench.errors import UnknownName


@pytest.mark.parametrize("kind", [None, "none", "off"])
def test_off_does_nothing_and_imports_nothing(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = track.make(kind, note=pytest.fail)
    tracker.begin({"cell_id": "a"})
    tracker.row("a", {})
    tracker.finish("a", {})
    tracker.close()


def test_unknown_kind():
    with pytest.raises(UnknownName, match=r"unknown tracker 'wandbb'. Did you mean 'wandb'?"):
        track.make("wandbb")


def test_import_is_light():
    modules = ", ".join(f"normbench.track.{name}" for name in ("live", "push", "mirror", "workspace", "__main__"))
    code = f"import sys, {modules}; assert not {{'torch', 'pandas', 'wandb'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
