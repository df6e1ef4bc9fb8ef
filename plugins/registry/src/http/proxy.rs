//! Which proxy a request goes through.
//!
//! Source of the rules: the reference engine, whose language's library reads `HTTP_PROXY`, `HTTPS_PROXY` and
//! `NO_PROXY` in upper and lower case. Values of the configuration replace those of the environment.

use std::net::IpAddr;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gantry_sdk::ConfigView;
use http::HeaderValue;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use super::address::{self, Url};

/// The configuration keys, each with the variables that count where it is empty.
pub(crate) const KEYS: [(&str, [&str; 2]); 3] = [
    ("http-proxy", ["HTTP_PROXY", "http_proxy"]),
    ("https-proxy", ["HTTPS_PROXY", "https_proxy"]),
    ("no-proxy", ["NO_PROXY", "no_proxy"]),
];

/// The most entries of `no-proxy`.
const MAX_EXCEPTIONS: usize = 10_000;

/// A proxy and what to show it. No debug form: the header is a secret.
#[derive(Clone)]
pub(crate) struct Proxy {
    /// Where it is; the path means nothing.
    pub(crate) url: Url,
    /// `Proxy-Authorization`.
    pub(crate) authorization: Option<HeaderValue>,
}

/// The proxies in force.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
    everything_direct: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// A name; its subdomains too, and only those if it was written with a leading dot.
    Name {
        name: String,
        only_below: bool,
        port: Option<u16>,
    },
}

/// The three values as text: configured, else from the environment.
pub(crate) fn values(config: &ConfigView, env: impl Fn(&str) -> Option<String>) -> [String; 3] {
    KEYS.map(|(key, variables)| {
        let configured = config.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        if !configured.is_empty() {
            return configured.to_owned();
        }
        let set = |name| env(name).filter(|value| !value.is_empty());
        variables.into_iter().find_map(set).unwrap_or_default()
    })
}

/// A proxy's address fit to be shown: without user and password.
pub(crate) fn masked(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").map_or(("", address), |(s, r)| (s, r));
    let end = rest.find('/').unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else { return address.to_owned() };
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}xxxxx:xxxxx@{}", &rest[at + 1..])
}

impl Proxies {
    /// Reads the values of [`values`].
    ///
    /// # Errors
    ///
    /// Every address that is of no use, masked.
    pub(crate) fn parse([http, https, no]: &[String; 3]) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let mut read = |(key, _): (&str, _), text: &str| match proxy(text) {
            Ok(proxy) => proxy,
            Err(why) => {
                wrong.push(format!("{key}: {:.300?}: {why}", masked(text)));
                None
            }
        };
        let all = Self {
            http: read(KEYS[0], http),
            https: read(KEYS[1], https),
            exceptions: no.split(',').take(MAX_EXCEPTIONS).filter_map(exception).collect(),
            everything_direct: no.split(',').any(|entry| entry.trim() == "*"),
        };
        if wrong.is_empty() { Ok(all) } else { Err(wrong) }
    }

    /// The proxy on the way to `url`; none for what is reached directly, such as this machine.
    pub(crate) fn of(&self, url: &Url) -> Option<&Proxy> {
        let proxy = if url.tls { self.https.as_ref() } else { self.http.as_ref() }?;
        (!self.is_direct(&url.host, url.port)).then_some(proxy)
    }

    fn is_direct(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        if self.everything_direct
            || host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
        {
            return true;
        }
        self.exceptions.iter().any(|exception| match exception {
            Exception::Network(network) => address.is_some_and(|a| network.contains(&a)),
            Exception::Address(one, at) => address == Some(*one) && at.is_none_or(|at| at == port),
            Exception::Name { name, only_below, port: at } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|h| h.ends_with('.'));
                (below || (host == *name && !only_below)) && at.is_none_or(|at| at == port)
            }
        })
    }
}

fn proxy(text: &str) -> Result<Option<Proxy>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let (scheme, rest) = with_scheme.split_once("://").unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (user, host) = match rest[..end].rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, &rest[..end]),
    };
    let url = Url::parse(&format!("{}://{host}/", scheme.to_ascii_lowercase()))
        .map_err(|e| e.to_string())?;
    let authorization = user.map(|user| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let pair = BASE64_STANDARD.encode(format!("{}:{}", plain(name), plain(password)));
        secret(&format!("Basic {pair}")).ok_or("its password is not printable")
    });
    Ok(Some(Proxy { url, authorization: authorization.transpose()? }))
}

/// A header value that is kept out of debug output; none if it is no header value.
pub(crate) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One entry of `no-proxy`; entries that mean nothing are passed over, as the reference engine does.
fn exception(entry: &str) -> Option<Exception> {
    let entry = entry.trim().to_ascii_lowercase();
    if entry.is_empty() || entry == "*" {
        return None;
    }
    if let Ok(network) = entry.parse() {
        return Some(Exception::Network(network));
    }
    if let Ok(address) = entry.parse() {
        return Some(Exception::Address(address, None));
    }
    let entry = entry.strip_prefix('*').unwrap_or(&entry);
    let (only_below, entry) = entry.strip_prefix('.').map_or((false, entry), |rest| (true, rest));
    let (host, port) = address::split(entry)?;
    Some(match host.parse() {
        Ok(address) => Exception::Address(address, port),
        Err(_) => Exception::Name { name: host.to_owned(), only_below, port },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn proxies(http: &str, https: &str, no: &str) -> Result<Proxies, Vec<String>> {
        Proxies::parse(&[http.to_owned(), https.to_owned(), no.to_owned()])
    }

    #[test]
    fn who_is_reached_directly() {
        let no = "example.com, .below.test,10.0.0.0/8,192.0.2.1:5000,*.star.test,port.test:81";
        let all = proxies("http://p:1", "p:2", no).unwrap();
        for (url, expected) in [
            ("http://reg.test/", Some("p:1")),
            ("https://reg.test/", Some("p:2")),
            ("https://localhost:5000/", None),
            ("http://127.0.0.2/", None),
            ("http://[::1]:5000/", None),
            ("https://example.com/", None),
            ("https://A.Example.com:99/", None),
            ("https://notexample.com/", Some("p:2")),
            ("https://below.test/", Some("p:2")),
            ("https://a.below.test/", None),
            ("https://a.star.test/", None),
            ("https://10.1.2.3/", None),
            ("https://11.1.2.3/", Some("p:2")),
            ("http://192.0.2.1:5000/", None),
            ("http://192.0.2.1/", Some("p:1")),
            ("http://port.test:81/", None),
            ("http://port.test/", Some("p:1")),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(all.of(&url).map(|p| p.url.authority.as_str()), expected, "{url}");
        }
        assert!(proxies("p", "p", "a,*").unwrap().of(&Url::parse("http://x/").unwrap()).is_none());
        assert!(proxies("", "", "").unwrap().of(&Url::parse("http://x/").unwrap()).is_none());
    }

    #[test]
    fn passwords_are_used_and_never_shown() {
        let all = proxies("http://me:s%40cret@p:3128/", "", "").unwrap();
        let proxy = all.of(&Url::parse("http://x/").unwrap()).unwrap();
        let expected = format!("Basic {}", BASE64_STANDARD.encode("me:s@cret"));
        assert_eq!(proxy.authorization.as_ref().unwrap().to_str().unwrap(), expected);
        assert_eq!(masked("http://me:secret@p:3128/x@y"), "http://xxxxx:xxxxx@p:3128/x@y");
        assert_eq!(masked("me:secret@p"), "xxxxx:xxxxx@p");
        assert_eq!(masked("http://p:1"), "http://p:1");
        for bad in ["socks5://me:secret@p", "http://me:secret@", "http://me:secret@a b"] {
            let error = proxies(bad, "", "").map(|_| ()).unwrap_err().join("");
            assert!(error.starts_with("http-proxy") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_configuration_replaces_the_environment() {
        let config = match json!({"http-proxy": "http://c", "https-proxy": ""}) {
            serde_json::Value::Object(map) => ConfigView::new(map),
            _ => unreachable!("an object"),
        };
        let env = |name: &str| match name {
            "HTTP_PROXY" | "https_proxy" => Some("http://e".to_owned()),
            "HTTPS_PROXY" => Some(String::new()),
            _ => None,
        };
        assert_eq!(values(&config, env), ["http://c", "http://e", ""]);
    }
}
