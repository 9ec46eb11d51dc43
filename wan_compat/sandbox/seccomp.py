"""Which system calls the worker may make: an allow-list at entry, and a narrower one before the first model byte.

    install_entry_filter   what torch, Python and ZeroMQ need; threads but no processes; AF_UNIX but no other family
    seal                   stacked on top once the worker's channel stands: no new connection of any kind

A full Wan run needs 47 calls; about 150 are allowed, so that another libc or torch does not fail on a harmless one.
What is not listed answers EPERM, which libraries handle; a call that only an attacker makes ends the process, either
killed by the filter itself, or, with a listener (`seccomp_notify.py`), held by the kernel until the supervisor has read
its name and killed the process. In neither way is it ever executed.

    ENOSYS    clone3, openat2   their arguments are behind a pointer, which a filter cannot follow; glibc uses clone
    ENOSYS    io_uring_setup    libraries probe for it and go on without
    allowed   sched_setscheduler   libzmq aborts when it is denied; RLIMIT_RTPRIO leaves nothing to gain by it

Notes that cost time to find:

- Other ABIs would walk around the numbers: x32 (bit 30 of the number) and int 0x80 (another architecture value) kill.
- A filter reads registers, not memory; rules below look only at values and flags, at all 64 bits where pointers matter.
- mmap of shared anonymous memory is refused: RLIMIT_DATA, the only cap of tier B, does not count it.
- W^X is impossible with torch on a CPU (oneDNN writes the code it runs), so mprotect is not restricted.
- Scheduling calls carry thread ids, which a filter cannot tell from another process's: without a pid namespace (tier C)
  a worker can change the processor affinity of processes of its own uid.
- As pid 1, abort() shows as SIGSEGV: the kernel ignores the default action of SIGABRT for an init process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct

from wan_compat.sandbox import bpf, libc
from wan_compat.sandbox.failure import entering
from wan_compat.sandbox.spec import Layer
from wan_compat.sandbox.syscalls import Architecture, architecture

_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1  # to all threads at once, or not at all
_FLAG_NEW_LISTENER = 8


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# By purpose: files; waiting; memory; threads and one's own scheduling; time; signals to oneself; who am I; sockets that
# are already open (making one has a rule of its own).
ALLOWED: frozenset[str] = _names("""
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range fstat newfstatat
    stat lstat statx fstatfs statfs access faccessat faccessat2 openat open readlink readlinkat getdents64 getcwd
    chdir fchdir mkdir mkdirat unlink unlinkat rmdir rename renameat renameat2 symlink symlinkat ftruncate truncate
    fallocate fsync fdatasync fadvise64 umask fchmod chmod fchmodat utimensat flock dup dup2 dup3 pipe pipe2
    copy_file_range sendfile

    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2

    munmap mprotect mremap madvise brk msync mincore membarrier set_mempolicy get_mempolicy mbind mseal

    futex futex_waitv set_robust_list get_robust_list rseq sched_yield sched_getaffinity sched_setaffinity
    sched_getattr sched_setscheduler sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
    getcpu set_tid_address arch_prctl exit exit_group

    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getitimer setitimer timer_create
    timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime times
    getrusage

    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack restart_syscall
    pause

    getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid uname
    sysinfo getrlimit getrandom getpriority capget

    connect sendto recvfrom sendmsg recvmsg getsockname getpeername getsockopt setsockopt shutdown bind listen accept
    accept4
""")

ABSENT: frozenset[str] = frozenset({"clone3", "openat2", "io_uring_setup"})

# Never made by a library that was asked to run a model, not even as a probe.
FLAGRANT: frozenset[str] = _names("""
    ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise process_mrelease perf_event_open
    userfaultfd io_uring_enter io_uring_register add_key keyctl request_key pivot_root chroot umount2 unshare setns
    open_tree open_tree_attr move_mount mount_setattr fsopen fsconfig fsmount fspick init_module finit_module
    delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd syslog vhangup
    open_by_handle_at name_to_handle_at memfd_secret iopl ioperm modify_ldt uselib ustat settimeofday clock_settime
    adjtimex clock_adjtime sethostname setdomainname
""")

# And `seccomp` itself, which has then done its work.
SEALED: frozenset[str] = frozenset(
    {"socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "seccomp"}
)

_AF_UNIX = 1

# What pthread_create asks for (glibc 0x3d0f00; musl adds the ignored CLONE_DETACHED, 0x400000).
_THREAD_FLAGS = 0x00010F00  # VM, FS, FILES, SIGHAND, THREAD
_NAMESPACE_FLAGS = 0x7E020000  # every CLONE_NEW flag that clone knows
_OTHER_FORBIDDEN_FLAGS = 0x0080A000  # UNTRACED, PARENT, PTRACE: only a process maker or a tracer sets them

_PRCTL_READS_AND_NAMES = (
    2,  # GET_PDEATHSIG
    3,  # GET_DUMPABLE
    15,  # SET_NAME: threads are named
    16,  # GET_NAME
    21,  # GET_SECCOMP
    23,  # CAPBSET_READ
    29,  # SET_TIMERSLACK
    30,  # GET_TIMERSLACK
    39,  # GET_NO_NEW_PRIVS
    41,  # SET_THP_DISABLE
    42,  # GET_THP_DISABLE
    0x53564D41,  # SET_VMA: glibc and torch name their mappings
)
_PR_SET_NO_NEW_PRIVS = 38  # can only be set to what it already is, so harmless; `seal` may be called by any libc

_IOCTLS = (0x541B, 0x5421, 0x5450, 0x5451, 0x5401, 0x5413)  # FIONREAD FIONBIO FIONCLEX FIOCLEX TCGETS TIOCGWINSZ

# nvidia.ko's carry the letter F in their second byte; nvidia-uvm.ko's are plain small numbers and two large ones
# (NVIDIA's open-gpu-kernel-modules: nv-ioctl-numbers.h, uvm_ioctl.h, uvm_linux_ioctl.h; gVisor's pkg/abi/nvgpu has the
# list of those that CUDA makes).
_NVIDIA_MAGIC = ord("F")
_UVM_END = 0x80  # numbers below are nvidia-uvm's; on files they are FIBMAP, which needs a capability, and FIGETBSZ
_UVM_INITIALIZE, _UVM_DEINITIALIZE = 0x30000001, 0x30000002

# Not F_SETOWN, F_SETSIG (signals to others), F_NOTIFY, F_SETPIPE_SZ (kernel memory), F_ADD_SEALS, leases.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)

_MAP_SHARED_ANONYMOUS = 0x21


def install_entry_filter(*, allow_gpu: bool = False, notify: bool = False) -> int:
    """Install the allow-list for this process and all its later threads. Needs no_new_privs.

    Args:
        allow_gpu: Let the NVIDIA driver's ioctls through besides, by their numbers. A filter cannot see which device a
            descriptor belongs to, nor into what an ioctl points at: the view decides which devices exist, and what the
            driver makes of the call is the driver's.
        notify: Hold flagrant calls for a listener, where the kernel can; they kill where it cannot.

    Returns:
        The listener, close-on-exec, or -1 where flagrant calls kill. It must have left this process before anything
        hostile runs in it: whoever holds it may let a held call through.

    Raises:
        SandboxEntryFailed: The kernel refused the filter.
    """
    with entering(Layer.SECCOMP, "installing the system call filter"):
        assemble = functools.partial(entry_filter, architecture(), os.getpid(), allow_gpu=allow_gpu)
        if notify:
            # EINVAL before Linux 5.0; EBUSY inside a container whose manager listens itself: one listener per process.
            with contextlib.suppress(OSError):
                return _install(assemble(flagrant=bpf.NOTIFY), _FLAG_NEW_LISTENER)
        _install(assemble(flagrant=bpf.KILL_PROCESS), 0)
        return -1


def seal() -> None:
    """Forbid new connections, to every thread at once: called after the channel stands, before any model byte.

    Raises:
        SandboxEntryFailed: The filter could not be put on every thread.
    """
    with entering(Layer.SECCOMP, "sealing the worker's sockets"):
        result = _install(seal_filter(architecture()), _FLAG_TSYNC)
        if result != 0:
            raise OSError(errno.EBUSY, f"thread {result} could not be brought under the seal")


@functools.cache
def entry_filter(
    machine: Architecture, own_pid: int, *, allow_gpu: bool = False, flagrant: int = bpf.KILL_PROCESS
) -> bytes:
    """Assemble the filter of the entry; plain bytes, so that a test can read it on any machine.

    Cached, so that a launcher that asks for it once does not pay for it again in each of its children.

    Args:
        flagrant: What a flagrant call is answered: KILL_PROCESS, or NOTIFY. Calls of another ABI are killed in any
            case: their numbers have no names here.
    """
    allow, refuse = bpf.ALLOW, bpf.answer_errno(errno.EPERM)
    no_family = bpf.answer_errno(errno.EAFNOSUPPORT)
    rules: dict[str, bpf.Program] = {
        "socket": bpf.one_of(0, (_AF_UNIX,), allow, no_family),
        "socketpair": bpf.one_of(0, (_AF_UNIX,), allow, no_family),
        "clone": _threads_only(refuse, flagrant),
        "prctl": bpf.one_of(0, (*_PRCTL_READS_AND_NAMES, _PR_SET_NO_NEW_PRIVS), allow, refuse),
        "ioctl": [
            *(_of_nvidia(allow) if allow_gpu else []),
            *bpf.one_of(1, _IOCTLS, allow, bpf.answer_errno(errno.ENOTTY)),
        ],
        "fcntl": bpf.one_of(1, _FCNTLS, allow, refuse),
        # Signals to one's own threads only: in a pid namespace that is pid 1, without one it must still be true.
        "kill": bpf.one_of(0, (own_pid,), allow, refuse),
        "tgkill": bpf.one_of(0, (own_pid,), allow, refuse),
        "prlimit64": bpf.is_zero(2, allow, refuse),  # read, never set
        "mmap": bpf.all_bits(3, _MAP_SHARED_ANONYMOUS, refuse, allow),
        "seccomp": _more_filters_only(allow, refuse),
    }
    program = _preamble(machine)
    for name, rule in rules.items():
        if name in machine.numbers:
            program += bpf.when_call(machine.numbers[name], rule)
    for names, answer in (
        (ALLOWED, allow),
        (ABSENT, bpf.answer_errno(errno.ENOSYS)),
        (FLAGRANT, flagrant),
    ):
        for number in sorted(machine.numbers[name] for name in names if name in machine.numbers):
            program += bpf.when_call(number, [bpf.give(answer)])
    program.append(bpf.give(refuse))
    return bpf.assemble(program)


def install_exec_filter(pointers: tuple[int, int, int]) -> None:
    """Install the filter of a helper program (`confined_exec`): no sockets at all, and one execve.

    Args:
        pointers: The addresses of the path, arguments and environment that the one permitted execve will be given.

    Raises:
        SandboxEntryFailed: The kernel refused the filter.
    """
    with entering(Layer.SECCOMP, "installing the helper's system call filter"):
        _install(exec_filter(architecture(), os.getpid(), pointers), 0)


def exec_filter(machine: Architecture, own_pid: int, pointers: tuple[int, int, int]) -> bytes:
    """Assemble the filter of a helper program.

    A filter cannot count, so "once" is said by the three pointers: after the execve the address space is another one.
    Code that has taken the helper over could map the same addresses again; what it could then execute is left to
    Landlock, which permits the helper's own file only.
    """
    allow, refuse = bpf.ALLOW, bpf.answer_errno(errno.EPERM)
    execve: bpf.Program = []
    for argument, pointer in enumerate(pointers):
        for load, half in ((bpf.load_low, pointer & 0xFFFFFFFF), (bpf.load_high, pointer >> 32)):
            execve += [load(argument), bpf.instruction(bpf.JUMP_EQUAL, half, 1, 0), bpf.give(refuse)]
    program = _preamble(machine)
    program += bpf.when_call(machine.numbers["execve"], [*execve, bpf.give(allow)])
    for number in sorted(machine.numbers[name] for name in SEALED if name in machine.numbers):
        program += bpf.when_call(number, [bpf.give(refuse)])
    return bpf.assemble(program) + entry_filter(machine, own_pid)


def seal_filter(machine: Architecture) -> bytes:
    """Assemble the second filter. The kernel runs both and takes the stricter answer."""
    program = _preamble(machine)
    for number in sorted(machine.numbers[name] for name in SEALED if name in machine.numbers):
        program += bpf.when_call(number, [bpf.give(bpf.answer_errno(errno.EPERM))])
    program.append(bpf.give(bpf.ALLOW))
    return bpf.assemble(program)


def _preamble(machine: Architecture) -> bpf.Program:
    program = [
        bpf.load_architecture(),
        bpf.instruction(bpf.JUMP_EQUAL, machine.audit, 1, 0),
        bpf.give(bpf.KILL_PROCESS),
        bpf.load_number(),
    ]
    if machine.name == "x86_64":
        # x32 calls carry bit 30 under the same architecture value (Documentation/userspace-api/seccomp_filter.rst).
        program += [bpf.instruction(bpf.JUMP_AT_LEAST, 0x40000000, 0, 1), bpf.give(bpf.KILL_PROCESS)]
    return program


def _threads_only(refuse: int, flagrant: int) -> bpf.Program:
    return [
        bpf.load_low(0),
        bpf.instruction(bpf.JUMP_IF_BITS, _NAMESPACE_FLAGS, 0, 1),
        bpf.give(flagrant),
        bpf.instruction(bpf.JUMP_IF_BITS, _OTHER_FORBIDDEN_FLAGS, 0, 1),
        bpf.give(refuse),
        bpf.instruction(bpf.AND, _THREAD_FLAGS),
        bpf.instruction(bpf.JUMP_EQUAL, _THREAD_FLAGS, 0, 1),
        bpf.give(bpf.ALLOW),
        bpf.give(refuse),
    ]


def _of_nvidia(allow: int) -> bpf.Program:
    """The head of a rule: the driver's two ways of numbering its ioctls, and no other device's."""
    return [
        bpf.load_low(1),
        bpf.instruction(bpf.JUMP_AT_LEAST, _UVM_END, 1, 0),
        bpf.give(allow),
        bpf.instruction(bpf.JUMP_EQUAL, _UVM_INITIALIZE, 0, 1),
        bpf.give(allow),
        bpf.instruction(bpf.JUMP_EQUAL, _UVM_DEINITIALIZE, 0, 1),
        bpf.give(allow),
        bpf.instruction(bpf.AND, 0xFF00),
        bpf.instruction(bpf.JUMP_EQUAL, _NVIDIA_MAGIC << 8, 0, 1),
        bpf.give(allow),
    ]


def _more_filters_only(allow: int, refuse: int) -> bpf.Program:
    # Filters only ever narrow, so adding one is harmless, and `seal` does. Listeners and the rest stay out of reach.
    return [
        bpf.load_low(0),
        bpf.instruction(bpf.JUMP_EQUAL, _SET_MODE_FILTER, 1, 0),
        bpf.give(refuse),
        *bpf.one_of(1, (0, _FLAG_TSYNC), allow, refuse),
    ]


def _install(program: bytes, flags: int) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit length, padding, a pointer.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    return libc.call("seccomp", _SET_MODE_FILTER, flags, ctypes.create_string_buffer(header, len(header)))
