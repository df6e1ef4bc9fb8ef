//! `insecure-registries`: who may be spoken to without TLS, or with TLS and a certificate that
//! nobody vouches for.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::http::address;

/// The configuration key.
pub(crate) const KEY: &str = "insecure-registries";

/// How long the resolver may take to say whether a name is in one of the networks.
const RESOLVE: Duration = Duration::from_secs(5);

/// Registries on this machine are trusted as they are, as the reference engine does.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

/// The registries that may be spoken to without proof of who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Insecure {
    /// `host` or `host:port`.
    hosts: Vec<String>,
    networks: Vec<IpNet>,
}

impl Insecure {
    /// Reads the key's value, and adds this machine.
    ///
    /// # Errors
    ///
    /// Every entry that is neither a host with an optional port nor a network.
    pub(crate) fn parse(value: Option<&Value>) -> Result<Self, Vec<String>> {
        let mut all = Self::default();
        let mut wrong = Vec::new();
        let entries = match value {
            None | Some(Value::Null) => &[],
            Some(Value::Array(entries)) => entries.as_slice(),
            Some(_) => return Err(vec![format!("{KEY}: must be a list of strings")]),
        };
        for entry in entries {
            match entry.as_str() {
                None => wrong.push(format!("{KEY}: {entry:.80} is not a string")),
                Some(text) if !all.add(text) => wrong.push(format!(
                    "{KEY}: {text:.300?} is neither a host with an optional port nor a network"
                )),
                Some(_) => {}
            }
        }
        all.networks.extend(LOOPBACK.iter().filter_map(|network| network.parse::<IpNet>().ok()));
        if wrong.is_empty() { Ok(all) } else { Err(wrong) }
    }

    fn add(&mut self, text: &str) -> bool {
        if let Ok(network) = text.parse() {
            let network: IpNet = network;
            self.networks.push(network.trunc());
            return true;
        }
        // A scheme says nothing here and is common in configurations.
        let host = ["http://", "https://"].iter().find_map(|s| text.strip_prefix(s));
        let host = host.unwrap_or(text);
        let is_host = address::split(host).is_some();
        if is_host {
            let is_bare = host.parse::<Ipv6Addr>().is_ok();
            self.hosts.push(if is_bare { format!("[{host}]") } else { host.to_owned() });
        }
        is_host
    }

    /// Whether `authority`, a host with an optional port, is one of them. A name is looked up, and
    /// one address in one of the networks is enough; a name that cannot be looked up is in none.
    pub(crate) async fn covers(&self, authority: &str) -> bool {
        if self.hosts.iter().any(|host| host.eq_ignore_ascii_case(authority)) {
            return true;
        }
        let Some((host, _)) = address::split(authority) else { return false };
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.contains(address);
        }
        if host.eq_ignore_ascii_case("localhost") {
            return true;
        }
        match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, 0))).await {
            Ok(Ok(mut addresses)) => addresses.any(|address| self.contains(address.ip())),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// The hosts, as configured.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(String::as_str)
    }

    /// The networks, this machine included.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &IpNet> {
        self.networks.iter()
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_are_checked() {
        for good in [
            json!(null),
            json!([]),
            json!(["reg.example", "reg.example:5000", "10.0.0.0/8", "fd00::/8", "[::1]:5000"]),
            json!(["http://reg.example:5000", "10.1.2.3", "::2"]),
        ] {
            assert!(Insecure::parse(Some(&good)).is_ok(), "{good}");
        }
        for (bad, count) in [
            (json!("reg.example"), 1),
            (json!({"a": 1}), 1),
            (json!([1, null, "ok"]), 2),
            (json!(["ftp://x", "a/b", "10.0.0.0/33", "x:0", "x:y", "", "-x", ".."]), 8),
        ] {
            assert_eq!(Insecure::parse(Some(&bad)).unwrap_err().len(), count, "{bad}");
        }
    }

    #[tokio::test]
    async fn who_is_covered() {
        let list = json!(["reg.example:5000", "https://plain.example", "10.0.0.0/8", "fd00::2"]);
        let insecure = Insecure::parse(Some(&list)).unwrap();
        for (authority, expected) in [
            ("reg.example:5000", true),
            ("REG.example:5000", true),
            ("reg.example.invalid:5001", false),
            ("plain.example", true),
            ("10.9.8.7:443", true),
            ("11.9.8.7", false),
            ("127.1.2.3:5000", true),
            ("localhost:1", true),
            ("[::1]:5000", true),
            ("[::2]:5000", false),
            ("[fd00::2]", true),
            ("not a host", false),
        ] {
            assert_eq!(insecure.covers(authority).await, expected, "{authority}");
        }
    }
}
