//! `resolv.conf` for a container.
//!
//! Source: resolv.conf(5); the reference engine's rules for networks without an embedded resolver.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// What is read of the host's file; real ones have some hundred bytes.
const LIMIT: u64 = 64 << 10;

const USUAL: &str = "/etc/resolv.conf";
/// What systemd-resolved keeps beside its own stub: the servers it asks.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Used when nothing else is left.
const FALLBACK4: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];
const FALLBACK6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844)),
];

/// A resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
    /// Other directives, as written.
    pub(crate) other: Vec<String>,
}

/// What replaces the host's values; empty lists replace nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// Where the container looks names up from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the host's own network: everything the host uses works.
    Host,
    /// Elsewhere: the host's loopback is out of reach, and IPv6 servers need IPv6.
    Sandbox { v6: bool },
}

impl ResolvConf {
    pub(crate) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(directive) = words.next().filter(|w| !w.starts_with(['#', ';'])) else {
                continue;
            };
            let mut rest = words.map(str::to_owned).peekable();
            if rest.peek().is_none() && directive != "search" {
                continue;
            }
            match directive {
                "nameserver" => {
                    conf.servers.extend(rest.next().and_then(|a| a.parse::<IpAddr>().ok()));
                }
                "search" | "domain" => conf.search = rest.collect(), // the last one counts
                "options" => conf.options.extend(rest),
                _ => conf.other.push(line.to_owned()),
            }
        }
        conf
    }

    /// The configuration for a container at `place`.
    pub(crate) fn adapt(mut self, overrides: &Overrides, place: Place) -> Self {
        if !overrides.search.is_empty() {
            // A lone dot stands for "no search domains".
            self.search = overrides.search.iter().filter(|s| *s != ".").cloned().collect();
        }
        if !overrides.options.is_empty() {
            self.options.clone_from(&overrides.options);
        }
        if !overrides.servers.is_empty() {
            self.servers.clone_from(&overrides.servers);
            return self;
        }
        if let Place::Sandbox { v6 } = place {
            self.servers.retain(|s| !s.is_loopback() && (v6 || s.is_ipv4()));
            if self.servers.is_empty() {
                self.servers.extend(FALLBACK4);
                if v6 {
                    self.servers.extend(FALLBACK6);
                }
            }
        }
        self
    }

    pub(crate) fn text(&self) -> String {
        let mut text =
            "# Made for this container from the host's file and its own options.\n".to_owned();
        for server in &self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        for line in &self.other {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// The host's configuration: `configured`, or what the host's programs use, looking behind
/// systemd-resolved's stub. A missing or unreadable file is an empty one.
pub(crate) fn of_host(configured: Option<&PathBuf>) -> ResolvConf {
    if let Some(path) = configured {
        return ResolvConf::parse(&read(path));
    }
    let usual = ResolvConf::parse(&read(Path::new(USUAL)));
    if usual.servers == [STUB] {
        let behind = ResolvConf::parse(&read(Path::new(BEHIND_STUB)));
        if !behind.servers.is_empty() {
            return behind;
        }
    }
    usual
}

fn read(path: &Path) -> String {
    super::files::read_limited(path, LIMIT).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# comment\n; too\nnameserver 127.0.0.53\nnameserver 10.0.0.2\n\
        nameserver fd00::2\nnameserver nonsense\nsearch old\nsearch a.example b.example\n\
        options edns0\noptions trust-ad ndots:2\nsortlist 10.0.0.0\nnameserver\n";

    fn servers(conf: &ResolvConf) -> Vec<String> {
        conf.servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_sandbox_gets_what_it_can_reach() {
        let none = Overrides::default();
        let conf = |v6| ResolvConf::parse(HOST).adapt(&none, Place::Sandbox { v6 });
        assert_eq!(servers(&conf(false)), ["10.0.0.2"]);
        assert_eq!(servers(&conf(true)), ["10.0.0.2", "fd00::2"]);
        let host = ResolvConf::parse(HOST).adapt(&none, Place::Host);
        assert_eq!(servers(&host), ["127.0.0.53", "10.0.0.2", "fd00::2"]);
        let lonely = ResolvConf::parse("nameserver 127.0.0.1\n");
        let adapted = |v6| lonely.clone().adapt(&none, Place::Sandbox { v6 });
        assert_eq!(servers(&adapted(false)), ["8.8.8.8", "8.8.4.4"]);
        assert_eq!(adapted(true).servers.len(), 4);
    }

    #[test]
    fn overrides_replace_and_may_be_on_loopback() {
        let overrides = Overrides {
            servers: vec!["127.0.0.1".parse().unwrap()],
            search: vec![".".into()],
            options: vec!["ndots:1".into()],
        };
        let conf = ResolvConf::parse(HOST).adapt(&overrides, Place::Sandbox { v6: false });
        let expected = "nameserver 127.0.0.1\noptions ndots:1\nsortlist 10.0.0.0\n";
        assert_eq!(conf.text().split_once('\n').unwrap().1, expected);
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let conf = ResolvConf::parse(HOST);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(conf.options, ["edns0", "trust-ad", "ndots:2"]);
        assert_eq!(ResolvConf::parse(&conf.text()), conf);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
