//! Names of images: `busybox`, `host:5000/team/app:1.2`, `busybox@sha256:…`.
//!
//! Source of the grammar and of the familiar forms: the *distribution* reference format
//! (`domain/path[:tag][@digest]`); the error texts are those its users know.

use std::fmt;

use crate::{Error, Result};

/// Where names without a domain live.
const DEFAULT_DOMAIN: &str = "docker.io";
/// An older name of the same place.
const LEGACY_DOMAIN: &str = "index.docker.io";
/// The path prefix of names without a slash there.
const OFFICIAL: &str = "library/";
/// The tag of a name without one.
const DEFAULT_TAG: &str = "latest";
/// Most characters of the path.
const MAX_PATH: usize = 255;
/// Far above any valid reference; longer text is not looked at.
const MAX_TEXT: usize = 4096;

/// A name with at most a tag and a digest, in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry; empty for names whose first part cannot be one.
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// What text that may also be an id means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyReference {
    /// A digest, with its algorithm.
    Digest(String),
    /// A name.
    Named(Reference),
}

impl AnyReference {
    /// Parses an id of 64 digits, a digest or a name.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        if is_identifier(text) {
            return Ok(Self::Digest(format!("sha256:{text}")));
        }
        if check_digest(text).is_ok() {
            return Ok(Self::Digest(text.to_owned()));
        }
        Reference::parse(text).map(Self::Named)
    }

    /// As it is shown in "no such image".
    pub fn familiar(&self) -> String {
        match self {
            Self::Digest(digest) => digest.clone(),
            Self::Named(reference) => reference.clone().or_latest().familiar(),
        }
    }
}

impl Reference {
    /// Parses a name as users write it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_TEXT {
            return Err(invalid_format());
        }
        if is_identifier(text) {
            return Err(Error::invalid(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (domain, remainder) = split_domain(text);
        let remote = remainder.split(':').next().unwrap_or_default();
        if remote.chars().any(char::is_uppercase) {
            return Err(Error::invalid(format!(
                "invalid reference format: repository name ({remote}) must be lowercase"
            )));
        }
        let whole = format!("{domain}/{remainder}");
        match Self::parse_canonical(&whole)? {
            Some(reference) => Ok(reference),
            None if matches!(Self::parse_canonical(&whole.to_lowercase()), Ok(Some(_))) => {
                Err(Error::invalid("repository name must be lowercase"))
            }
            None => Err(invalid_format()),
        }
    }

    /// From the `repo` and `tag` parameters of a request; None without `repo`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, also for a name with a digest.
    pub fn from_repo_and_tag(repo: &str, tag: &str) -> Result<Option<Self>> {
        if repo.is_empty() {
            return Ok(None);
        }
        let mut reference = Self::parse(repo)?;
        if reference.digest.is_some() {
            return Err(Error::invalid("cannot import digest reference"));
        }
        if !tag.is_empty() {
            if !is_tag(tag) {
                return Err(Error::invalid("invalid tag format"));
            }
            reference.tag = Some(tag.to_owned());
        }
        Ok(Some(reference.or_latest()))
    }

    /// None if the text is not of the form `domain/path[:tag][@digest]`.
    fn parse_canonical(text: &str) -> Result<Option<Self>> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) || digest.is_some_and(|d| !looks_like_digest(d)) {
            return Ok(None);
        }
        let (domain, path) = match name.split_once('/') {
            Some((domain, path)) if is_domain(domain) && is_path(path) => (domain, path),
            _ if is_path(name) => ("", name),
            _ => return Ok(None),
        };
        if path.len() > MAX_PATH {
            return Err(Error::invalid(format!(
                "repository name must not be more than {MAX_PATH} characters"
            )));
        }
        if let Some(digest) = digest {
            check_digest(digest).map_err(Error::invalid)?;
        }
        Ok(Some(Self {
            domain: domain.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        }))
    }

    /// The repository in canonical form, `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        if self.domain.is_empty() {
            self.path.clone()
        } else {
            format!("{}/{}", self.domain, self.path)
        }
    }

    /// The registry, `docker.io` for names without one; empty for names whose first part cannot be one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry, `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The repository as users know it, `busybox`.
    pub fn familiar_name(&self) -> String {
        // Without the registry, a path such as `a.b/c` would mean another one.
        let first = self.path.split_once('/').map(|(first, _)| first);
        let is_taken_for_domain = |first: &str| first == "localhost" || first.contains('.');
        if self.domain != DEFAULT_DOMAIN || first.is_some_and(is_taken_for_domain) {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as users know it, `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.joined(self.familiar_name())
    }

    fn joined(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest);
        }
        text
    }

    /// The same repository at `tag`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`.
    pub fn at_tag(&self, tag: &str) -> Result<Self> {
        if !is_tag(tag) {
            return Err(Error::invalid("invalid tag format"));
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, with its algorithm, if there is one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Whether it is bound to a digest.
    pub fn is_digested(&self) -> bool {
        self.digest.is_some()
    }

    /// Whether it has neither tag nor digest.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// With the default tag if it is a name only.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// As it is stored: with a tag or a digest; of both, the digest.
    #[must_use]
    pub fn stored(mut self) -> Self {
        if self.digest.is_some() {
            self.tag = None;
        }
        self.or_latest()
    }

    /// The same repository at `digest`.
    #[must_use]
    pub fn at_digest(&self, digest: &crate::id::Digest) -> Self {
        Self { tag: None, digest: Some(digest.to_string()), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    /// The canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.joined(self.name()))
    }
}

fn invalid_format() -> Error {
    Error::invalid("invalid reference format")
}

/// Splits off what must be a registry; names without one get the default.
fn split_domain(text: &str) -> (&str, String) {
    let (domain, path) = match text.split_once('/') {
        None => return (DEFAULT_DOMAIN, format!("{OFFICIAL}{text}")),
        Some((LEGACY_DOMAIN, path)) => (DEFAULT_DOMAIN, path),
        Some((first, path))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(char::is_uppercase) =>
        {
            (first, path)
        }
        Some(_) => (DEFAULT_DOMAIN, text),
    };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        (domain, format!("{OFFICIAL}{path}"))
    } else {
        (domain, path.to_owned())
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}

/// `host[:port]`.
fn is_domain(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let digits = |b: u8| b.is_ascii_hexdigit() || b == b':';
        let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return !address.is_empty() && address.bytes().all(digits) && port_ok;
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return false;
    }
    text.split(alphanumeric).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
    })
}

/// What the grammar of references takes for a digest.
fn looks_like_digest(text: &str) -> bool {
    let Some((algorithm, value)) = text.split_once(':') else { return false };
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphabetic())
            && p.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(part)
        && value.len() >= 32
        && value.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether it is a digest of an algorithm in use.
fn check_digest(text: &str) -> Result<(), &'static str> {
    let Some((algorithm, value)) = text.split_once(':') else {
        return Err("invalid checksum digest format");
    };
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("unsupported digest algorithm"),
    };
    if value.len() != digits {
        return Err("invalid checksum digest length");
    }
    if !value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("invalid checksum digest format");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn familiar_and_canonical_forms() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("busybox", "docker.io/library/busybox", "busybox"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("team/app", "docker.io/team/app", "team/app"),
            ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("host:5000/app:v1", "host:5000/app:v1", "host:5000/app:v1"),
            ("quay.io/a/b", "quay.io/a/b", "quay.io/a/b"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("Upper/app", "Upper/app", "Upper/app"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("foo__bar--baz", "docker.io/library/foo__bar--baz", "foo__bar--baz"),
            ("a:Tag_1.2-x", "docker.io/library/a:Tag_1.2-x", "a:Tag_1.2-x"),
        ];
        for (text, canonical, familiar) in cases {
            let parsed = Reference::parse(text).unwrap();
            assert_eq!(
                (parsed.to_string(), parsed.familiar()),
                (canonical.into(), familiar.into())
            );
            assert_eq!(Reference::parse(canonical).unwrap(), parsed, "{text}");
        }
        let both = Reference::parse(&format!("busybox:1@{digest}")).unwrap();
        assert_eq!(both.clone().stored().familiar(), format!("busybox@{digest}"));
        assert!(both.is_digested() && both.tag() == Some("1"));
    }

    #[test]
    fn errors_have_the_texts_clients_know() {
        let long = "a".repeat(256);
        let identifier = "a".repeat(64);
        let cases = [
            ("", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a:b:c", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("a@sha256:short", "invalid reference format"),
            ("ä", "invalid reference format"),
            ("Busy", "invalid reference format: repository name (library/Busy) must be lowercase"),
            ("a/B:x", "invalid reference format: repository name (a/B) must be lowercase"),
            (long.as_str(), "repository name must not be more than 255 characters"),
            (
                identifier.as_str(),
                &format!(
                    "invalid repository name ({identifier}), cannot specify 64-byte hexadecimal strings"
                ),
            ),
        ];
        for (text, message) in cases {
            assert_eq!(Reference::parse(text).unwrap_err().to_string(), message, "{text:?}");
        }
    }

    #[test]
    fn ids_and_digests_are_told_from_names() {
        let hex = "0".repeat(64);
        let digest = AnyReference::Digest(format!("sha256:{hex}"));
        assert_eq!(AnyReference::parse(&hex).unwrap(), digest);
        assert_eq!(AnyReference::parse(&format!("sha256:{hex}")).unwrap(), digest);
        assert_eq!(AnyReference::parse("abc").unwrap().familiar(), "abc:latest");
    }

    #[test]
    fn repo_and_tag_of_requests() {
        let of = |repo, tag| Reference::from_repo_and_tag(repo, tag);
        assert_eq!(of("", "x").unwrap(), None);
        assert_eq!(of("a", "").unwrap().unwrap().familiar(), "a:latest");
        assert_eq!(of("a:1", "2").unwrap().unwrap().familiar(), "a:2");
        assert_eq!(of("a", "x/y").unwrap_err().to_string(), "invalid tag format");
        let digest = format!("a@sha256:{}", "a".repeat(64));
        assert_eq!(of(&digest, "").unwrap_err().to_string(), "cannot import digest reference");
    }

    proptest::proptest! {
        /// Whatever parses means itself in both forms, and nothing panics.
        #[test]
        fn forms_round_trip(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.to_string()).unwrap();
                proptest::prop_assert_eq!(&again.to_string(), &reference.to_string());
                let familiar = Reference::parse(&reference.familiar()).unwrap();
                proptest::prop_assert_eq!(familiar, reference);
            }
        }

        #[test]
        fn any_text_is_survived(text in ".{0,60}") {
            let _ = AnyReference::parse(&text);
        }
    }
}
