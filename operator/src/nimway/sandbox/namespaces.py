"""Namespaces, mounts and network interfaces through libc: system calls that Python 3.11 lacks.

Owns the bare calls and the one decision they need (a user namespace, or root's own rights). It
must not know what runs in the namespaces; `rootfs` and `init` do.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Final

from nimway.sandbox.errors import HostError

NEW_MOUNT: Final = 0x00020000
NEW_UTS: Final = 0x04000000
NEW_IPC: Final = 0x08000000
NEW_USER: Final = 0x10000000
NEW_PID: Final = 0x20000000
NEW_NET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000

# What statvfs(3) reports -> what mount(2) takes: no suid, dev, exec, atime, diratime; relatime.
_KEPT_FLAGS: Final = {0x2: 0x2, 0x4: 0x4, 0x8: 0x8, 0x400: 0x400, 0x800: 0x800, 0x1000: 0x200000}

_PR_SET_PDEATHSIG: Final = 1
_MNT_DETACH: Final = 2
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_IFF_UP: Final = 0x1

_libc = ctypes.CDLL(None, use_errno=True)

KIND_PATH: Final = "where Docker and kind are at hand, `make kind` runs the same"


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones (unshare(2))."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def join(process: int, kinds: int) -> None:
    """Enter these kinds of namespaces of the process behind a pidfd (setns(2), Linux 5.8)."""
    _check(_libc.setns(ctypes.c_int(process), ctypes.c_int(kinds)), "setns")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def set_hostname(name: str) -> None:
    """Set the host name of this UTS namespace, cut to the kernel's 64 bytes."""
    socket.sethostname(name[:63])


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Attach a file system, or show one again elsewhere; an OSError names the target."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount {target}")


def bind(source: Path | str, target: Path | str) -> None:
    """Show `source`, with everything mounted below it, at `target` as well."""
    mount(str(source), str(target), None, MS_BIND | MS_REC)


def make_read_only(target: str) -> None:
    """Make the mount at `target` read-only; flags it has stay, as a user namespace demands."""
    have = os.statvfs(target).f_flag
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY
    for seen, flag in _KEPT_FLAGS.items():
        flags |= flag if have & seen else 0
    mount("none", target, None, flags)


def pivot_root(new_root: str) -> None:
    """Make `new_root` (a mount) this mount namespace's `/` and drop the old one."""
    os.chdir(new_root)
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def configure_interface(name: str, address: str | None, prefix_bits: int) -> None:
    """Give the interface an IPv4 address (or none) and bring it up, in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if address is not None:
            mask = socket.inet_ntoa(
                struct.pack(">I", (0xFFFFFFFF << (32 - prefix_bits)) & 0xFFFFFFFF)
            )
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, mask)):
                sockaddr = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(sock, request, struct.pack("=16s16s8x", name.encode(), sockaddr))
        request_bytes = struct.pack("=16sH22x", name.encode(), 0)
        flags = struct.unpack_from("=16sH", fcntl.ioctl(sock, _SIOCGIFFLAGS, request_bytes))[1]
        up = struct.pack("=16sH22x", name.encode(), flags | _IFF_UP)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, up)


def enter_sandbox() -> None:
    """Move this process into the sandbox's namespaces; children it forks get the new PID space.

    Root keeps its own rights where it may; everybody else, and a root that may not, gets a user
    namespace in which it is root.

    Raises:
        HostError: this machine does not allow it.
    """
    wanted = NEW_NET | NEW_MOUNT | NEW_PID | NEW_IPC | NEW_UTS
    if os.geteuid() == 0:
        try:
            unshare(wanted)
        except PermissionError:
            pass
        else:
            mount("none", "/", None, MS_REC | MS_PRIVATE)
            return
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(NEW_USER | wanted)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        mount("none", "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        raise HostError(why_not_allowed(error)) from error


def why_not_allowed(error: OSError) -> str:
    """Say in one sentence why the kernel refused the namespaces, and what helps."""
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if restricted.exists() and restricted.read_text().strip() == "1":
        help_text = (
            "AppArmor keeps user namespaces from ordinary users here: run it with sudo, or "
            "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
        )
    elif error.errno == errno.ENOSPC:
        help_text = "user.max_user_namespaces is used up or 0: raise it with sysctl, or use sudo"
    else:
        help_text = (
            "the kernel or the container around this shell forbids namespaces: run it with sudo, "
            "outside of the container, or in a privileged one"
        )
    return f"the sandbox cannot start ({error.strerror}): {help_text}; {KIND_PATH}"
