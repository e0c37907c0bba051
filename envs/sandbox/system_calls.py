"""The system calls that a confined interpreter does not get: a seccomp filter that it puts on before it sees a program.

Namespaces and Landlock say which files and machines a process reaches. They leave doors: relatives of TCP that Landlock
does not know, memory that belongs to no process, what root may in a container, large parts of the kernel that Python
has no use for. A filter sees numbers and plain arguments, and nothing behind a pointer: no path.
"""

from __future__ import annotations

import platform
import struct

_DENIED = """
# another process, and what there is of others
fork:57:- vfork:58:- unshare:272:97 setns:308:268 ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271
process_madvise:440:440 process_mrelease:448:448 kcmp:312:272 pidfd_open:434:434 pidfd_getfd:438:438
pidfd_send_signal:424:424
# its share of the machine
sched_setaffinity:203:122 sched_setscheduler:144:119 sched_setparam:142:118 sched_setattr:314:274 setpriority:141:140
ioprio_set:251:30 setrlimit:160:164 prlimit64:302:261 mbind:237:235 set_mempolicy:238:237 get_mempolicy:239:236
set_mempolicy_home_node:450:450 migrate_pages:256:238 move_pages:279:239
# connections: Landlock knows TCP but none of its relatives, a network namespace no virtual machine's host
socket:41:198 connect:42:203 bind:49:200 listen:50:201 accept:43:202 accept4:288:242
# memory that no limit of a process counts
shmget:29:194 shmat:30:196 shmctl:31:195 semget:64:190 semop:65:193 semctl:66:191 semtimedop:220:192 msgget:68:186
msgsnd:69:189 msgrcv:70:188 msgctl:71:187 mq_open:240:180 mq_unlink:241:181 memfd_create:319:279 memfd_secret:447:447
# what Landlock does not govern about files
chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54
utime:132:- utimes:235:- utimensat:280:88 futimesat:261:- setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7
removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16 flock:73:32 sync:162:81 syncfs:306:267 inotify_init:253:-
inotify_init1:294:26 inotify_add_watch:254:27 fanotify_init:300:262 fanotify_mark:301:263 statfs:137:43 fstatfs:138:44
ustat:136:- name_to_handle_at:303:264 open_by_handle_at:304:265 quotactl:179:60 quotactl_fd:443:443
setxattrat:463:463 getxattrat:464:464 listxattrat:465:465 removexattrat:466:466 file_getattr:468:468
file_setattr:469:469 statmount:457:457 listmount:458:458
# ways to ask for a file that sandlock leaves to the kernel, and Python can do without
statx:332:291 faccessat:269:48 creat:85:- mknod:133:- mknodat:259:33 symlinkat:266:36
# what root may in a container, and doors to the kernel that Python does not need
mount:165:40 umount2:166:39 pivot_root:155:41 chroot:161:51 fsopen:430:430 fsconfig:431:431 fsmount:432:432
fspick:433:433 open_tree:428:428 open_tree_attr:467:467 move_mount:429:429 mount_setattr:442:442
swapon:167:224 swapoff:168:225
sethostname:170:161 setdomainname:171:162 settimeofday:164:170 clock_settime:227:112 adjtimex:159:171
clock_adjtime:305:266 bpf:321:280 perf_event_open:298:241 io_uring_setup:425:425 io_uring_enter:426:426
io_uring_register:427:427 io_setup:206:0 userfaultfd:323:282 keyctl:250:219 add_key:248:217 request_key:249:218
syslog:103:116 acct:163:89 personality:135:92 modify_ldt:154:- iopl:172:- ioperm:173:- kexec_load:246:104
kexec_file_load:320:294 init_module:175:105 finit_module:313:273 delete_module:176:106 reboot:169:142 vhangup:153:58
"""
"""Names with their numbers on x86-64 and on 64-bit ARM, which has fewer."""

_OTHERS = {"clone": (56, 220), "clone3": (435, 435), "fcntl": (72, 25), "ioctl": (16, 29)}
"""Calls that are allowed in part."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables, and the kernel's name of the machine in ``linux/audit.h``."""

# Locks and leases on files that others read, signals to whom one likes, who opens them, and how much a pipe holds.
_DENIED_FCNTL = (5, 6, 7, 8, 10, 15, 36, 37, 38, 1024, 1026, 1031)
# Whether it is a terminal, its size, how much can be read, and the flags of a descriptor. Any other may change a file.
_ALLOWED_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Where in what a filter sees; of an argument, the lower half."""
_CLONE_THREAD = 0x00010000

_Step = tuple[int, int, int, int]


def is_supported(machine: str) -> bool:
    """Whether there is a filter for a machine.

    Args:
        machine: As ``platform.machine()`` names it.
    """
    return machine in _MACHINES


def denied_numbers(machine: str) -> list[int]:
    """The calls that a machine knows and that are denied whatever their arguments are.

    Example:
        >>> 57 in denied_numbers("x86_64"), 57 in denied_numbers("aarch64")
        (True, False)
    """
    column = 1 + _MACHINES[machine][0]
    words = [word.split(":") for line in _DENIED.splitlines() if not line.startswith("#") for word in line.split()]
    return [int(word[column]) for word in words if word[column] != "-"]


def confining_filter(machine: str | None = None) -> bytes:
    """The seccomp program for a machine, this one by default.

    It starts threads and no process: the limit on the number of processes does not bind root, also not root of a
    container behind a user namespace.
    """
    column, audit_name = _MACHINES[machine or platform.machine()]
    # Each step: (operation, operand, jump if true, jump if false), jumps counted from the next instruction.
    program: list[_Step] = [(_LOAD, _MACHINE, 0, 0), (_EQUAL, audit_name, 1, 0), (_RETURN, _KILL, 0, 0)]
    # Numbers from 2^30 on are the x32 door to the same calls.
    program += [(_LOAD, _NUMBER, 0, 0), (_AT_LEAST, 0x40000000, 0, 1), (_RETURN, _KILL, 0, 0)]
    for number in denied_numbers(machine or platform.machine()):
        program += [(_EQUAL, number, 0, 1), (_RETURN, _EPERM, 0, 0)]
    clone, clone3, fcntl, ioctl = (numbers[column] for numbers in _OTHERS.values())
    # clone3 hides its flags behind a pointer; told that it does not exist, libc falls back to clone.
    program += [(_EQUAL, clone3, 0, 1), (_RETURN, _ENOSYS, 0, 0)]
    program += _when(clone, _FIRST_ARGUMENT, [(_ANY_BIT, _CLONE_THREAD, 1, 0), (_RETURN, _EPERM, 0, 0)])
    refused = [step for value in _DENIED_FCNTL for step in ((_EQUAL, value, 0, 1), (_RETURN, _EPERM, 0, 0))]
    program += _when(fcntl, _SECOND_ARGUMENT, refused)
    allowed = [step for value in _ALLOWED_IOCTL for step in ((_EQUAL, value, 0, 1), (_RETURN, _ALLOW, 0, 0))]
    program += _when(ioctl, _SECOND_ARGUMENT, [*allowed, (_RETURN, _EPERM, 0, 0)])
    program += [(_RETURN, _ALLOW, 0, 0)]
    return b"".join(struct.pack("HBBI", code, true, false, operand) for code, operand, true, false in program)


def _when(number: int, argument: int, steps: list[_Step]) -> list[_Step]:
    """The steps for one call, which look at one of its arguments; who gets through them is allowed."""
    inner = [(_LOAD, argument, 0, 0), *steps, (_RETURN, _ALLOW, 0, 0)]
    return [(_EQUAL, number, 0, len(inner)), *inner]
