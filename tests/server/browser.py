"""Drives Chromium through its DevTools protocol on a pipe, without a library or a port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.reference.hang import HANG_SECONDS

WAIT = float(HANG_SECONDS)  # seconds until a test gives up; no test waits that long
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
_KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "End": 35}


class Page:
    """A page of a browser. problems: what its console showed as errors."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._rest, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._next()).get("id") != self._number:
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.problems.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(str(answer["params"]["exceptionDetails"]))
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            data = self._read.read1(1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def eval(self, code: str) -> Any:
        """Return the value of an expression."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (code, found)
        return found["result"].get("value")

    def eval_in_frame(self, code: str) -> Any:
        """Return the value of an expression in the only frame, which has a process of its own."""
        [frame] = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "iframe"]
        outer = self._session
        self._session = self.send("Target.attachToTarget", targetId=frame["targetId"], flatten=True)["sessionId"]
        try:
            return self.eval(code)
        finally:
            self._session = outer

    def wait(self, code: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + WAIT
        while not (value := self.eval(code)):
            assert time.monotonic() < end, (code, self.eval("document.body.innerText"), self.problems)
            time.sleep(0.05)
        return value

    def go(self, url: str) -> None:
        """Open an address."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str) -> None:
        """Press and release a key."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": "\r"} if key == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def names(self) -> list[tuple[str, str]]:
        """Return the role and name of each element, as a screen reader gets them."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Run Chromium with an empty profile in a folder."""
    assert CHROMIUM is not None
    (child_in, to_child), (from_child, child_out) = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3 and writes answers to 4; the shell puts the pipes there.
    command = f'exec "$0" "$@" 3<&{child_in} 4>&{child_out}'
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *_FLAGS, f"--user-data-dir={folder}"],
        pass_fds=(child_in, child_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(child_in)
    os.close(child_out)
    try:
        page = Page(from_child, to_child)
        try:
            yield page
        finally:
            page._session = ""
            page.send("Browser.close")
            page._read.close()
            page._write.close()
    finally:
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
