//! The three files that name things inside a container: `hosts`, `hostname`, `resolv.conf`.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use gantry_sdk::kinds::networks::SandboxSpec;
use gantry_sdk::{Error, Result};

use crate::config::Config;
use crate::resolv::{self, Overrides, Place};

/// What is copied of the host's own `hosts`, in bytes.
const HOSTS_LIMIT: u64 = 1 << 20;

/// Source: hosts(5); RFC 4291 for the multicast scopes.
const LOCAL_NAMES: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// What the files say beside what the container asked for.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    pub(crate) place: Place,
    /// The container's own addresses, which its host name stands for.
    pub(crate) addresses: Vec<IpAddr>,
    /// What `host-gateway` stands for.
    pub(crate) host_gateways: Vec<IpAddr>,
}

/// Writes all three files below `spec.files`. Blocking.
///
/// They are made anew at every start and bound into the container, so they are written in place.
pub(crate) fn write_all(spec: &SandboxSpec, naming: &Naming, config: &Config) -> Result<()> {
    let overrides = overrides(spec, config)?;
    let hosts = hosts(spec, naming)?;
    let resolv = resolv::of_host(config.resolv_conf.as_ref()).adapt(&overrides, naming.place);
    write(spec, "hosts", &hosts)?;
    write(spec, "hostname", &format!("{}\n", hostname(spec, naming.place)))?;
    write(spec, "resolv.conf", &resolv.text())
}

fn write(spec: &SandboxSpec, name: &str, content: &str) -> Result<()> {
    let path = spec.files.join(name);
    fs::write(&path, content).map_err(|e| Error::io("write", path.display(), e))
}

/// The container's own values before the daemon's.
fn overrides(spec: &SandboxSpec, config: &Config) -> Result<Overrides> {
    let mut servers = Vec::with_capacity(spec.dns.len());
    for server in &spec.dns {
        let invalid = || Error::invalid(format!("invalid DNS server {server:.80?}"));
        servers.push(server.parse().map_err(|_| invalid())?);
    }
    for word in spec.dns_search.iter().chain(&spec.dns_options) {
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(format!("invalid DNS search domain or option {word:.80?}")));
        }
    }
    let or = |own: &[String], daemon: &[String]| {
        if own.is_empty() { daemon.to_vec() } else { own.to_vec() }
    };
    Ok(Overrides {
        servers: if servers.is_empty() { config.dns.clone() } else { servers },
        search: or(&spec.dns_search, &config.dns_search),
        options: or(&spec.dns_options, &config.dns_opts),
    })
}

fn hostname(spec: &SandboxSpec, place: Place) -> String {
    if !spec.hostname.is_empty() || place != Place::Host {
        return spec.hostname.clone();
    }
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    own.trim().to_owned()
}

fn hosts(spec: &SandboxSpec, naming: &Naming) -> Result<String> {
    let mut text = match naming.place {
        Place::Host => read_limited(Path::new("/etc/hosts"), HOSTS_LIMIT)
            .unwrap_or_else(|_| LOCAL_NAMES.to_owned()),
        Place::Sandbox { .. } => LOCAL_NAMES.to_owned(),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for line in &spec.extra_hosts {
        let (name, addresses) = extra_host(line, &naming.host_gateways)?;
        for address in addresses {
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    if !spec.hostname.is_empty() {
        for address in &naming.addresses {
            if spec.domainname.is_empty() {
                let _ = writeln!(text, "{address}\t{}", spec.hostname);
            } else {
                let (host, domain) = (&spec.hostname, &spec.domainname);
                let _ = writeln!(text, "{address}\t{host}.{domain} {host}");
            }
        }
    }
    Ok(text)
}

/// Reads `name:address` or `name=address`; the address may be in brackets, or `host-gateway`.
fn extra_host(line: &str, host_gateways: &[IpAddr]) -> Result<(String, Vec<IpAddr>)> {
    let invalid = || Error::invalid(format!("bad format for add-host: {line:.200?}"));
    let (name, address) = line.split_once(['=', ':']).ok_or_else(invalid)?;
    let unclean = |c: char| c.is_whitespace() || c.is_control();
    if name.is_empty() || name.contains(unclean) {
        return Err(invalid());
    }
    if address == "host-gateway" {
        return match host_gateways {
            [] => Err(Error::invalid("unable to derive the IP value for host-gateway")),
            some => Ok((name.to_owned(), some.to_vec())),
        };
    }
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let address = bare
        .parse()
        .map_err(|_| Error::invalid(format!("invalid IP address in add-host: {address:.80?}")))?;
    Ok((name.to_owned(), vec![address]))
}

/// A text file, at most `limit` bytes of it.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(place: Place) -> Naming {
        Naming {
            place,
            addresses: vec!["172.17.0.2".parse().unwrap()],
            host_gateways: vec!["172.17.0.1".parse().unwrap()],
        }
    }

    fn spec() -> SandboxSpec {
        SandboxSpec { hostname: "web".into(), ..SandboxSpec::default() }
    }

    #[test]
    fn a_container_knows_itself_and_what_it_was_told() {
        let spec = SandboxSpec {
            domainname: "example.com".into(),
            extra_hosts: vec![
                "db:10.0.0.9".into(),
                "six=fd00::9".into(),
                "seven:[fd00::7]".into(),
                "host.docker.internal:host-gateway".into(),
            ],
            ..spec()
        };
        let text = hosts(&spec, &naming(Place::Sandbox { v6: false })).unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        let rest = text.strip_prefix(LOCAL_NAMES).unwrap();
        assert_eq!(
            rest,
            "10.0.0.9\tdb\nfd00::9\tsix\nfd00::7\tseven\n172.17.0.1\thost.docker.internal\n\
             172.17.0.2\tweb.example.com web\n"
        );
    }

    #[test]
    fn bad_lines_are_refused() {
        for line in ["", "db", "db:", "db:nonsense", ":1.2.3.4", "a b:1.2.3.4", "a\n:1.2.3.4"] {
            let spec = SandboxSpec { extra_hosts: vec![line.into()], ..spec() };
            assert!(hosts(&spec, &naming(Place::Host)).is_err(), "{line:?}");
        }
        let bad_dns = SandboxSpec { dns: vec!["x".into()], ..spec() };
        assert!(overrides(&bad_dns, &Config::default()).is_err());
        let bad_search = SandboxSpec { dns_search: vec!["a\nnameserver 1".into()], ..spec() };
        assert!(overrides(&bad_search, &Config::default()).is_err());
        let gateway = SandboxSpec { extra_hosts: vec!["h:host-gateway".into()], ..spec() };
        let nowhere = Naming { host_gateways: Vec::new(), ..naming(Place::Host) };
        assert!(hosts(&gateway, &nowhere).is_err());
    }

    #[test]
    fn the_container_s_servers_come_before_the_daemon_s() {
        let config = Config { dns: vec!["1.1.1.1".parse().unwrap()], ..Config::default() };
        let own = SandboxSpec { dns: vec!["9.9.9.9".into()], ..spec() };
        assert_eq!(overrides(&own, &config).unwrap().servers[0].to_string(), "9.9.9.9");
        assert_eq!(overrides(&spec(), &config).unwrap().servers[0].to_string(), "1.1.1.1");
    }
}
