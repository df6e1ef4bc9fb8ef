//! Every option of the reference engine's daemon: its flag, its key in the file, its shape.
//!
//! One table, so that what parses and what is honoured cannot drift apart. The kernel reads the keys
//! marked [`Owner::Kernel`]; a key marked [`Owner::Plugin`] is honoured when a plugin of this build
//! declares it and refused by name otherwise.
//!
//! Source: the reference engine's `daemon/command/{config,config_unix,options}.go` and
//! `daemon/config/{config,config_linux}.go`, August 2026.

use serde_json::Value;

/// The form of an option's value, in the file and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `true` or `false`.
    Switch,
    /// A string.
    Text,
    /// A whole number.
    Whole,
    /// A number of bytes: a number, or a string such as `64m`.
    Size,
    /// A list of strings; the flag is given once per entry.
    List,
    /// String to string; the flag is `key=value`.
    Pairs,
    /// String to (string to string); the flag is `outer=key=value`.
    NestedPairs,
    /// Name to `true` or `false`; the flag is `name` or `name=bool`.
    Toggles,
    /// OCI runtimes by name; the flag is `name=path`.
    Runtimes,
    /// Resource limits by name; the flag is `name=soft[:hard]`.
    Ulimits,
    /// Address pools; the flag is `base=prefix,size=bits`.
    Pools,
    /// An object with known fields; the flag is `field=value,…`.
    Fields,
    /// An object that only the file can hold.
    Object,
}

/// Who makes an option true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The kernel.
    Kernel,
    /// Whichever plugin declares the key.
    Plugin {
        /// A value, as JSON, which asks for nothing when no plugin declares the key.
        neutral: &'static str,
        /// What is missing in a build where no plugin declares it.
        missing: &'static str,
    },
    /// It configures a part this engine does not have: accepted, and said once in the log.
    NoEffect(&'static str),
    /// Refused, whatever the build.
    Refused(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt {
    /// The key in `daemon.json`. Empty if only the command line has it.
    pub(crate) key: &'static str,
    /// The flag without dashes. Empty if only the file has it.
    pub(crate) flag: &'static str,
    /// The one-letter flag.
    pub(crate) short: Option<char>,
    pub(crate) shape: Shape,
    pub(crate) owner: Owner,
    /// For `--help`. Empty hides the flag.
    pub(crate) help: &'static str,
}

impl Opt {
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    const fn key(mut self, key: &'static str) -> Self {
        self.key = key;
        self
    }

    const fn neutral(mut self, json: &'static str) -> Self {
        if let Owner::Plugin { missing, .. } = self.owner {
            self.owner = Owner::Plugin { neutral: json, missing };
        }
        self
    }

    /// Whether `value` asks for nothing, so that nobody needs to honour it.
    pub(crate) fn is_neutral(&self, value: &Value) -> bool {
        match self.owner {
            Owner::Plugin { neutral, .. } => {
                !neutral.is_empty()
                    && serde_json::from_str::<Value>(neutral).is_ok_and(|it| it == *value)
            }
            _ => false,
        }
    }
}

const fn kernel(flag: &'static str, shape: Shape, help: &'static str) -> Opt {
    Opt { key: flag, flag, short: None, shape, owner: Owner::Kernel, help }
}

const fn plugin(
    flag: &'static str,
    shape: Shape,
    missing: &'static str,
    help: &'static str,
) -> Opt {
    let owner = Owner::Plugin { neutral: "", missing };
    Opt { key: flag, flag, short: None, shape, owner, help }
}

const fn no_effect(flag: &'static str, shape: Shape, why: &'static str) -> Opt {
    Opt { key: flag, flag, short: None, shape, owner: Owner::NoEffect(why), help: why }
}

const fn refused(flag: &'static str, shape: Shape, why: &'static str) -> Opt {
    Opt { key: flag, flag, short: None, shape, owner: Owner::Refused(why), help: "" }
}

const fn file_only(opt: Opt) -> Opt {
    Opt { flag: "", ..opt }
}

const NO_CONTAINERD: &str = "Without effect: no containerd is involved";
const IMAGES: &str = "no image distribution";
const BRIDGE: &str = "no bridge network driver";
const NETWORK: &str = "no network controller";
const CONTAINERS: &str = "no container engine";
const RUNTIME: &str = "no container runtime";
const SWARM: &str = "no cluster mode";

/// The options, by flag name.
#[rustfmt::skip]
pub(crate) const OPTIONS: &[Opt] = &[
    // The kernel's own.
    kernel("host", Shape::List, "Daemon socket(s) to listen on").key("hosts").short('H'),
    kernel("debug", Shape::Switch, "Enable debug mode").short('D'),
    kernel("log-level", Shape::Text, "Logging level (debug, info, warn, error, fatal)").short('l'),
    kernel("log-format", Shape::Text, "Logging format (text, json)"),
    kernel("raw-logs", Shape::Switch, "Full timestamps without ANSI colouring"),
    kernel("data-root", Shape::Text, "Root directory of persistent state"),
    kernel("exec-root", Shape::Text, "Root directory of execution state"),
    kernel("pidfile", Shape::Text, "Path of the daemon's PID file").short('p'),
    kernel("group", Shape::Text, "Group of the unix socket").short('G'),
    kernel("tls", Shape::Switch, "Use TLS; implied by --tlsverify"),
    kernel("tlsverify", Shape::Switch, "Use TLS and verify the client"),
    kernel("tlscacert", Shape::Text, "Trust client certificates signed only by this CA"),
    kernel("tlscert", Shape::Text, "Path of the TLS certificate"),
    kernel("tlskey", Shape::Text, "Path of the TLS key"),
    kernel("label", Shape::List, "Labels of the daemon, key=value").key("labels"),
    kernel("feature", Shape::Toggles, "Enable a feature").key("features"),
    kernel("experimental", Shape::Switch, "Enable experimental features"),
    kernel("shutdown-timeout", Shape::Whole, "Seconds a shutdown may take; negative waits for ever"),
    kernel("metrics-addr", Shape::Text, "Address and port of the Prometheus endpoint"),
    file_only(kernel("min-api-version", Shape::Text, "")),
    file_only(kernel("kernel-plugins", Shape::Object, "")),

    // Containers and their runtime.
    plugin("exec-opt", Shape::List, RUNTIME, "Runtime execution options").key("exec-opts"),
    plugin("default-runtime", Shape::Text, RUNTIME, "Default OCI runtime"),
    plugin("add-runtime", Shape::Runtimes, RUNTIME, "Register an OCI compatible runtime, name=path").key("runtimes").neutral("{}"),
    plugin("cgroup-parent", Shape::Text, RUNTIME, "Parent cgroup for all containers").neutral("\"\""),
    plugin("default-cgroupns-mode", Shape::Text, RUNTIME, "Default cgroup namespace mode (host, private)"),
    plugin("default-ipc-mode", Shape::Text, CONTAINERS, "Default IPC mode (shareable, private)"),
    plugin("default-shm-size", Shape::Size, CONTAINERS, "Default size of /dev/shm"),
    plugin("default-ulimit", Shape::Ulimits, CONTAINERS, "Default ulimits").key("default-ulimits").neutral("{}"),
    plugin("default-stop-timeout", Shape::Whole, CONTAINERS, "Default seconds between stop signal and kill"),
    plugin("init", Shape::Switch, CONTAINERS, "Run an init inside containers").neutral("false"),
    plugin("init-path", Shape::Text, CONTAINERS, "Path of the init binary"),
    file_only(plugin("default-init", Shape::Text, CONTAINERS, "")),
    plugin("seccomp-profile", Shape::Text, RUNTIME, "Path of the seccomp profile, builtin or unconfined"),
    plugin("no-new-privileges", Shape::Switch, RUNTIME, "Set no-new-privileges by default").neutral("false"),
    plugin("selinux-enabled", Shape::Switch, "no SELinux labelling", "Enable SELinux support").neutral("false"),
    plugin("userns-remap", Shape::Text, "no user namespace remapping", "User and group for user namespaces").neutral("\"\""),
    plugin("rootless", Shape::Switch, "no rootless mode", "Enable rootless mode").neutral("false"),
    plugin("cpu-rt-period", Shape::Whole, "no CPU real-time scheduling", "CPU real-time period in microseconds (cgroup v1)").neutral("0"),
    plugin("cpu-rt-runtime", Shape::Whole, "no CPU real-time scheduling", "CPU real-time runtime in microseconds (cgroup v1)").neutral("0"),
    plugin("cdi-spec-dir", Shape::List, "no CDI devices", "CDI specification directories").key("cdi-spec-dirs").neutral("[]"),
    plugin("nri-opts", Shape::Fields, "no node resource interface", "Node resource interface").neutral("{\"enable\":false}"),
    plugin("live-restore", Shape::Switch, CONTAINERS, "Keep containers running while the daemon is stopped"),
    plugin("log-driver", Shape::Text, "no log driver", "Default driver for container logs"),
    plugin("log-opt", Shape::Pairs, "no log driver", "Default log driver options").key("log-opts").neutral("{}"),
    plugin("node-generic-resource", Shape::List, SWARM, "Advertise a user-defined resource").key("node-generic-resources").neutral("[]"),
    plugin("authorization-plugin", Shape::List, "no authorisation plugins", "Authorisation plugins").key("authorization-plugins").neutral("[]"),

    // Images and storage.
    plugin("storage-driver", Shape::Text, "no storage driver", "Storage driver").short('s').neutral("\"\""),
    plugin("storage-opt", Shape::List, "no storage driver", "Storage driver options").key("storage-opts").neutral("[]"),
    plugin("registry-mirror", Shape::List, IMAGES, "Preferred registry mirror").key("registry-mirrors").neutral("[]"),
    plugin("insecure-registry", Shape::List, IMAGES, "Registries without TLS").key("insecure-registries").neutral("[]"),
    plugin("max-concurrent-downloads", Shape::Whole, IMAGES, "Most downloads at a time"),
    plugin("max-concurrent-uploads", Shape::Whole, IMAGES, "Most uploads at a time"),
    plugin("max-download-attempts", Shape::Whole, IMAGES, "Most attempts for each download"),
    plugin("http-proxy", Shape::Text, IMAGES, "HTTP proxy for outgoing traffic").neutral("\"\""),
    plugin("https-proxy", Shape::Text, IMAGES, "HTTPS proxy for outgoing traffic").neutral("\"\""),
    plugin("no-proxy", Shape::Text, IMAGES, "Hosts for which the proxy is skipped").neutral("\"\""),
    file_only(plugin("builder", Shape::Object, "no image builder", "").neutral("{}")),

    // Networks.
    plugin("bridge", Shape::Text, BRIDGE, "Attach containers to this bridge; none disables the default network").short('b').neutral("\"\""),
    plugin("bip", Shape::Text, BRIDGE, "IPv4 address of the default bridge").neutral("\"\""),
    plugin("bip6", Shape::Text, BRIDGE, "IPv6 address of the default bridge").neutral("\"\""),
    plugin("fixed-cidr", Shape::Text, BRIDGE, "IPv4 subnet of the default bridge network").neutral("\"\""),
    plugin("fixed-cidr-v6", Shape::Text, BRIDGE, "IPv6 subnet of the default bridge network").neutral("\"\""),
    plugin("default-gateway", Shape::Text, BRIDGE, "IPv4 gateway of the default bridge network").neutral("\"\""),
    plugin("default-gateway-v6", Shape::Text, BRIDGE, "IPv6 gateway of the default bridge network").neutral("\"\""),
    plugin("ip", Shape::Text, BRIDGE, "Host address for publishing ports"),
    plugin("ipv6", Shape::Switch, BRIDGE, "IPv6 on the default bridge network").neutral("false"),
    plugin("mtu", Shape::Whole, BRIDGE, "MTU of the default bridge network"),
    plugin("icc", Shape::Switch, BRIDGE, "Communication between containers of the default bridge network").neutral("true"),
    plugin("iptables", Shape::Switch, BRIDGE, "Manage firewall rules for IPv4").neutral("true"),
    plugin("ip6tables", Shape::Switch, BRIDGE, "Manage firewall rules for IPv6").neutral("true"),
    plugin("ip-forward", Shape::Switch, BRIDGE, "Enable IP forwarding").neutral("true"),
    plugin("ip-forward-no-drop", Shape::Switch, BRIDGE, "Leave the forward policy alone").neutral("false"),
    plugin("ip-masq", Shape::Switch, BRIDGE, "Masquerading for the default bridge network").neutral("true"),
    plugin("userland-proxy", Shape::Switch, "no userland proxy", "Userland proxy for loopback traffic"),
    no_effect("userland-proxy-path", Shape::Text, "Without effect: there is no proxy binary"),
    plugin("allow-direct-routing", Shape::Switch, BRIDGE, "Allow access to published ports on container addresses").neutral("false"),
    plugin("bridge-accept-fwmark", Shape::Text, BRIDGE, "Accept packets with this firewall mark").neutral("\"\""),
    plugin("firewall-backend", Shape::Text, BRIDGE, "Firewall backend (iptables, nftables)").neutral("\"\""),
    plugin("default-address-pool", Shape::Pools, NETWORK, "Address pools for local networks").key("default-address-pools").neutral("[]"),
    plugin("default-network-opt", Shape::NestedPairs, NETWORK, "Default network options").key("default-network-opts").neutral("{}"),
    plugin("network-control-plane-mtu", Shape::Whole, SWARM, "MTU of the network control plane").neutral("1500"),
    plugin("network-diagnostic-port", Shape::Whole, SWARM, "").neutral("0"),
    plugin("dns", Shape::List, NETWORK, "DNS servers").neutral("[]"),
    plugin("dns-opt", Shape::List, NETWORK, "DNS options").key("dns-opts").neutral("[]"),
    plugin("dns-search", Shape::List, NETWORK, "DNS search domains").neutral("[]"),
    plugin("host-gateway-ip", Shape::List, NETWORK, "Addresses of host-gateway in --add-host").key("host-gateway-ips").neutral("[]"),
    file_only(plugin("resolv-conf", Shape::Text, NETWORK, "").neutral("\"\"")),

    // Clusters.
    plugin("swarm-default-advertise-addr", Shape::Text, SWARM, "Default address for cluster traffic").neutral("\"\""),
    file_only(plugin("swarm-raft-heartbeat-tick", Shape::Whole, SWARM, "").neutral("0")),
    file_only(plugin("swarm-raft-election-tick", Shape::Whole, SWARM, "").neutral("0")),

    // Parts this engine does not have.
    no_effect("containerd", Shape::Text, NO_CONTAINERD),
    no_effect("cri-containerd", Shape::Switch, NO_CONTAINERD),
    no_effect("containerd-namespace", Shape::Text, NO_CONTAINERD),
    no_effect("containerd-plugins-namespace", Shape::Text, NO_CONTAINERD).key("containerd-plugin-namespace"),
    file_only(no_effect("allow-nondistributable-artifacts", Shape::List, "the reference engine ignores it too")),
    file_only(no_effect("deprecated-key-path", Shape::Text, "the reference engine ignores it too")),

    // Removed from the reference engine, still found in old units and files.
    refused("api-cors-header", Shape::Text, "removed from the reference engine; use a reverse proxy for CORS headers"),
    refused("graph", Shape::Text, "removed from the reference engine; use data-root").short('g'),
    refused("oom-score-adjust", Shape::Whole, "removed from the reference engine; use OOMScoreAdjust of the service manager"),
    refused("disable-legacy-registry", Shape::Switch, "removed from the reference engine"),
    refused("cluster-store", Shape::Text, "removed from the reference engine"),
    refused("cluster-advertise", Shape::Text, "removed from the reference engine"),
    refused("cluster-store-opt", Shape::Pairs, "removed from the reference engine").key("cluster-store-opts"),
    plugin("restart", Shape::Switch, "deprecated in the reference engine; use restart policies", "").neutral("true").short('r'),
];

/// The option with this key in the file.
pub(crate) fn by_key(key: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| !opt.key.is_empty() && opt.key == key)
}

/// The option whose flag has this name: for "did you mean".
pub(crate) fn by_flag(flag: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| !opt.flag.is_empty() && opt.flag == flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        for (what, names) in [
            ("keys", OPTIONS.iter().map(|o| o.key.to_owned()).collect::<Vec<_>>()),
            ("flags", OPTIONS.iter().map(|o| o.flag.to_owned()).collect()),
            ("letters", OPTIONS.iter().filter_map(|o| o.short).map(String::from).collect()),
        ] {
            let named: Vec<_> = names.into_iter().filter(|n| !n.is_empty()).collect();
            let unique: BTreeSet<_> = named.iter().collect();
            assert_eq!(named.len(), unique.len(), "{what}");
        }
    }

    #[test]
    fn neutral_values_are_json() {
        for opt in OPTIONS {
            if let Owner::Plugin { neutral, .. } = opt.owner
                && !neutral.is_empty()
            {
                let value: Value = serde_json::from_str(neutral).unwrap();
                assert!(opt.is_neutral(&value), "{}", opt.key);
            }
        }
    }
}
