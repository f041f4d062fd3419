"""System calls that a confined child may not make, as a filter program for the kernel.

It may start threads, but no process and no other program; it has no sockets, and signals only
itself. With namespaces most of the rest is out of reach already, so that the filter is a second
line of defence. Refused calls fail with EPERM. Only 64-bit Intel and Arm have a filter.
"""

from __future__ import annotations

import os
import struct

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_REFUSED = {
    "socket": (41, 198), "execve": (59, 221), "execveat": (322, 281), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
}  # fmt: skip
_MODES = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
"""Calls that change a file without opening it to write: Landlock lets them pass."""
_ON_SELF_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
_FORKS = (57, 58)  # fork and vfork, on Intel only
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_NAMESPACES, _THREAD = 0x7E020000, 0x00010000
_FOREIGN_NUMBERS = 0x40000000  # x32 calls, by other numbers
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets into the kernel's struct seccomp_data
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def supported() -> bool:
    """Whether there is a filter for this machine."""
    return os.uname().machine in _MACHINES


def call_filter(pid: int, keep_modes: bool = False) -> bytes:
    """Return the filter for process `pid`, which may send signals only to itself.

    Args:
        keep_modes: refuse to change modes, owners, attributes and times of files.
    """
    which, architecture = _MACHINES[os.uname().machine]

    def step(code: int, value: int, then: int = 0, other: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, other, value)

    refuse, allow = step(_RETURN, _EPERM), step(_RETURN, _ALLOW)
    load_argument = step(_LOAD, _FIRST_ARGUMENT)
    program = step(_LOAD, _ARCHITECTURE) + step(_EQUAL, architecture, 1, 0) + refuse
    program += step(_LOAD, _NUMBER) + step(_AT_LEAST, _FOREIGN_NUMBERS, 0, 1) + refuse
    refused = [*_REFUSED.values(), *(_MODES.values() if keep_modes else ())]
    for number in (numbers[which] for numbers in refused):
        if number is not None:
            program += step(_EQUAL, number, 0, 1) + refuse
    for numbers in _ON_SELF_ONLY.values():  # 0 means the caller, or its own process group
        program += step(_EQUAL, numbers[which], 0, 5) + load_argument
        program += step(_EQUAL, pid, 1, 0) + step(_EQUAL, 0, 0, 1) + allow + refuse
    for number in _FORKS if which == 0 else ():
        program += step(_EQUAL, number, 0, 1) + refuse
    program += step(_EQUAL, _CLONE[which], 0, 5) + load_argument
    program += step(_ANY_BIT, _NEW_NAMESPACES, 1, 0) + step(_ANY_BIT, _THREAD, 1, 0)
    program += refuse + allow
    # clone3 keeps its flags where a filter cannot look; the C library then falls back on clone
    program += step(_EQUAL, _CLONE3[which], 0, 1) + step(_RETURN, _ENOSYS)
    return program + allow
