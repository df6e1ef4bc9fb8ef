//! A request's path: percent-decoded, split, and without its version prefix.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A path that is not served, whatever routes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unservable;

/// A decoded path, its version prefix apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath {
    /// The digits and dots after `/v`, if the path begins with them.
    pub version: Option<String>,
    /// The rest, with its leading slash.
    pub path: String,
}

impl RequestPath {
    /// Decodes the path of a request target.
    ///
    /// # Errors
    ///
    /// [`Unservable`] for malformed escapes, for text that is not UTF-8, for control characters and
    /// for `.` and `..` as segments: no name in this API is one of those, and nothing further in has
    /// to think about them.
    pub fn parse(raw: &str) -> Result<Self, Unservable> {
        if !escapes_are_whole(raw) {
            return Err(Unservable);
        }
        let decoded = percent_decode_str(raw).decode_utf8().map_err(|_| Unservable)?;
        if !decoded.starts_with('/')
            || decoded.chars().any(char::is_control)
            || decoded.split('/').any(|segment| matches!(segment, "." | ".."))
        {
            return Err(Unservable);
        }
        let decoded = collapse(&decoded);
        Ok(match split_version(&decoded) {
            Some((version, path)) => {
                Self { version: Some(version.to_owned()), path: path.to_owned() }
            }
            None => Self { version: None, path: decoded.into_owned() },
        })
    }

    /// The segments after the leading slash.
    #[must_use]
    pub fn segments(&self) -> Vec<&str> {
        self.path.strip_prefix('/').unwrap_or(&self.path).split('/').collect()
    }
}

/// Several slashes in a row as one. The reference engine redirects to such a path instead, which
/// clients follow; some of them put a name with its leading slash into a path.
fn collapse(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut collapsed = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !collapsed.ends_with('/') {
            collapsed.push(letter);
        }
    }
    Cow::Owned(collapsed)
}

/// Every `%` is followed by two hexadecimal digits.
fn escapes_are_whole(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| {
        let digit = |n: usize| bytes.get(at + n).is_some_and(u8::is_ascii_hexdigit);
        digit(1) && digit(2)
    })
}

/// `/v1.41/x` is `1.41` and `/x`. Source: the reference engine's `/v{version:[0-9.]+}` prefix.
fn split_version(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v")?;
    let slash = rest.find('/')?;
    let (version, path) = rest.split_at(slash);
    let is_version =
        !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    is_version.then_some((version, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_path_come_apart() {
        let cases = [
            ("/v1.41/containers/json", Some("1.41"), "/containers/json"),
            ("/volumes", None, "/volumes"),
            ("/v1.41", None, "/v1.41"),
            ("/vx/a", None, "/vx/a"),
            ("/v1..2/a", Some("1..2"), "/a"),
            ("/images/a%2Fb:c%40d/json", None, "/images/a/b:c@d/json"),
            ("/v1.41/networks/", Some("1.41"), "/networks/"),
            ("//v1.41//containers//name/json", Some("1.41"), "/containers/name/json"),
        ];
        for (raw, version, path) in cases {
            let parsed = RequestPath::parse(raw).unwrap();
            assert_eq!((parsed.version.as_deref(), parsed.path.as_str()), (version, path), "{raw}");
        }
        assert_eq!(RequestPath::parse("/networks/").unwrap().segments(), ["networks", ""]);
    }

    #[test]
    fn tricks_are_not_served() {
        for raw in ["/a/../b", "/a/%2e%2e/b", "/./a", "/a%", "/a%4", "/a%zz", "/%ff", "/a%00b", "*"]
        {
            assert_eq!(RequestPath::parse(raw), Err(Unservable), "{raw}");
        }
    }
}
