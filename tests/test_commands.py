"""How commands begin and end; the commands' own tests show that they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from normbench.commands import BAD_COMMAND, FAILED, STOPPED, ended
from normbench.errors import ConfigError


def raises(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("batch: got 0,\n  expected more"), BAD_COMMAND, "me: batch: got 0, expected more\n"),
        (OSError(28, "No space left on device"), FAILED, "me: [Errno 28] No space left on device; mend it\n"),
        (KeyboardInterrupt(), STOPPED, "me: stopped; goes on\n"),
    ],
)
def test_what_went_wrong_is_a_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raises(error), "me", mend="; mend it", stopped="stopped; goes on") == code
    assert capsys.readouterr() == ("", said)


def test_the_code_of_a_command_is_its_own() -> None:
    assert ended(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        ended(raises(ZeroDivisionError()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_ends_a_command_as_a_stop_does(number: signal.Signals, tmp_path: Path) -> None:
    """And a letter that the terminal has not is no reason to end."""
    script = tmp_path / "mine.py"
    script.write_text(
        "import signal, sys, time\nfrom normbench.commands import begin, ended\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests run under\n"
        "def command():\n    print('±', flush=True)\n    time.sleep(60)\n"
        "begin()\nsys.exit(ended(command))\n"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"?\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (STOPPED, b"normbench: stopped\n")
