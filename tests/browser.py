"""A headless Chromium, driven through its DevTools protocol over two pipes: no package is needed for that."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SECONDS = 60


class Browser:
    """One page of a headless Chromium. `problems`: what its console has said of errors and violations so far.

    Raises OSError where Chromium does not start, or does not answer.
    """

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        pipes = [*os.pipe(), *os.pipe()]
        commands, self.sending, self.receiving, answers = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in pipes)
        for end in pipes:
            os.close(end)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        self.process = subprocess.Popen(
            [PROGRAM, *arguments, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),  # where Chromium looks for the pipes
            preexec_fn=lambda: (os.dup2(commands, 3), os.dup2(answers, 4)),
        )
        os.close(commands)
        os.close(answers)
        self.number, self.session, self.unread = 0, "", b""
        self.problems: list[dict[str, Any]] = []
        self.events: list[str] = []
        try:
            targets = self.call("Target.getTargets")["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.sending)
        os.close(self.receiving)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its result."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": parameters, **session}
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message; what it says of problems is kept."""
        while b"\0" not in self.unread:
            if not select.select([self.receiving], [], [], SECONDS)[0]:
                raise TimeoutError("Chromium does not answer")
            block = os.read(self.receiving, 2**20)
            if not block:
                raise ConnectionError("Chromium has ended")
            self.unread += block
        text, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(text)
        method, parameters = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and parameters["type"] == "error"
        ):
            self.problems.append(parameters)
        if method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"])
        self.events.append(method)
        return message

    def open(self, file: Path, width: int = 1200, dark: bool = False) -> None:
        """Open a file and wait until it is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.receive()

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def move_to(self, selector: str, share: float) -> None:
        """Move the pointer over an element, at a share of its width."""
        self.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y, width, height = self.value(
            f"(r => [r.x, r.y, r.width, r.height])(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + share * width, y=y + height / 2)

    def click(self, selector: str, share: float = 0.5) -> None:
        """Click on an element, at a share of its width."""
        self.move_to(selector, share)
        x, y, width, height = self.value(
            f"(r => [r.x, r.y, r.width, r.height])(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            position = {"x": x + share * width, "y": y + height / 2}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **position)

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """Write a picture of the page: all of it, or what is seen."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))
