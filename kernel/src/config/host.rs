//! Addresses to listen on, as `-H` and `hosts` write them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where clients reach the daemon when nothing is configured.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostAddr {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A TCP port of a name or address.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port, never 0.
        port: u16,
    },
    /// Sockets that the service manager opened: all of them, or the one with this descriptor.
    Inherited(Option<i32>),
}

impl HostAddr {
    /// Parses `unix://path`, `tcp://host:port`, `fd://[number]`, or `host:port`.
    ///
    /// # Errors
    ///
    /// What is wrong with `text`, in the reference engine's words where it has some.
    pub fn parse(text: &str, tls: bool) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("tcp", text));
        let invalid = |why: &str| format!("invalid bind address ({text}): {why}");
        match scheme {
            "unix" if rest.contains("://") => {
                Err(invalid(&format!("invalid unix address: {rest}")))
            }
            "unix" if rest.is_empty() => Ok(Self::Unix(DEFAULT_SOCKET.into())),
            "unix" => Ok(Self::Unix(rest.into())),
            "tcp" => tcp(rest, tls).map_err(|why| invalid(&why)),
            "fd" if matches!(rest, "" | "*") => Ok(Self::Inherited(None)),
            "fd" => match rest.parse::<i32>() {
                Ok(fd) if fd >= 3 => Ok(Self::Inherited(Some(fd))),
                _ => Err(invalid("fd:// takes a descriptor number from 3, or nothing")),
            },
            other => Err(invalid(&format!("unsupported proto '{other}'"))),
        }
    }

    /// The address used when none is configured.
    #[must_use]
    pub fn default_for(tls: bool) -> Self {
        if tls {
            Self::Tcp { host: "localhost".to_owned(), port: TLS_PORT }
        } else {
            Self::Unix(DEFAULT_SOCKET.into())
        }
    }

    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Inherited(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

fn tcp(rest: &str, tls: bool) -> Result<HostAddr, String> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err("should not contain a path element".to_owned());
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) =
                bracketed.split_once(']').ok_or_else(|| "missing ']' in address".to_owned())?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("invalid address {host}"))?;
            (host, after.strip_prefix(':'))
        }
        None => match rest.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address must be in brackets".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = match port {
        None | Some("") if tls => TLS_PORT,
        None | Some("") => PLAIN_PORT,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => return Err(format!("invalid port: {text}")),
        },
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(HostAddr::Tcp { host: host.to_owned(), port })
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Inherited(None) => f.write_str("fd://"),
            Self::Inherited(Some(fd)) => write!(f, "fd://{fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_as_the_reference_does() {
        let cases = [
            ("unix:///run/a.sock", Ok("unix:///run/a.sock")),
            ("unix://", Ok("unix:///var/run/docker.sock")),
            ("tcp://", Ok("tcp://localhost:2375")),
            ("tcp://:5555", Ok("tcp://localhost:5555")),
            ("tcp://0.0.0.0", Ok("tcp://0.0.0.0:2375")),
            ("127.0.0.1:80", Ok("tcp://127.0.0.1:80")),
            ("tcp://[::1]:80", Ok("tcp://[::1]:80")),
            ("fd://", Ok("fd://")),
            ("fd://*", Ok("fd://")),
            ("fd://4", Ok("fd://4")),
            ("fd://1", Err("takes a descriptor")),
            ("tcp://a:0", Err("invalid port: 0")),
            ("tcp://a:70000", Err("invalid port: 70000")),
            ("tcp://::1", Err("brackets")),
            ("tcp://a/b", Err("path element")),
            ("npipe:////./pipe/x", Err("unsupported proto 'npipe'")),
            ("http://a", Err("unsupported proto 'http'")),
        ];
        for (text, expected) in cases {
            match (HostAddr::parse(text, false), expected) {
                (Ok(host), Ok(expected)) => assert_eq!(host.to_string(), expected, "{text}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn tls_changes_the_default_port() {
        let host = HostAddr::parse("tcp://10.0.0.1", true).unwrap();
        assert_eq!(host.to_string(), "tcp://10.0.0.1:2376");
        assert!(!host.is_local());
        assert!(HostAddr::parse("tcp://127.0.0.2", true).unwrap().is_local());
    }
}
