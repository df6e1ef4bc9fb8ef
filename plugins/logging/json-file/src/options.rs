//! `--log-opt` of this driver.
//!
//! | option | meaning | default |
//! |---|---|---|
//! | `max-size` | rotate at this size: `10m`, decimal units | never |
//! | `max-file` | files to keep, the current one included | 1 |
//! | `compress` | gzip rotated files; needs the two above | `false` |
//! | `labels`, `labels-regex` | container labels that go into each line | none |
//! | `env`, `env-regex` | environment variables that go into each line | none |
//! | `tag` | text that goes into each line; see [`crate::attrs`] | none |
//! | `mode` | `blocking`, or `non-blocking`: drop output rather than slow the container | `blocking` |
//! | `max-buffer-size` | what may wait in `non-blocking` mode: `1m`, binary units | `1m` |
//!
//! Without `max-size` a log grows without bound, as with the reference engine: a default that drops
//! output would surprise those who rely on it. `log-opts` of the daemon sets another.
//!
//! Source: the reference engine's documentation, *JSON File logging driver*; its messages are kept
//! where clients may look at them.

use gantry_sdk::{Error, Labels, Result};
use regex_lite::{Regex, RegexBuilder};

use crate::attrs::Tag;

/// What may wait in memory in `non-blocking` mode.
const RING_BYTES: u64 = 1 << 20;
/// The most that `max-buffer-size` may ask for; it is memory of the container's parent.
const RING_MAX: u64 = 1 << 30;
/// The most bytes a compiled expression may take.
const PATTERN_BYTES: usize = 64 << 10;
/// Names that `max-file` may spread a log over; readers look for no more.
pub const MAX_FILES: u32 = 1000;

/// The options, checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of one file; 0 is no limit.
    pub max_size: u64,
    /// Files to keep, the current one included; at least 1.
    pub max_files: u32,
    /// Whether rotated files are compressed.
    pub compress: bool,
    /// Label names.
    pub labels: Vec<String>,
    /// Label names by expression.
    pub labels_regex: Option<Regex>,
    /// Variable names.
    pub env: Vec<String>,
    /// Variable names by expression.
    pub env_regex: Option<Regex>,
    /// Text for the `tag` attribute.
    pub tag: Option<Tag>,
    /// Bytes that may wait; none blocks.
    pub ring: Option<u64>,
}

impl Options {
    /// Checks `options`; every name and value counts, so a container that is created can be started.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the option.
    pub fn parse(options: &Labels) -> Result<Self> {
        let ring = ring(options)?;
        let mut parsed = Self {
            max_size: 0,
            max_files: 1,
            compress: false,
            labels: Vec::new(),
            labels_regex: None,
            env: Vec::new(),
            env_regex: None,
            tag: None,
            ring,
        };
        for (name, value) in options {
            match name.as_str() {
                "max-size" => parsed.max_size = max_size(value)?,
                "max-file" => parsed.max_files = max_files(value)?,
                "compress" => parsed.compress = boolean(name, value)?,
                "labels" => parsed.labels = names(value),
                "labels-regex" => parsed.labels_regex = expression(name, value)?,
                "env" => parsed.env = names(value),
                "env-regex" => parsed.env_regex = expression(name, value)?,
                "tag" => parsed.tag = Tag::parse(value)?,
                "mode" | "max-buffer-size" => {}
                _ => {
                    return Err(Error::invalid(format!(
                        "unknown log opt '{name}' for json-file log driver"
                    )));
                }
            }
        }
        if parsed.compress && (parsed.max_files < 2 || parsed.max_size == 0) {
            return Err(Error::invalid(
                "compress cannot be true when max-file is less than 2 or max-size is not set",
            ));
        }
        Ok(parsed)
    }
}

fn ring(options: &Labels) -> Result<Option<u64>> {
    let mode = options.get("mode").map_or("", String::as_str);
    let non_blocking = match mode {
        "" | "blocking" => false,
        "non-blocking" => true,
        _ => {
            return Err(Error::invalid(format!("logger: logging mode not supported: {mode:.80}")));
        }
    };
    let Some(text) = options.get("max-buffer-size") else {
        return Ok(non_blocking.then_some(RING_BYTES));
    };
    if !non_blocking {
        return Err(Error::invalid(
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ));
    }
    let bytes = size(text, 1024)
        .map_err(|why| Error::invalid(format!("error parsing option max-buffer-size: {why}")))?;
    if bytes > RING_MAX {
        return Err(Error::invalid(format!(
            "max-buffer-size is {bytes} bytes, the limit is {RING_MAX}"
        )));
    }
    // The reference takes 0 for its default.
    Ok(Some(if bytes == 0 { RING_BYTES } else { bytes }))
}

fn max_size(text: &str) -> Result<u64> {
    // What the reference writes into its own configuration for "no limit".
    if text == "-1" {
        return Ok(0);
    }
    match size(text, 1000) {
        Ok(0) => Err(Error::invalid("max-size must be a positive number")),
        Ok(bytes) => Ok(bytes),
        Err(why) => Err(Error::invalid(format!("invalid max-size: {why}"))),
    }
}

fn max_files(text: &str) -> Result<u32> {
    let number: i64 = text
        .parse()
        .map_err(|_| Error::invalid(format!("invalid max-file {text:.80?}: not a number")))?;
    match u32::try_from(number) {
        Ok(0) | Err(_) if number < 1 => Err(Error::invalid("max-file cannot be less than 1")),
        Ok(number) if number <= MAX_FILES => Ok(number),
        _ => Err(Error::invalid(format!("max-file is {number}, the limit is {MAX_FILES}"))),
    }
}

fn boolean(name: &str, text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Error::invalid(format!("invalid {name} {text:.80?}: not true or false"))),
    }
}

fn names(text: &str) -> Vec<String> {
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn expression(name: &str, text: &str) -> Result<Option<Regex>> {
    if text.is_empty() {
        return Ok(None);
    }
    RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES)
        .build()
        .map(Some)
        .map_err(|e| Error::invalid(format!("invalid {name} {text:.80?}")).caused_by(e))
}

/// A size with an optional unit (`k`, `mb`, `GiB`, case does not matter), each step of units being
/// `step`, as the reference engine reads it.
fn size(text: &str, step: u32) -> std::result::Result<u64, String> {
    let bad = || format!("invalid size: '{text:.80}'");
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').ok_or_else(bad)?;
    let (number, unit) = text.split_at(end + 1);
    let number: f64 = number.trim_end_matches(' ').parse().map_err(|_| bad())?;
    if !number.is_finite() || number < 0.0 {
        return Err(bad());
    }
    let unit = unit.to_ascii_lowercase();
    let mut letters = unit.chars();
    let power = match letters.next() {
        None => 0,
        Some('b') if unit.len() == 1 => 0,
        Some(letter) if matches!(letters.as_str(), "" | "b" | "ib") => match "kmgtp".find(letter) {
            Some(at) => at + 1,
            None => return Err(format!("invalid suffix: '{unit:.20}'")),
        },
        _ => return Err(format!("invalid suffix: '{unit:.20}'")),
    };
    let bytes = number * f64::from(step).powi(i32::try_from(power).unwrap_or(0));
    // Beyond what the reference's integer holds.
    if bytes >= 9.2e18 {
        return Err(bad());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 9.2e18; a fraction of a byte is dropped"
    )]
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Options> {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::parse(&options)
    }

    #[test]
    fn sizes() {
        let cases = [
            ("10m", 1000, Some(10_000_000)),
            ("10M", 1024, Some(10 << 20)),
            ("1.5k", 1000, Some(1500)),
            ("2 GiB", 1024, Some(2 << 30)),
            ("7b", 1000, Some(7)),
            ("7", 1000, Some(7)),
            ("0", 1000, Some(0)),
            ("-1", 1000, None),
            ("m", 1000, None),
            ("1x", 1000, None),
            ("1mm", 1000, None),
            ("1bb", 1000, None),
            ("", 1000, None),
            ("99999999p", 1000, None),
            ("nan", 1000, None),
        ];
        for (text, step, expected) in cases {
            assert_eq!(size(text, step).ok(), expected, "{text}");
        }
    }

    #[test]
    fn all_options_are_understood() {
        let options = parse(&[
            ("max-size", "10m"),
            ("max-file", "3"),
            ("compress", "true"),
            ("labels", "a,b"),
            ("labels-regex", "^x"),
            ("env", "A"),
            ("env-regex", "^B"),
            ("tag", "{{.Name}}"),
            ("mode", "non-blocking"),
            ("max-buffer-size", "4m"),
        ])
        .unwrap();
        assert_eq!((options.max_size, options.max_files), (10_000_000, 3));
        assert_eq!(options.ring, Some(4 << 20));
        assert_eq!(options.labels, ["a", "b"]);
        assert_eq!(parse(&[("mode", "non-blocking")]).unwrap().ring, Some(RING_BYTES));
        assert_eq!(parse(&[]).unwrap().max_size, 0);
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&[(&str, &str)], &str); 10] = [
            (&[("x", "1")], "unknown log opt 'x' for json-file log driver"),
            (&[("max-size", "0")], "max-size must be a positive number"),
            (&[("max-size", "ten")], "invalid max-size: invalid size: 'ten'"),
            (&[("max-file", "0")], "max-file cannot be less than 1"),
            (&[("max-file", "a")], "not a number"),
            (&[("compress", "true")], "compress cannot be true when max-file is less than 2"),
            (&[("mode", "fast")], "logger: logging mode not supported: fast"),
            (&[("max-buffer-size", "1m")], "only supported with 'mode=non-blocking'"),
            (&[("env-regex", "(")], "invalid env-regex"),
            (&[("tag", "{{.Nope}}")], "{{.Nope}}"),
        ];
        for (options, message) in cases {
            let error = parse(options).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
