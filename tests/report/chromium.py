"""A headless Chromium for tests, by way of chromedriver and the W3C WebDriver protocol: plain HTTP and JSON."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Debian's packages: chromium, chromium-driver.
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
# As root it has no sandbox; and it does nothing beside what it is asked, which takes most of a slow machine's time.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of a reference to an element
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Space": "\ue00d", "Right": "\ue014", "Escape": "\ue00c"}


class Page:
    """A browser's one window."""

    def __init__(self, driver: str, session: str) -> None:
        self.base = f"{driver}/session/{session}"

    def __call__(self, method: str, path: str, **content: Any) -> Any:
        """One command. Raises RuntimeError with what the driver says of it."""
        return _ask(method, self.base + path, content if method == "POST" else None)

    def open(self, address: str) -> None:
        self("POST", "/url", url="about:blank")  # else an address that differs in its hash alone is not loaded again
        self("POST", "/url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function's body returns in the page."""
        return self("POST", "/execute/sync", script=script, args=list(arguments))

    def find(self, selector: str) -> str:
        return str(self("POST", "/element", using="css selector", value=selector)[ELEMENT])

    def click(self, selector: str) -> None:
        self("POST", f"/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self("POST", f"/element/{self.find(selector)}/value", text=text)

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus."""
        strokes = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def texts(self, selector: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def device(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def window(self, width: int, height: int, *, scheme: str = "light") -> None:
        """The size of what is shown, in CSS pixels, and whether a dark page is preferred."""
        self.device("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.device("Emulation.setEmulatedMedia", media="", features=features)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What ``browser`` (the console) or ``performance`` (requests) has heard since it was asked last."""
        return list(self("POST", "/se/log", type=kind))

    def requests(self) -> list[str]:
        """Addresses asked for since they were asked for last."""
        heard = (json.loads(entry["message"])["message"] for entry in self.log("performance"))
        return [m["params"]["request"]["url"] for m in heard if m["method"] == "Network.requestWillBeSent"]

    def busy(self) -> float:
        """Seconds that the page's own thread has computed: as many on a busy machine, where it waits for longer."""
        self.device("Performance.enable", timeDomain="threadTicks")
        found = {metric["name"]: metric["value"] for metric in self.device("Performance.getMetrics")["metrics"]}
        return float(found["TaskDuration"])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        taken = self.device("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile; ended when the block is left."""
    command = [str(DRIVER), "--port=0"]
    # A group of its own: should the driver hang, the browser that it started is ended with it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            found = None
            while found is None:
                line = process.stdout.readline()  # type: ignore[union-attr]
                assert line, "chromedriver ended without a word about its port"
                found = re.search(r"started successfully on port (\d+)", line)
            driver = f"http://127.0.0.1:{found[1]}"
            chrome = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": chrome,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "unhandledPromptBehavior": "ignore",
            }
            made = _ask("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
            page = Page(driver, made["sessionId"])
            try:
                yield page
            finally:
                page("DELETE", "")
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _ask(method: str, address: str, content: Any = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        value = json.load(error)["value"]
        raise RuntimeError(f"{method} {address}: {value['error']}: {value['message']}") from None
