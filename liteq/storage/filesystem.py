"""Which filesystem a path is on: liteq refuses those that only pretend to lock.

You stand on floor 1, beside `locks`. On a network filesystem two machines may each be told that they hold the same
lock, and SQLite's WAL needs memory that all its users share. Both fail silently, so a storage asks here before it
creates anything.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

#: As Linux names them. A filesystem in user space is named ``fuse.`` and the name of its program.
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "acfs",
        "afs",
        "auristorfs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncp",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "prl_fs",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "vmhgfs",
        "wekafs",
        "fuse.afp",
        "fuse.blobfuse",
        "fuse.blobfuse2",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.cifs",
        "fuse.curlftpfs",
        "fuse.davfs",
        "fuse.davfs2",
        "fuse.gcsfuse",
        "fuse.geesefs",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.google-drive-ocamlfuse",
        "fuse.gvfsd-fuse",
        "fuse.httpfs",
        "fuse.juicefs",
        "fuse.kio-fuse",
        "fuse.moosefs",
        "fuse.mfs",
        "fuse.mount-s3",
        "fuse.mountpoint-s3",
        "fuse.prl_fsd",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.seaweedfs",
        "fuse.smbnetfs",
        "fuse.sshfs",
        "fuse.vmhgfs-fuse",
        "fuse.wdfs",
    }
)

_MOUNTS = Path("/proc/self/mountinfo")

_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """Where something is mounted, and the type of what is mounted there."""

    point: str
    kind: str


def network_filesystem(path: Path) -> str | None:
    """The type of the network filesystem that ``path`` is on.

    Args:
        path: need not exist; then its nearest directory that does decides.

    Returns:
        The name that Linux gives it, such as ``"nfs4"``; ``None`` on a local filesystem, and where there is no
        ``/proc/self/mountinfo`` to tell: on macOS, the BSDs and Windows, which are not examined.
    """
    kind = filesystem(path)
    return kind if kind in NETWORK_FILESYSTEMS else None


def filesystem(path: Path) -> str | None:
    """The type of the filesystem that ``path`` is on, local or not; ``None`` where nothing tells."""
    try:
        text = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux, or no /proc in this container
        return None
    return filesystem_of(os.path.realpath(path), parse_mounts(text))


def parse_mounts(text: str) -> list[Mount]:
    """Read the format of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)), oldest mount first.

    Space, tab, newline and backslash in a mount point are written as three octal digits. Lines of another shape are
    left out: a newer kernel may add some.
    """
    mounts = []
    for line in text.split("\n"):
        place, separator, source = line.partition(" - ")
        fields = place.split(" ")
        if separator and len(fields) >= 6:
            mounts.append(Mount(_OCTAL.sub(_character, fields[4]), source.split(" ")[0]))
    return mounts


def filesystem_of(path: str, mounts: list[Mount]) -> str | None:
    """The type of the filesystem that an absolute path without symbolic links is on: that of the longest mount point
    above it, and of those mounted on the same point the last. A bind mount has the type of what it shows.
    """
    best = None
    for mount in mounts:
        if _is_above(mount.point, path) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return None if best is None else best.kind


def _is_above(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
