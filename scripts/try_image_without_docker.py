#!/usr/bin/env python3
"""Start an image of buildah's as an engine would, and check what it promises: `try_image_without_docker.py [TAG]`.

The process gets a process namespace, in which it is number 1, a mount namespace with a root that cannot be written to,
the image's user, environment, entry point and command, and the host's network. Needs root and the image that
build_image_without_docker.sh made.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 60.0
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "ld", "make", "cmake", "ninja", "nvcc", "pip")
# $1 is the image's root, $2 the models' folder, the rest the command.
ENTER = """set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount --bind "$2" "$1/app/models"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t tmpfs -o mode=0775,uid=10001,gid=0 tmpfs "$1/app/cache"
mount -o remount,bind,ro "$1"
root=$1
shift 2
exec chroot --userspec="$USERSPEC" "$root" "$@"
"""


@dataclass(slots=True)
class Image:
    """What the image says, and where its files are."""

    config: dict[str, Any]
    root: Path
    models: Path
    port: int
    failed: list[str] = field(default_factory=list)

    def check(self, what: str, holds: bool, saw: object = "") -> None:
        """Print one line and remember what does not hold."""
        print(f"{'ok    ' if holds else 'FAILED'} {what}{f': {saw}' if saw != '' else ''}", flush=True)
        if not holds:
            self.failed.append(what)

    def popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Run a command as number 1 of a namespace of its own, as the image's user and in its environment."""
        variables = [*self.config["Env"], f"LLM_PORT={self.port}"]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
        inside = ["env", "--ignore-environment", f"--chdir={self.config['WorkingDir']}", *variables, *command]
        environment = {**os.environ, "USERSPEC": self.config["User"]}
        return subprocess.Popen([*enter, str(self.root), str(self.models), *inside], env=environment)

    def health(self) -> int:
        """Return the exit code of the image's own health check."""
        return self.popen(self.config["Healthcheck"]["Test"][1:]).wait()


def main() -> int:
    """Return 0 if all holds, else 1."""
    tag = sys.argv[1] if len(sys.argv) > 1 else "llm-local:cpu"
    os.environ.setdefault("STORAGE_DRIVER", "vfs")
    inspected = json.loads(buildah("inspect", "--type", "image", tag))
    container = buildah("from", tag)
    models = Path(tempfile.mkdtemp())
    try:
        root = Path(buildah("mount", container))
        shutil.chown(models, 10001, 0)
        image = Image(inspected["Docker"]["config"], root, models, free_port())
        check_files(image)
        check_commands(image)
        check_server(image)
        print(f"size: {buildah('images', '--format', '{{.Size}}', tag)}")
    finally:
        buildah("rm", container)
        shutil.rmtree(models)
    return 1 if image.failed else 0


def buildah(*arguments: str) -> str:
    """Return what it prints."""
    return subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def check_files(image: Image) -> None:
    """What is in the image, and what is not."""
    found = [tool for tool in COMPILERS for folder in image.config["Env"][0].split("=")[1].split(":")
             if (image.root / folder.lstrip("/") / tool).exists()]  # fmt: skip
    image.check("no compiler and no pip", not found, ", ".join(found))
    image.check(
        "the user is a number, not root", not image.config["User"].startswith(("0", "root")), image.config["User"]
    )
    image.check("models are a volume", "/app/models" in image.config["Volumes"])


def check_commands(image: Image) -> None:
    """Flags and commands after the image's name."""
    entry = image.config["Entrypoint"]
    image.check("another command", image.popen([*entry, "--version"]).wait() == 0)
    code = image.popen([*entry, "--model", "/no/such.gguf"]).wait()
    image.check("flags alone are for serve; a mistake is exit 2", code == 2, code)


def check_server(image: Image) -> None:
    """From the first health check to the exit code after SIGTERM."""
    image.check("the health check before the start is 1", image.health() == 1)
    began = time.monotonic()
    server = image.popen([*image.config["Entrypoint"], *image.config["Cmd"]])
    try:
        ready = wait_for(lambda: image.health() == 0, server)
        image.check(
            "the health check is 0 when it is ready", ready, f"{time.monotonic() - began:.1f} s after the start"
        )
        status = dict(line.split(":\t", 1) for line in (process_1(server) / "status").read_text().splitlines())
        image.check("it runs as the image's user", status["Uid"].split() == ["10001"] * 4, status["Uid"].split()[0])
        image.check("it is process 1", status["NSpid"].split()[-1] == "1", status["Name"])
        image.check("it answers", bool(reply := chat(image.port)), reply)
        began = time.monotonic()
        os.kill(int(process_1(server).name), signal.SIGTERM)
        code = server.wait(STOP_TIMEOUT_S)
        image.check("SIGTERM ends it with 0", code == 0, f"{code} after {time.monotonic() - began:.1f} s")
        check_early_stop(image)
    finally:
        end(server)


def check_early_stop(image: Image) -> None:
    """A process 1 without a handler of its own does not even notice SIGTERM."""
    server = image.popen([*image.config["Entrypoint"], *image.config["Cmd"]])
    try:
        wait_for(lambda: has_child(server) and b"llm_local" in (process_1(server) / "cmdline").read_bytes(), server)
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(int(process_1(server).name), signal.SIGTERM)
        code = server.wait(STOP_TIMEOUT_S)
        image.check(
            "SIGTERM at the start ends it, too (with 0 once it listens)",
            code in (0, 128 + signal.SIGTERM),
            f"{code} after {time.monotonic() - began:.1f} s",
        )
    finally:
        end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    """Kill what still runs: number 1 takes its namespace with it, unshare alone does not."""
    if server.poll() is None:
        os.kill(int(process_1(server).name) if has_child(server) else server.pid, signal.SIGKILL)
        server.wait()


def wait_for(true: Callable[[], bool], server: subprocess.Popen[bytes]) -> bool:
    """Ask every half second until it is so, the server ended, or time is over."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        if true():
            return True
        time.sleep(0.5)
    return False


def has_child(server: subprocess.Popen[bytes]) -> bool:
    """Whether unshare has started number 1 already."""
    return bool(children(server))


def process_1(server: subprocess.Popen[bytes]) -> Path:
    """Return /proc's folder of the process that is number 1 inside; unshare is its parent."""
    return Path("/proc") / children(server)[0]


def children(server: subprocess.Popen[bytes]) -> list[str]:
    """Return the numbers of its child processes."""
    return Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()


def chat(port: int) -> str:
    """Return an answer of the served model."""
    body = json.dumps({"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 24})
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    sys.exit(main())
