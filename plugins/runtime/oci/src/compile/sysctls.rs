//! Kernel parameters: only those that belong to a namespace the container has for itself.

use super::Result;
use gantry_sdk::Error;
use gantry_shim_protocol::{Namespace, Namespaces};
use oci_spec::runtime as oci;

/// Parameters of the IPC namespace. Source: ipc_namespaces(7).
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

/// Compiles the parameters in a stable order.
pub(super) fn compile(
    linux: &oci::Linux,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>> {
    let mut all: Vec<(String, String)> = linux
        .sysctl()
        .iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.sort();
    for (name, _) in &all {
        check(name, namespaces)?;
    }
    Ok(all)
}

fn check(name: &str, namespaces: &Namespaces) -> Result<()> {
    // A slash may stand for a dot, and then a dot for a slash in a name: `net/ipv4/conf/eth0.1/x`.
    let dotted = name.replace('/', ".");
    let (belongs_to, known) = if dotted.starts_with("net.") {
        (Namespace::Network, true)
    } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        (Namespace::Ipc, true)
    } else {
        (Namespace::Uts, dotted == "kernel.domainname")
    };
    if dotted == "kernel.hostname" {
        return Err(Error::invalid(format!(
            "sysctl {name:?} conflicts with the OCI field \"hostname\""
        )));
    }
    if !known || namespaces.get(belongs_to).is_none() {
        return Err(Error::invalid(format!(
            "sysctl {name:?} is not in a separate kernel namespace"
        )));
    }
    if dotted.split('.').any(str::is_empty) {
        return Err(Error::invalid(format!("sysctl {name:?} is no name of a parameter")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_shim_protocol::NamespaceMode;

    #[test]
    fn only_parameters_of_own_namespaces_are_taken() {
        let namespaces = Namespaces {
            list: vec![
                (Namespace::Ipc, NamespaceMode::New),
                (Namespace::Network, NamespaceMode::Join(1)),
            ],
        };
        for (name, taken) in [
            ("net.ipv4.ip_forward", true),
            ("net/ipv4/ip_forward", true),
            ("kernel.shmmax", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.domainname", false),
            ("kernel.hostname", false),
            ("kernel.panic", false),
            ("vm.swappiness", false),
            ("net..x", false),
            ("net/../kernel/panic", false),
        ] {
            assert_eq!(check(name, &namespaces).is_ok(), taken, "{name}");
        }
        assert!(check("net.ipv4.ip_forward", &Namespaces::default()).is_err());
    }
}
