//! Kernel parameters: only those that belong to a namespace of the container's own.

use gantry_sdk::{Error, Result};

/// Parameters of an IPC namespace, besides `fs.mqueue.*`. Source: ipc_namespaces(7).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Which namespaces are the container's own.
#[derive(Clone, Copy, Debug)]
pub struct OwnNamespaces {
    /// IPC: own, or another container's.
    pub ipc: bool,
    /// Network: own, or another container's.
    pub network: bool,
    /// UTS.
    pub uts: bool,
}

/// The name with dots: `net/ipv4/conf/eth0.1/x` is `net.ipv4.conf.eth0/1.x`.
fn dotted(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name[at..].chars().next());
    if first != Some('/') {
        return name.to_owned();
    }
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    name.chars().map(swap).collect()
}

/// Whether `name` may be set.
///
/// # Errors
///
/// `InvalidArgument`: it would change the host, or leaves `/proc/sys`.
pub fn check(name: &str, own: OwnNamespaces) -> Result<()> {
    let dots = dotted(name);
    // What becomes of each part in the file system: a slash stands for a dot there.
    let is_name = |part: &str| !matches!(part, "" | "/" | "//");
    let is_path = dots.split('.').all(is_name) && !dots.contains('\0');
    if !is_path {
        return Err(Error::invalid(format!("sysctl {name:?} is not a kernel parameter")));
    }
    let refuse = |why: &str| Err(Error::invalid(format!("sysctl {dots:?} {why}")));
    if IPC.contains(&dots.as_str()) || dots.starts_with("fs.mqueue.") {
        return if own.ipc { Ok(()) } else { refuse("is not allowed in the hosts ipc namespace") };
    }
    if dots.starts_with("net.") {
        return if own.network { Ok(()) } else { refuse("not allowed in host network namespace") };
    }
    match dots.as_str() {
        "kernel.domainname" if own.uts => Ok(()),
        "kernel.hostname" if own.uts => {
            refuse("is not allowed as it conflicts with the OCI \"hostname\" field")
        }
        _ if dots.starts_with("user.") => Err(Error::invalid(format!(
            "setting ucounts without a user namespace not allowed: {dots}"
        ))),
        _ => refuse("is not in a separate kernel namespace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_own() {
        let all = OwnNamespaces { ipc: true, network: true, uts: true };
        let none = OwnNamespaces { ipc: false, network: false, uts: false };
        let cases = [
            ("net.ipv4.ip_forward", all, ""),
            ("net/ipv4/ip_forward", all, ""),
            ("net.ipv4.conf.eth0/1.forwarding", all, ""),
            ("kernel.shmmax", all, ""),
            ("fs.mqueue.msg_max", all, ""),
            ("kernel.domainname", all, ""),
            (
                "kernel.hostname",
                all,
                "sysctl \"kernel.hostname\" is not allowed as it conflicts with the OCI \
                 \"hostname\" field",
            ),
            (
                "net/core/somaxconn",
                none,
                "sysctl \"net.core.somaxconn\" not allowed in host network namespace",
            ),
            ("kernel.sem", none, "sysctl \"kernel.sem\" is not allowed in the hosts ipc namespace"),
            (
                "kernel.domainname",
                none,
                "sysctl \"kernel.domainname\" is not in a separate kernel namespace",
            ),
            (
                "vm.swappiness",
                all,
                "sysctl \"vm.swappiness\" is not in a separate kernel namespace",
            ),
            (
                "user.max_user_namespaces",
                all,
                "setting ucounts without a user namespace not allowed: user.max_user_namespaces",
            ),
        ];
        for (name, own, expected) in cases {
            let message = check(name, own).err().map(|e| e.to_string()).unwrap_or_default();
            assert_eq!(message, expected, "{name}");
        }
        for name in [
            "",
            "net..x",
            "net.",
            ".net.x",
            "net.a/../b",
            "net.//.x",
            "net./.x",
            "net/../../x",
            "net.\0",
        ] {
            assert!(check(name, all).is_err(), "{name}");
        }
    }
}
