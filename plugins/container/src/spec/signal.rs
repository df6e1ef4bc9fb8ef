//! Signals by name and number.

use gantry_sdk::{Error, Result};

/// The signal that asks a container to stop, unless image or user name another: `SIGTERM`.
pub const DEFAULT_STOP_SIGNAL: i32 = 15;

// What is left to programs, after glibc has taken the first two. Source: signal(7).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names without `SIG`. Source: signal(7), x86 and ARM.
const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The number of a signal: `9`, `KILL`, `sigkill`, `RTMIN+3`, `SIGRTMAX-1`.
///
/// # Errors
///
/// `InvalidArgument`: no such signal.
pub fn parse(text: &str) -> Result<i32> {
    let invalid = || Error::invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    real_time(name).ok_or_else(invalid)
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |rest: &str, sign: char, most: i32| match rest {
        "" => Some(0),
        _ => rest.strip_prefix(sign)?.parse().ok().filter(|n| (1..=most).contains(n)),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(RTMIN + offset(rest, '+', 15)?);
    }
    Some(RTMAX - offset(name.strip_prefix("RTMAX")?, '-', 14)?)
}

/// The signal that asks a container to stop, from its configuration.
///
/// # Errors
///
/// As [`parse`].
pub fn stop_signal(configured: &str) -> Result<i32> {
    if configured.is_empty() { Ok(DEFAULT_STOP_SIGNAL) } else { parse(configured) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let cases = [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigkill", Some(9)),
            ("SIGSYS", Some(31)),
            ("RTMIN", Some(34)),
            ("sigrtmin+15", Some(49)),
            ("RTMAX-14", Some(50)),
            ("RTMAX", Some(64)),
            ("64", Some(64)),
            ("0", None),
            ("-9", None),
            ("65", None),
            ("RTMIN+16", None),
            ("RTMIN-1", None),
            ("SIG", None),
            ("", None),
            ("SIGSIGKILL", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
        assert_eq!(stop_signal("").ok(), Some(15));
        assert_eq!(parse("FLY").unwrap_err().to_string(), "invalid signal: FLY");
    }
}
