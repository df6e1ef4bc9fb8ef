//! A program and its identity.

use super::{Program, Result};
use gantry_sdk::Error;
use gantry_shim_protocol::{Capabilities, Process, Rlimit};
use oci_spec::runtime::{self as oci, Capability, PosixRlimitType};

/// Compiles the process of a specification.
pub(super) fn compile(process: &oci::Process, seccomp: Option<&Program>) -> Result<Process> {
    for (field, asked) in [
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ] {
        if asked {
            return Err(Error::unsupported(format!(
                "{field} is not supported by the built-in runtime"
            )));
        }
    }
    let argv = process.args().clone().unwrap_or_default();
    if argv.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("no command specified"));
    }
    let cwd = process.cwd().to_str().filter(|cwd| cwd.starts_with('/'));
    let cwd = cwd.ok_or_else(|| {
        Error::invalid(format!("working directory {} is not absolute", process.cwd().display()))
    })?;
    let user = process.user();
    let label = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    let seccomp = seccomp.cloned().unwrap_or_default();
    Ok(Process {
        argv,
        env: process.env().clone().unwrap_or_default(),
        cwd: cwd.to_owned(),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        rlimits: process.rlimits().iter().flatten().map(rlimit).collect(),
        capabilities: process.capabilities().as_ref().map(capabilities),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        seccomp: seccomp.code,
        seccomp_flags: seccomp.flags,
        // AppArmor's own word for no profile.
        apparmor: label(process.apparmor_profile()).filter(|profile| profile != "unconfined"),
        selinux: label(process.selinux_label()),
    })
}

fn rlimit(limit: &oci::PosixRlimit) -> Rlimit {
    // Numbers of asm-generic/resource.h.
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    };
    Rlimit { resource, soft: limit.soft(), hard: limit.hard() }
}

fn capabilities(sets: &oci::LinuxCapabilities) -> Capabilities {
    let mask = |set: &Option<oci::Capabilities>| {
        set.iter().flatten().fold(0, |mask, capability| mask | 1 << bit(*capability))
    };
    Capabilities {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        inheritable: mask(sets.inheritable()),
        permitted: mask(sets.permitted()),
        ambient: mask(sets.ambient()),
    }
}

/// The capability's number. Source: linux/capability.h.
const fn bit(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}
