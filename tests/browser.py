"""A real Chromium without a window, driven over its DevTools protocol."""

import base64
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import websocket
from requirements import require

_PATIENCE_S = 30.0


class Browser:
    """One page. What it logs as an error is kept."""

    def __init__(self, devtools: str) -> None:
        self._socket = websocket.create_connection(devtools, timeout=_PATIENCE_S, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        """Exceptions, `console.error`, and what the browser refused (a policy, a resource that isn't there)."""
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """One command and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(self, url: str, *, width: int = 1280, height: int = 720, dark: bool = False) -> None:
        """Go there with a window of this size; what was logged before is forgotten."""
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.errors.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """What this JavaScript gives there."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The expression's value, as soon as it is neither false nor empty."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came about: {expression}\n{self.evaluate('document.body.innerText')}")

    def find_barriers(self) -> list[str]:
        """What axe finds wrong for people who can't see the page, or not well: each rule with the elements."""
        self.evaluate(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
        found = self.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [f"{one['id']} ({one['impact']}): {[node['html'] for node in one['nodes']]}" for one in found]

    def picture(self, path: Path) -> None:
        """What it shows, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser for the time of the block; skips where there is none."""
    command = [
        *(require("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--remote-debugging-port=0", "about:blank"),
    ]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": profile},  # it leaves files there when it is killed
        ) as process,
    ):
        assert process.stderr is not None
        try:
            address = next(found[1] for line in process.stderr if (found := re.search(r"ws://([^/]+)/devtools", line)))
            with urllib.request.urlopen(f"http://{address}/json/list", timeout=_PATIENCE_S) as answer:
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            browser = Browser(pages[0]["webSocketDebuggerUrl"])
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.kill()
