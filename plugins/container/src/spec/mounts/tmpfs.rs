//! File systems in memory.

use gantry_sdk::api::TmpfsOptions;
use gantry_sdk::{Error, Result};

use super::{PROPAGATIONS, object::check_target};

/// Flags by the bit they set or clear. Source: mount(8). `bind` and `remount` are left out: what they
/// ask for is no tmpfs.
const FLAGS: [(&str, u8); 21] = [
    ("ro", 0),
    ("rw", 0),
    ("suid", 1),
    ("nosuid", 1),
    ("dev", 2),
    ("nodev", 2),
    ("exec", 3),
    ("noexec", 3),
    ("sync", 4),
    ("async", 4),
    ("dirsync", 5),
    ("mand", 7),
    ("nomand", 7),
    ("atime", 8),
    ("noatime", 8),
    ("diratime", 9),
    ("nodiratime", 9),
    ("relatime", 14),
    ("norelatime", 14),
    ("strictatime", 15),
    ("nostrictatime", 15),
];

/// Options with a value. Source: tmpfs(5).
const VALUES: [&str; 8] = ["", "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

/// Stands for all ways of spreading, of which a mount has one.
const SPREADING: u8 = u8::MAX;

fn flag_of(option: &str) -> Option<u8> {
    if PROPAGATIONS.contains(&option) || matches!(option, "unbindable" | "runbindable") {
        return Some(SPREADING);
    }
    FLAGS.iter().find(|(name, _)| *name == option).map(|(_, bit)| *bit)
}

/// Options of a tmpfs with each thing said once: the last word counts.
///
/// # Errors
///
/// `InvalidArgument`: no option of a tmpfs.
pub fn merge_options<'a>(options: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut seen_flags = Vec::new();
    let mut seen_values = Vec::new();
    let mut merged = Vec::new();
    for option in options.iter().rev().copied().filter(|option| *option != "defaults") {
        if let Some(bit) = flag_of(option) {
            if !seen_flags.contains(&bit) {
                seen_flags.push(bit);
                merged.push(option);
            }
            continue;
        }
        let (name, has_value) =
            option.split_once('=').map_or((option, false), |(name, _)| (name, true));
        if !has_value || !VALUES.contains(&name) {
            return Err(Error::invalid(format!("invalid tmpfs option \"{name}\"")));
        }
        if !seen_values.contains(&name) {
            seen_values.push(name);
            merged.push(option);
        }
    }
    merged.reverse();
    Ok(merged)
}

/// Whether a tmpfs can be at `destination`.
///
/// # Errors
///
/// `InvalidArgument`: the root, or not absolute.
pub fn check_destination(destination: &str) -> Result<()> {
    check_target(destination).map_err(Error::invalid)
}

/// The options of a `Mount` object as comma-separated text.
///
/// # Errors
///
/// The reason, for a message: an option other than `exec` and `noexec`.
pub fn options_text(options: Option<&TmpfsOptions>, read_only: bool) -> Result<String, String> {
    let mut words = Vec::new();
    if read_only {
        words.push("ro".to_owned());
    }
    let Some(options) = options else { return Ok(words.join(",")) };
    if options.mode != 0 {
        words.push(format!("mode={:o}", options.mode));
    }
    if options.size_bytes != 0 {
        let units = [("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10), ("", 1)];
        let fitting = units.into_iter().find(|(_, unit)| options.size_bytes % unit == 0);
        let (suffix, unit) = fitting.unwrap_or(("", 1));
        words.push(format!("size={}{suffix}", options.size_bytes / unit));
    }
    for option in &options.options {
        let word = match &option[..] {
            [name] => name.clone(),
            [name, value] => format!("{name}={value}"),
            _ => return Err("invalid option array length".into()),
        };
        if !matches!(option[0].as_str(), "exec" | "noexec") {
            return Err(format!("invalid option: {}", option[0]));
        }
        words.push(word);
    }
    Ok(words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let cases: [(&[&str], &[&str]); 5] = [
            (&["noexec", "nosuid", "exec"], &["nosuid", "exec"]),
            (&["rprivate", "shared", "size=1m", "size=2m"], &["shared", "size=2m"]),
            (&["defaults", "ro", "rw", "mode=1777"], &["rw", "mode=1777"]),
            (&["uid=1", "gid=2", "nr_inodes=3"], &["uid=1", "gid=2", "nr_inodes=3"]),
            (&[], &[]),
        ];
        for (options, expected) in cases {
            assert_eq!(merge_options(options).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for (option, name) in
            [("size", "size"), ("huge=always", "huge"), ("bind", "bind"), ("x", "x"), ("", "")]
        {
            let error = merge_options(&[option]).unwrap_err().to_string();
            assert_eq!(error, format!("invalid tmpfs option \"{name}\""));
        }
    }

    #[test]
    fn sizes_get_the_largest_unit() {
        let size = |size_bytes| {
            options_text(Some(&TmpfsOptions { size_bytes, ..TmpfsOptions::default() }), false)
        };
        let cases = [(1 << 30, "size=1g"), (3 << 19, "size=1536k"), (1000, "size=1000")];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes).unwrap(), expected);
        }
        assert_eq!(options_text(None, true).unwrap(), "ro");
        assert_eq!(options_text(None, false).unwrap(), "");
    }
}
