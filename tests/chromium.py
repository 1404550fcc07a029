"""A headless Chromium for the tests, driven over its debugging pipe: pages, scripts, and what the console says."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    # The map needs WebGL, which Chromium draws without a graphics card where it is told to.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)
SECONDS = 60.0
"""Time that the browser has for anything; a busy machine is slow."""


class Chromium:
    """One browser with one tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._waiting = b""
        self._number = 0
        self.complaints: list[str] = []
        """Errors and warnings of the console, uncaught exceptions, and what the content policy refused."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=address)
        self.until(f"document.readyState === 'complete' && location.href !== 'about:blank' && {len(address)} > 0")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page; promises are awaited."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self._is_true(script):
            assert time.monotonic() < end, f"{script} did not become true; {self.complaints}"
            time.sleep(0.1)

    def _is_true(self, script: str) -> bool:
        try:
            return bool(self.run(script))
        except AssertionError as error:
            # The page was left while it was asked.
            if "Inspected target navigated" not in str(error):
                raise
            return False

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the page in pixels, and the light or dark theme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def drag(self, *places: tuple[float, float], shift: bool = False) -> None:
        """Press the mouse at the first place, move to the others (CSS pixels) and release; one place is a click."""
        held = {"button": "left", "clickCount": 1, "modifiers": 8 if shift else 0}
        x, y = places[0]
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self._call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **held)
        for x, y in places[1:]:
            self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, **held)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **held)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, each by its name in the browser (`Tab`, `Enter`, `j`)."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowUp": 38}
        for key in keys:
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            code = codes.get(key, ord(key[0].upper()))
            self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def picture(self) -> str:
        """Return the page as PNG in base64."""
        return str(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            found = self._read(end)
            self._note(found)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 16)
            assert piece, "the browser has ended"
            self._waiting += piece
        message, _, self._waiting = self._waiting.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        content = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(content["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])
            # How the browser itself shows what WebGL has drawn without a graphics card.
            self.complaints = [text for text in self.complaints if "GPU stall due to ReadPixels" not in text]
        if message.get("method") == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(content["args"]))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Start a browser with a profile of its own; the test is skipped where none is installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser is installed ({', '.join(PROGRAMS)})")
    read_by_browser, to_browser = os.pipe()
    from_browser, written_by_browser = os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    shell = f'exec "$0" "$@" 3<&{read_by_browser} 4>&{written_by_browser}'
    command = ["bash", "-c", shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(read_by_browser, written_by_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(read_by_browser)
    os.close(written_by_browser)
    try:
        yield Chromium(to_browser, from_browser)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to_browser)
        os.close(from_browser)
