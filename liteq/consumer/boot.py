"""Which boot of the machine this is: for schedules that run once at each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_LINUX = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """A text that is another one after each boot, and the same for every program until then.

    In a container it is that of the machine around it. Where the system does not tell, it is another one for each
    consumer: what is to run once at each boot then runs at each start of a consumer.
    """
    try:
        known = _told_by_macos() if sys.platform == "darwin" else _LINUX.read_text().strip()
    except OSError:
        known = ""
    return known or f"start {os.urandom(16).hex()}"


def _told_by_macos() -> str:
    import subprocess  # not at the start of every consumer

    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except subprocess.SubprocessError:
        return ""
