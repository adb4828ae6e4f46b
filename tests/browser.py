"""A real browser without a screen: opens a page and says what it shows, asks for and complains of.

Chromium is spoken to over a pipe in its DevTools protocol: no driver, no port, no package.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
SECONDS = 60.0
"""The most that one answer may take."""

needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no chromium here: apt-get install chromium"
)


class Browser:
    """One page at a time."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """Since the page was opened."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, width: int, height: int = 900) -> None:
        """Returns once the page and its pictures have loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self._call("Page.navigate", url=url)
        end = time.monotonic() + SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message(end))

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression on the page; a promise is awaited."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self._call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = SECONDS) -> Any:
        """The first value of the expression that is true."""
        end = time.monotonic() + seconds
        while not (found := self.evaluate(script)):
            text = self.evaluate("document.body.innerText")
            assert time.monotonic() < end, f"{script} stays {found}; the page says\n{text}"
            time.sleep(0.1)
        return found

    @property
    def requests(self) -> list[str]:
        """All that the page asked for, but what lies in it."""
        asked = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        found = [event["params"]["request"]["url"] for event in asked]
        return [url for url in found if not url.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings in its console."""
        found = []
        for event in self.events:
            if event["method"] == "Log.entryAdded":
                entry = event["params"]["entry"]
                found.append(f"{entry['level']}: {entry['text']}")
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]["text"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(f"{event['params']['type']}: {event['params']['args']}")
        return found

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._message(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            if "method" in answer:
                self.events.append(answer)

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._reader, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        first, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(first))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, with a fresh profile; gone, with all its processes, afterwards."""
    assert PROGRAM is not None
    there, writer = os.pipe()
    reader, back = os.pipe()
    # Chromium takes the pipe at descriptors 3 and 4, which may be in use here.
    its = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (there, back)]
    shell = ["bash", "-c", f'exec "$@" 3<&{its[0]} 4>&{its[1]}', "bash"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [*shell, PROGRAM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=its,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (*its, there, back):
            os.close(end)
        try:
            yield Browser(reader, writer)
        finally:
            end_group(process)
            for end in (reader, writer):
                os.close(end)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Ends a process that leads a session, and all that it started in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
