//! The names that every container may call, by what they are for.
//!
//! The set is the reference engine's; names that an architecture does not have are skipped when the
//! filter is compiled. Lists are white-space separated.

/// Clocks, timers and sleeping.
const TIME: &str = "\
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer \
    gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create \
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times";

/// Who the process is: credentials, sessions, groups, capabilities.
const IDENTITY: &str = "\
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getpgid getpgrp getpid getppid getresgid getresgid32 getresuid getresuid32 getsid gettid \
    getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
    setgroups32 setpgid setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
    setreuid setreuid32 setsid setuid setuid32 umask";

/// Sockets, except `socket` itself, which is decided by address family.
const NETWORK: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom \
    recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown \
    socketcall socketpair";

/// System V and POSIX message passing, semaphores and shared memory.
const IPC: &str = "\
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
    semtimedop_time64 shmat shmctl shmdt shmget";

/// Sending, blocking and waiting for signals.
const SIGNALS: &str = "\
    kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn tgkill tkill";

/// Processor time, priorities and limits.
const SCHEDULING: &str = "\
    getcpu getpriority getrlimit getrusage ioprio_get ioprio_set membarrier prlimit64 rseq \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    setpriority setrlimit ugetrlimit";

/// Address space.
const MEMORY: &str = "\
    brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall \
    mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free \
    pkey_mprotect process_mrelease remap_file_pages";

/// Life and death of processes and threads, and their futexes.
const PROCESSES: &str = "\
    execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake get_robust_list get_thread_area landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self pidfd_open prctl seccomp set_robust_list \
    set_thread_area set_tid_address uretprobe vfork wait4 waitid waitpid";

/// Event loops and asynchronous input and output.
const WAITING: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64 \
    select";

/// Extended attributes.
const ATTRIBUTES: &str = "\
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr \
    listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr \
    setxattrat";

/// Names, owners, modes and times of files.
const METADATA: &str = "\
    access chmod chown chown32 faccessat faccessat2 fchmod fchmodat fchmodat2 fchown \
    fchown32 fchownat fstat fstat64 fstatat64 fstatfs fstatfs64 ftruncate ftruncate64 \
    futimesat getdents getdents64 lchown lchown32 link linkat listmount lstat lstat64 mkdir \
    mkdirat mknod mknodat name_to_handle_at newfstatat readlink readlinkat rename renameat \
    renameat2 rmdir stat stat64 statfs statfs64 statmount statx symlink symlinkat truncate \
    truncate64 unlink unlinkat utime utimensat utimensat_time64 utimes";

/// Opening, reading, writing and closing descriptors.
const FILES: &str = "\
    _llseek cachestat chdir close close_range copy_file_range creat dup dup2 dup3 fadvise64 \
    fadvise64_64 fallocate fchdir fcntl fcntl64 fdatasync flock fsync getcwd ioctl lseek \
    open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read \
    readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee vmsplice \
    write writev";

/// Facts about the machine.
const SYSTEM: &str = "\
    getrandom riscv_hwprobe sysinfo uname";

/// Every list of names that is allowed without conditions.
pub(crate) const ALWAYS: [&str; 13] = [
    TIME, IDENTITY, NETWORK, IPC, SIGNALS, SCHEDULING, MEMORY, PROCESSES, WAITING, ATTRIBUTES,
    METADATA, FILES, SYSTEM,
];
