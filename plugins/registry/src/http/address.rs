//! Addresses of registries and token servers, as clients and servers write them.

use std::fmt;
use std::net::Ipv6Addr;

use http::Uri;

/// The longest address read, in bytes.
const MAX_LENGTH: usize = 16 << 10;

/// Why an address is of no use. Never shows a user name or password inside an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// Neither http nor https.
    #[error("unsupported URL scheme {0:.40?}: must be \"http\" or \"https\"")]
    Scheme(String),
    /// No host, or not the name of one.
    #[error("{0:.300?} is not a host name or address with an optional port")]
    Host(String),
    /// `user:password@host`.
    #[error("it must not contain a user name or password")]
    UserInfo,
    /// Anything else.
    #[error("it is not a URL")]
    Malformed,
}

/// An absolute http or https URL.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether it is https.
    pub(crate) tls: bool,
    /// Host and, where written, port.
    pub(crate) authority: String,
    /// Host; an IPv6 address without its brackets.
    pub(crate) host: String,
    /// Port, written or not.
    pub(crate) port: u16,
    /// Path and query, at least `/`.
    pub(crate) target: String,
}

impl Url {
    /// Reads an absolute URL.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() > MAX_LENGTH {
            return Err(AddressError::Malformed);
        }
        let uri: Uri = text.parse().map_err(|_| AddressError::Malformed)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            other => return Err(AddressError::Scheme(other.unwrap_or_default().to_owned())),
        };
        let authority = uri.authority().ok_or(AddressError::Malformed)?.as_str();
        Self::new(tls, authority, uri.path_and_query().map_or("/", |p| p.as_str()))
    }

    /// The URL with these parts; `target` is a path with an optional query.
    ///
    /// # Errors
    ///
    /// If the authority is not a host with an optional port.
    pub(crate) fn new(tls: bool, authority: &str, target: &str) -> Result<Self, AddressError> {
        if authority.contains('@') {
            return Err(AddressError::UserInfo);
        }
        let (host, port) =
            split(authority).ok_or_else(|| AddressError::Host(authority.to_owned()))?;
        Ok(Self {
            tls,
            authority: authority.to_owned(),
            host: host.to_owned(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            target: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
        })
    }

    /// Where `location`, found in an answer from here, points to: absolute or starting with `/`.
    ///
    /// # Errors
    ///
    /// If it is neither.
    pub(crate) fn join(&self, location: &str) -> Result<Self, AddressError> {
        if location.starts_with('/') && !location.starts_with("//") {
            if location.len() > MAX_LENGTH || location.parse::<Uri>().is_err() {
                return Err(AddressError::Malformed);
            }
            return Ok(Self { target: location.to_owned(), ..self.clone() });
        }
        Self::parse(location)
    }

    /// Whether both are served by the same party: scheme, host and port are equal.
    pub(crate) fn has_origin_of(&self, other: &Self) -> bool {
        (self.tls, self.port) == (other.tls, other.port)
            && self.host.eq_ignore_ascii_case(&other.host)
    }

    /// Another path and query at the same server.
    pub(crate) fn at(&self, target: impl Into<String>) -> Self {
        Self { target: target.into(), ..self.clone() }
    }

    /// The same URL with more in its query.
    pub(crate) fn with_query(&self, pairs: &[(&str, &str)]) -> Self {
        let more = form(pairs);
        let sign = if self.target.contains('?') { '&' } else { '?' };
        Self { target: format!("{}{sign}{more}", self.target), ..self.clone() }
    }
}

/// Without the query, which may say who somebody is.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `pairs` as `application/x-www-form-urlencoded` text.
pub(crate) fn form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// The host and port that a client means by the server address of its credentials: a URL, or no
/// more than a host. What follows the host is ignored: `https://host/v1/` is an old way to say
/// `host`.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn registry(server: &str) -> Result<String, AddressError> {
    let url = if server.contains("://") {
        Url::parse(server)?
    } else {
        Url::parse(&format!("https://{server}"))?
    };
    Ok(url.authority)
}

/// Takes `host`, `host:port`, `[v6]:port` or a bare IPv6 address apart; none for anything else.
pub(crate) fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Some((authority, None));
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        (address, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else {
        let (host, port) =
            authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p)));
        is_name(host).then_some(())?;
        (host, port)
    };
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    Some((host, port))
}

/// Whether `text` can be a DNS name or an IPv4 address. Source: RFC 1123 §2.1; the underscore is
/// in no standard and in many a name.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_of_clients() {
        let good = [
            ("https://index.docker.io/v1/", "index.docker.io"),
            ("reg.example", "reg.example"),
            ("reg.example:5000", "reg.example:5000"),
            ("http://reg.example:5000/v2/", "reg.example:5000"),
            ("https://[::1]:5000", "[::1]:5000"),
            ("127.0.0.1:5000/", "127.0.0.1:5000"),
        ];
        for (given, expected) in good {
            assert_eq!(registry(given).as_deref(), Ok(expected), "{given}");
        }
        let long = format!("https://{}", "a".repeat(20_000));
        for bad in [
            "",
            "..",
            "../../etc",
            "https://",
            "https://..",
            "ftp://reg.example",
            "unix:///run/x",
            "https://user:secret@reg.example",
            "user:secret@reg.example",
            "reg.example:0",
            "reg.example:65536",
            "reg.example:",
            "reg.example:+1",
            "reg example",
            "reg\r\nX: y",
            "[::1",
            "[::g]:1",
            "-reg.example",
            "a..b",
            &long,
        ] {
            let error = registry(bad).expect_err(bad);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn locations_are_joined() {
        let here = Url::parse("https://a.example/v2/?x=1").unwrap();
        for (location, expected, same) in [
            ("/v2", Some("https://a.example/v2"), true),
            ("https://a.example:443/", Some("https://a.example:443/"), true),
            ("http://a.example/", Some("http://a.example/"), false),
            ("https://b.example/", Some("https://b.example/"), false),
            ("//b.example/", None, false),
            ("v2", None, false),
            ("", None, false),
        ] {
            let joined = here.join(location).ok();
            assert_eq!(joined.as_ref().map(ToString::to_string).as_deref(), expected, "{location}");
            assert_eq!(joined.is_some_and(|url| url.has_origin_of(&here)), same, "{location}");
        }
    }

    #[test]
    fn queries_grow_and_are_not_shown() {
        let url = Url::parse("https://a.example/token?x=1").unwrap();
        let url = url.with_query(&[("account", "a&b"), ("service", "s p")]);
        assert_eq!(url.target, "/token?x=1&account=a%26b&service=s+p");
        assert_eq!(format!("{url} {url:?}"), "https://a.example/token https://a.example/token");
    }
}
