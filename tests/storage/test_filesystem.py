"""Which filesystem a path is on, from what Linux says of its mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from liteq.storage import filesystem
from liteq.storage.filesystem import Mount, filesystem_of, network_filesystem, parse_mounts

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 27 0:40 / /home rw,relatime shared:2 master:3 - nfs4 server:/export/home rw,vers=4.2,addr=10.0.0.1
31 30 254:0 /srv/local /home/ada/local rw,relatime - ext4 /dev/vda rw
32 27 0:41 / /mnt/My\040Share\011\134\012end rw - cifs //server/share rw
33 27 0:42 / /mnt/photos rw,nosuid - fuse.sshfs me@host:/ rw,user_id=1000
34 27 0:43 / /mnt/disk rw,nosuid - fuseblk /dev/sdb1 rw
35 27 0:44 / /data rw - autofs systemd-1 rw,fd=29
36 35 0:45 / /data rw - nfs server:/data rw
37 27 0:46 / /c rw - 9p C:\134 rw,dirsync,aname=drvfs
38 27 0:47 / /opt rw - nfs server:/opt rw
39 27 254:1 / /opt rw - xfs /dev/vdb rw
"""


@pytest.fixture(scope="module")
def mounts() -> list[Mount]:
    return parse_mounts(MOUNTS)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/app.db", "ext4"),
        ("/home", "nfs4"),
        ("/home/ada/app.db", "nfs4"),
        ("/homework/app.db", "ext4"),
        ("/home/ada/local/app.db", "ext4"),
        ("/home/ada/locality/app.db", "nfs4"),
        ("/mnt/My Share\t\\\nend/app.db", "cifs"),
        ("/mnt/My Share/app.db", "ext4"),
        ("/mnt/photos/app.db", "fuse.sshfs"),
        ("/mnt/disk/app.db", "fuseblk"),
        ("/data/app.db", "nfs"),
        ("/opt/app.db", "xfs"),
        ("/c/Users/app.db", "9p"),
    ],
)
def test_the_nearest_and_newest_mount_decides(mounts: list[Mount], path: str, kind: str) -> None:
    assert filesystem_of(path, mounts) == kind


def test_a_path_above_all_mounts_is_on_none() -> None:
    assert filesystem_of("/srv/app.db", [Mount("/home", "nfs")]) is None
    assert filesystem_of("/srv/app.db", []) is None


def test_lines_of_another_shape_are_left_out() -> None:
    text = "nonsense\n\n1 2 0:1 / /a rw\n3 4 0:2 / /b rw - ext4 /dev/b rw\n5 6 - ext4\n"
    assert parse_mounts(text) == [Mount("/b", "ext4")]
    assert parse_mounts("") == []


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is said to be an NFS mount, with a local one inside."""
    table = tmp_path / "mountinfo"
    table.write_text(
        f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {tmp_path}/net rw - nfs4 s:/ rw\n"
        f"3 2 0:3 / {tmp_path}/net/tmp rw - tmpfs tmpfs rw\n"
    )
    monkeypatch.setattr(filesystem, "_MOUNTS", table)
    (tmp_path / "net" / "tmp").mkdir(parents=True)
    return tmp_path


def test_a_network_filesystem_is_named(mounted: Path) -> None:
    assert network_filesystem(mounted / "net") == "nfs4"
    assert network_filesystem(mounted / "net" / "not" / "yet" / "app.db") == "nfs4"


def test_a_local_filesystem_is_none_of_them(mounted: Path) -> None:
    assert network_filesystem(mounted / "app.db") is None
    assert network_filesystem(mounted / "net" / "tmp" / "app.db") is None


def test_symbolic_links_and_relative_paths_are_followed(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mounted / "link").symlink_to(mounted / "net")
    monkeypatch.chdir(mounted)
    assert network_filesystem(Path("link/app.db")) == "nfs4"
    assert network_filesystem(Path("net/../app.db")) is None


def test_a_mount_point_that_is_not_unicode_is_found(mounted: Path, tmp_path: Path) -> None:
    table = filesystem._MOUNTS
    table.write_bytes(b"1 0 0:1 / %s/caf\xe9 rw - cifs //s/c rw\n" % bytes(tmp_path))
    assert network_filesystem(tmp_path / "caf\udce9" / "app.db") == "cifs"


def test_a_system_that_does_not_tell_is_not_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "missing")
    assert network_filesystem(tmp_path) is None


def test_this_machine_is_understood() -> None:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    assert filesystem_of("/proc/self", mounts) == "proc"
    assert all(mount.point.startswith("/") and mount.kind for mount in mounts)
