//! API versions: which are served, and the texts for those that are not.

use gantry_sdk::ApiVersion;

/// The newest API version.
pub const NEWEST: ApiVersion = ApiVersion::MAX;
/// The oldest version that can be configured at all.
pub const FLOOR: ApiVersion = ApiVersion::MIN;
/// The oldest version served when nothing is configured. Ours is the floor: old clients cost one
/// transformer per version, and the reference engine's higher default broke many of them.
pub const DEFAULT_MIN: ApiVersion = ApiVersion::MIN;

/// A version that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reference engine's words.
    pub message: String,
    /// Clients older than the floor get plain text: they would print JSON as it is.
    pub plain_text: bool,
}

/// The version that a path asks for; without a prefix it is the newest.
///
/// Compared number by number, as the reference engine does: a part that is missing or no number
/// counts as 0.
///
/// # Errors
///
/// [`Refused`] for a version outside `min` to [`NEWEST`].
pub fn negotiate(prefix: Option<&str>, min: ApiVersion) -> Result<ApiVersion, Refused> {
    let Some(text) = prefix else { return Ok(NEWEST) };
    let parts = parts(text);
    let plain_text = parts < pair(FLOOR);
    if parts < pair(min) {
        return Err(Refused {
            message: format!(
                "client version {text} is too old. Minimum supported API version is {min}, please \
                 upgrade your client to a newer version"
            ),
            plain_text,
        });
    }
    if parts > pair(NEWEST) {
        return Err(Refused {
            message: format!(
                "client version {text} is too new. Maximum supported API version is {NEWEST}"
            ),
            plain_text,
        });
    }
    // Between the floor and the newest, so the first number is 1.
    let minor = parts.get(1).copied().unwrap_or_default();
    Ok(ApiVersion::v1(u16::try_from(minor).unwrap_or(u16::MAX)))
}

fn parts(text: &str) -> Vec<u64> {
    let mut parts: Vec<u64> = text.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    while parts.last() == Some(&0) {
        parts.pop();
    }
    parts
}

fn pair(version: ApiVersion) -> Vec<u64> {
    parts(&version.to_string())
}

/// A configured minimum.
///
/// # Errors
///
/// The reference engine's words for what cannot be one.
pub fn minimum(text: &str) -> Result<ApiVersion, String> {
    if text.is_empty() {
        return Err("value is empty".to_owned());
    }
    if text.starts_with(['v', 'V']) {
        return Err("API version must be provided without \"v\" prefix".to_owned());
    }
    if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!("invalid API version: {text}"));
    }
    if parts(text) < pair(FLOOR) {
        return Err(format!("minimum supported API version is {FLOOR}: {text}"));
    }
    if parts(text) > pair(NEWEST) {
        return Err(format!("maximum supported API version is {NEWEST}: {text}"));
    }
    negotiate(Some(text), FLOOR).map_err(|refused| refused.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_outside_the_window_are_refused_in_the_known_words() {
        let min = ApiVersion::v1(30);
        assert_eq!(negotiate(None, min), Ok(NEWEST));
        assert_eq!(negotiate(Some("1.30"), min), Ok(min));
        assert_eq!(negotiate(Some("1.30.0"), min), Ok(min));
        let old = negotiate(Some("1.29"), min).unwrap_err();
        assert_eq!(
            old.message,
            "client version 1.29 is too old. Minimum supported API version is 1.30, please upgrade \
             your client to a newer version"
        );
        assert!(!old.plain_text);
        assert!(negotiate(Some("1.12"), min).unwrap_err().plain_text);
        let new = negotiate(Some("1.999"), min).unwrap_err();
        assert!(new.message.starts_with("client version 1.999 is too new. Maximum supported"));
        assert!(negotiate(Some("..."), min).unwrap_err().message.contains("too old"));
        assert!(negotiate(Some("99999999999999999999999.1"), min).is_err());
    }

    #[test]
    fn a_minimum_is_checked() {
        assert_eq!(minimum("1.40"), Ok(ApiVersion::v1(40)));
        for bad in ["", "v1.40", "1.10", "9.9", "x"] {
            assert!(minimum(bad).is_err(), "{bad}");
        }
    }
}
