//! Architectures: how the kernel names them to a filter, and their system call numbers.

use std::str::FromStr as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The bit that marks a call of the x32 mode. Source: `asm/unistd.h`.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// Architecture names of the OCI runtime specification that this compiler has no tables for.
///
/// They are known, so that a profile may mention them, and produce no code: a processor of one of
/// our own architectures never reports them.
const FOREIGN: [&str; 18] = [
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

/// An architecture, or a mode of one, with its own system call numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Whatever the filter is compiled for.
    Native,
    /// 32-bit x86.
    X86,
    /// 64-bit x86.
    X86_64,
    /// The x32 mode: 64-bit registers, 32-bit pointers, its own numbers behind a mode bit.
    X32,
    /// 32-bit ARM, EABI.
    Arm,
    /// 64-bit ARM.
    Aarch64,
    /// Known by name only; produces no code.
    Foreign(&'static str),
}

impl Arch {
    /// The architecture this program was built for.
    #[must_use]
    pub const fn native() -> Self {
        if cfg!(target_arch = "x86_64") {
            Self::X86_64
        } else if cfg!(target_arch = "x86") {
            Self::X86
        } else if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else if cfg!(target_arch = "arm") {
            Self::Arm
        } else {
            Self::Foreign("of this build")
        }
    }

    /// The name in the OCI runtime specification.
    #[must_use]
    pub const fn oci_name(self) -> &'static str {
        match self {
            Self::Native => "SCMP_ARCH_NATIVE",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Foreign(name) => name,
        }
    }

    /// The inverse of [`Arch::oci_name`].
    #[must_use]
    pub fn from_oci_name(name: &str) -> Option<Self> {
        let ours = [Self::Native, Self::X86, Self::X86_64, Self::X32, Self::Arm, Self::Aarch64];
        let foreign = FOREIGN.into_iter().map(Self::Foreign);
        ours.into_iter().chain(foreign).find(|arch| arch.oci_name() == name)
    }

    /// The name that a profile's `includes` and `excludes` use.
    pub(crate) const fn profile_name(self) -> &'static str {
        match self {
            Self::X86 => "x86",
            Self::X86_64 => "amd64",
            Self::X32 => "x32",
            Self::Arm => "arm",
            Self::Aarch64 => "arm64",
            Self::Native | Self::Foreign(_) => "",
        }
    }

    /// What the kernel puts into `seccomp_data.arch`; `None` where this compiler has no tables.
    ///
    /// Source: `AUDIT_ARCH_*` in `linux/audit.h`.
    pub(crate) const fn audit(self) -> Option<u32> {
        match self {
            Self::X86 => Some(0x4000_0003),
            Self::X86_64 | Self::X32 => Some(0xc000_003e),
            Self::Arm => Some(0x4000_0028),
            Self::Aarch64 => Some(0xc000_00b7),
            Self::Native | Self::Foreign(_) => None,
        }
    }

    /// Whether arguments are compared by their lower 32 bits only.
    pub(crate) const fn is_narrow(self) -> bool {
        matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// The number of the system call `name`, with the mode bit where the mode has one.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok().map(|s| s.id()),
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|s| s.id()),
            Self::X32 => return x32_number(name),
            Self::Arm => arm_number(name),
            Self::Aarch64 => aarch64_number(name),
            Self::Native | Self::Foreign(_) => None,
        };
        number.and_then(|number| u32::try_from(number).ok())
    }
}

impl Serialize for Arch {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.oci_name())
    }
}

impl<'de> Deserialize<'de> for Arch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        Self::from_oci_name(&name)
            .ok_or_else(|| D::Error::custom(format_args!("unknown architecture {name:?}")))
    }
}

/// The x32 calls whose pointers need translation, numbered from 512 in this order.
///
/// Source: `arch/x86/entry/syscalls/syscall_64.tbl`.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// The calls of 64-bit x86 that the x32 mode does not have. Source: as above.
const X32_WITHOUT: [&str; 14] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
    "uretprobe",
    "uprobe",
    "map_shadow_stack",
];

fn x32_number(name: &str) -> Option<u32> {
    if let Some(index) = X32_OWN.iter().position(|own| *own == name) {
        return u32::try_from(512 + index).ok().map(|number| number | X32_BIT);
    }
    if X32_WITHOUT.contains(&name) {
        return None;
    }
    Arch::X86_64.number(name).map(|number| number | X32_BIT)
}

/// ARM keeps a private range for the C library's needs. Source: `asm/unistd.h` of ARM.
fn arm_number(name: &str) -> Option<i32> {
    const PRIVATE: i32 = 0x0f_0000;
    match name {
        "breakpoint" => Some(PRIVATE + 1),
        "cacheflush" => Some(PRIVATE + 2),
        "usr26" => Some(PRIVATE + 3),
        "usr32" => Some(PRIVATE + 4),
        "set_tls" => Some(PRIVATE + 5),
        "get_tls" => Some(PRIVATE + 6),
        _ => syscalls::arm::Sysno::from_str(name).ok().map(|s| s.id()),
    }
}

/// The generic table numbers the 64-bit time calls 403 to 423 for 32-bit machines only, and has
/// two names for number 79.
fn aarch64_number(name: &str) -> Option<i32> {
    let name = if name == "newfstatat" { "fstatat" } else { name };
    let number = syscalls::aarch64::Sysno::from_str(name).ok()?.id();
    (!(403..=423).contains(&number)).then_some(number)
}

/// How 32-bit x86 reaches a call through a multiplexer: the multiplexer's name, and the value of
/// its first argument. Source: `linux/net.h`, `linux/ipc.h`.
pub(crate) fn multiplexed(arch: Arch, name: &str) -> Option<(&'static str, u64)> {
    if arch != Arch::X86 {
        return None;
    }
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(index) = (1_u64..).zip(SOCKET).find_map(|(n, s)| (s == name).then_some(n)) {
        return Some(("socketcall", index));
    }
    IPC.iter().find(|(call, _)| *call == name).map(|(_, value)| ("ipc", *value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_by_name() {
        let cases = [
            (Arch::X86_64, "read", Some(0)),
            (Arch::X86, "read", Some(3)),
            (Arch::Aarch64, "read", Some(63)),
            (Arch::Arm, "read", Some(3)),
            (Arch::X32, "read", Some(X32_BIT)),
            (Arch::X32, "rt_sigaction", Some(X32_BIT | 512)),
            (Arch::X32, "pwritev2", Some(X32_BIT | 547)),
            (Arch::X32, "uselib", None),
            (Arch::X86, "socketcall", Some(102)),
            (Arch::X86_64, "socketcall", None),
            (Arch::Aarch64, "newfstatat", Some(79)),
            (Arch::Aarch64, "futex_time64", None),
            (Arch::Arm, "set_tls", Some(0x0f_0005)),
            (Arch::X86_64, "no_such_call", None),
            (Arch::Foreign("SCMP_ARCH_PPC"), "read", None),
        ];
        for (arch, name, expected) in cases {
            assert_eq!(arch.number(name), expected, "{name} on {arch:?}");
        }
    }

    #[test]
    fn names_survive_the_way_through_json() {
        for name in FOREIGN.iter().chain(&["SCMP_ARCH_X86", "SCMP_ARCH_NATIVE", "SCMP_ARCH_ARM"]) {
            let arch: Arch = serde_json::from_value((*name).into()).unwrap();
            assert_eq!(serde_json::to_value(arch).unwrap(), *name);
        }
        assert!(serde_json::from_str::<Arch>("\"SCMP_ARCH_Z80\"").is_err());
    }
}
