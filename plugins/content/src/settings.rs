//! What an operator can say about content: the section `content` of `kernel-plugins`.
//!
//! ```json
//! {"retention": "drop-if-remote",
//!  "governor": {"high": "85%", "low": "75%", "partials-after": "24h", "interval": "1m"}}
//! ```

use std::fmt;
use std::time::Duration;

use gantry_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

/// The section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Which blobs of layers may go although images need them.
    pub retention: Retention,
    /// None: nothing is freed because the disk is full.
    pub governor: Option<Watermarks>,
}

impl Settings {
    /// Reads the section; null is the default.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the mistake.
    pub fn parse(section: &serde_json::Value) -> Result<Self> {
        if section.is_null() {
            return Ok(Self::default());
        }
        let settings: Self = serde_json::from_value(section.clone())
            .map_err(|e| Error::invalid("invalid configuration of content").caused_by(e))?;
        if let Some(marks) = settings.governor.filter(|marks| marks.low >= marks.high) {
            return Err(Error::invalid(format!(
                "content: governor: low ({}) must be below high ({})",
                marks.low, marks.high
            )));
        }
        Ok(settings)
    }
}

/// Which blobs of layers may go although images need them. Only blobs that came from a registry, or
/// went to one, are ever dropped; each is fetched again when it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retention {
    /// None.
    #[default]
    Keep,
    /// Those whose layers are unpacked.
    UntilUnpacked,
    /// Those that a registry is known to have.
    DropIfRemote,
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::UntilUnpacked => "until-unpacked",
            Self::DropIfRemote => "drop-if-remote",
        })
    }
}

/// When to free space, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Watermarks {
    /// Fuller than this: begin.
    pub high: Percent,
    /// No fuller than this: stop.
    pub low: Percent,
    /// Unfinished downloads go once nothing was added to them for so long.
    pub partials_after: Age,
    /// How often to look.
    pub interval: Age,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            high: Percent(85),
            low: Percent(75),
            partials_after: Age(Duration::from_secs(24 * 60 * 60)),
            interval: Age(Duration::from_secs(60)),
        }
    }
}

/// A part of a disk, from 1 to 99 hundredths; written `85%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(u8);

impl Percent {
    /// So much of `total`.
    pub fn of(self, total: u64) -> u64 {
        total / 100 * u64::from(self.0) + total % 100 * u64::from(self.0) / 100
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl TryFrom<String> for Percent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        number
            .filter(|number| (1..=99).contains(number))
            .map(Self)
            .ok_or_else(|| format!("{text:.20?} is no percentage from 1% to 99%"))
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> Self {
        percent.to_string()
    }
}

/// A span of time of at least a second; written `90s`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(pub(crate) Duration);

impl TryFrom<String> for Age {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let nanos = gantry_sdk::time::duration(&text).and_then(|n| u64::try_from(n).ok());
        nanos
            .map(Duration::from_nanos)
            .filter(|age| *age >= Duration::from_secs(1))
            .map(Self)
            .ok_or_else(|| format!("{text:.20?} is no time of at least a second, like 24h or 90s"))
    }
}

impl From<Age> for String {
    fn from(age: Age) -> Self {
        format!("{}s", age.0.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_section_is_read_and_mistakes_are_named() {
        assert_eq!(Settings::parse(&json!(null)).unwrap(), Settings::default());
        let settings = Settings::parse(&json!({
            "retention": "until-unpacked",
            "governor": {"high": "90%", "partials-after": "1h30m"}
        }));
        let settings = settings.unwrap();
        let marks = settings.governor.unwrap();
        assert_eq!(settings.retention, Retention::UntilUnpacked);
        assert_eq!((marks.high, marks.low), (Percent(90), Percent(75)));
        assert_eq!(marks.partials_after, Age(Duration::from_secs(5400)));
        for (section, part) in [
            (json!({"retention": "drop"}), "unknown variant `drop`"),
            (json!({"keep": true}), "unknown field `keep`"),
            (json!({"governor": {"high": "85"}}), "no percentage"),
            (json!({"governor": {"high": "100%"}}), "no percentage"),
            (json!({"governor": {"interval": "10ms"}}), "at least a second"),
            (json!({"governor": {"high": "50%"}}), "low (75%) must be below high (50%)"),
        ] {
            let error = Settings::parse(&section).unwrap_err().chain();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn parts_of_large_disks_do_not_overflow() {
        assert_eq!(Percent(85).of(200), 170);
        assert_eq!(Percent(99).of(u64::MAX), u64::MAX / 100 * 99 + 15 * 99 / 100);
    }
}
