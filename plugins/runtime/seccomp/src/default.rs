//! The default profile: the reference engine's decisions.

use crate::{
    arch::Arch,
    filter::{Action, Arg, Operator},
    names,
    profile::{ArchModes, Condition, KernelVersion, Profile, Rule},
};

/// `EPERM`. Source: errno(3).
const EPERM: u32 = 1;
/// `ENOSYS`. Source: errno(3).
pub(crate) const ENOSYS: u32 = 38;

/// Address families that reach outside a container's network namespace. Source: `linux/socket.h`.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// The clone(2) flags that make a namespace, all but the time namespace's, which shares its bit
/// with the exit signal: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACE: u64 = 0x7e02_0000;

/// The personalities a container may ask for: plain Linux, `PER_LINUX32`, each with and without
/// `UNAME26`, and the query. Source: personality(2).
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

const S390: [&str; 2] = ["s390", "s390x"];

/// Calls that a capability unlocks.
const UNLOCKED: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    (
        "CAP_SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Calls that only some architectures have, or need.
const BY_ARCH: [(&[&str], &str); 6] = [
    (&["ppc64le"], "sync_file_range2 swapcontext"),
    (
        &["arm", "arm64"],
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
    (&["amd64", "x32"], "arch_prctl"),
    (&["amd64", "x32", "x86"], "modify_ldt"),
    (&S390, "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (&["riscv64"], "riscv_flush_icache"),
];

/// The profile of a container that asks for none: what is not listed fails with `EPERM`.
#[must_use]
pub fn default_profile() -> Profile {
    let mut rules: Vec<Rule> = names::ALWAYS.into_iter().map(allow).collect();

    // Before 4.8 a tracer could change a call after the filter had let it pass.
    rules.push(allow("process_vm_readv process_vm_writev ptrace").since(4, 8));

    rules.push(allow("socket").if_arg(0, Operator::Less, AF_ALG));
    rules.push(allow("socket").if_arg(0, Operator::Equal, AF_ALG + 1));
    rules.push(allow("socket").if_arg(0, Operator::Greater, AF_VSOCK));
    rules.extend(PERSONALITIES.map(|p| allow("personality").if_arg(0, Operator::Equal, p)));

    rules.extend(BY_ARCH.map(|(arches, calls)| allow(calls).on(arches)));
    rules.extend(UNLOCKED.map(|(cap, calls)| allow(calls).with(cap)));

    // Threads and processes, yes; namespaces, no. clone3's flags are in memory, where a filter
    // cannot look: "not implemented" makes the C library fall back to clone.
    let no_namespaces = |index| allow("clone").if_arg(index, Operator::MaskedEqual, NEW_NAMESPACE);
    rules.push(no_namespaces(0).without("CAP_SYS_ADMIN").not_on(&S390));
    rules.push(no_namespaces(1).without("CAP_SYS_ADMIN").on(&S390));
    let mut clone3 = allow("clone3").without("CAP_SYS_ADMIN");
    (clone3.action, clone3.errno_ret) = (Action::Errno, Some(ENOSYS));
    rules.push(clone3);

    Profile {
        default_action: Some(Action::Errno),
        default_errno_ret: Some(EPERM),
        architectures: Vec::new(),
        arch_map: arch_map(),
        flags: None,
        listener_path: String::new(),
        listener_metadata: String::new(),
        syscalls: rules,
    }
}

fn arch_map() -> Vec<ArchModes> {
    let modes = |architecture, modes: &[Arch]| ArchModes {
        architecture,
        sub_architectures: modes.to_vec(),
    };
    vec![modes(Arch::X86_64, &[Arch::X86, Arch::X32]), modes(Arch::Aarch64, &[Arch::Arm])]
}

fn allow(calls: &str) -> Rule {
    Rule {
        name: String::new(),
        names: calls.split_ascii_whitespace().map(str::to_owned).collect(),
        action: Action::Allow,
        errno_ret: None,
        args: Vec::new(),
        includes: Condition::default(),
        excludes: Condition::default(),
    }
}

impl Rule {
    fn if_arg(mut self, index: u8, op: Operator, value: u64) -> Self {
        self.args.push(Arg { index, value, value_two: 0, op });
        self
    }

    fn since(mut self, version: u32, revision: u32) -> Self {
        self.includes.min_kernel = Some(KernelVersion { version, revision });
        self
    }

    fn on(mut self, arches: &[&str]) -> Self {
        self.includes.arches = arches.iter().map(|arch| (*arch).to_owned()).collect();
        self
    }

    fn not_on(mut self, arches: &[&str]) -> Self {
        self.excludes.arches = arches.iter().map(|arch| (*arch).to_owned()).collect();
        self
    }

    fn with(mut self, cap: &str) -> Self {
        self.includes.caps.push(cap.to_owned());
        self
    }

    fn without(mut self, cap: &str) -> Self {
        self.excludes.caps.push(cap.to_owned());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_passes_its_own_checks() {
        default_profile().check().unwrap();
    }

    #[test]
    fn no_call_is_listed_twice_without_conditions() {
        let mut names: Vec<_> =
            names::ALWAYS.iter().flat_map(|list| list.split_ascii_whitespace()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert_eq!(all, 361);
    }

    #[test]
    fn the_mask_is_every_namespace_flag() {
        let flags = [
            0x0002_0000_u64,
            0x0200_0000,
            0x0400_0000,
            0x0800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ];
        assert_eq!(flags.iter().sum::<u64>(), NEW_NAMESPACE);
    }
}
