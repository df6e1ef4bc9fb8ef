//! `--security-opt`.

use gantry_sdk::{Error, Result};

use super::HostFacts;

/// What the security options of a container say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// Nothing the container runs gains privileges.
    pub no_new_privileges: bool,
    /// AppArmor profile; empty for the default.
    pub apparmor: String,
    /// Seccomp profile: empty for the daemon's, `builtin`, `unconfined`, or a profile's text.
    pub seccomp: String,
    /// Whether the cgroup file system is writable; `None` leaves it to privileged.
    pub writable_cgroups: Option<bool>,
    /// `systempaths=unconfined`: nothing is masked or made read-only.
    pub unconfined_paths: bool,
    /// SELinux labels. Without effect on a daemon that has SELinux off, as with the reference.
    pub labels: Vec<String>,
}

impl SecurityOptions {
    /// Reads the options; `no_new_privileges` is the daemon's default.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not an option.
    pub fn parse(options: &[String], no_new_privileges: bool) -> Result<Self> {
        let mut result = Self { no_new_privileges, ..Self::default() };
        for option in options {
            result.read(option)?;
        }
        Ok(result)
    }

    /// The AppArmor profile of a container with these options; `None` where AppArmor is off, which was
    /// said at creation, or where there is no default.
    pub fn apparmor_profile(&self, privileged: bool, facts: &HostFacts) -> Option<String> {
        match self.apparmor.as_str() {
            _ if !facts.apparmor => None,
            "" if privileged => Some("unconfined".into()),
            "" => facts.apparmor_profile.clone(),
            profile => Some(profile.into()),
        }
    }

    fn read(&mut self, option: &str) -> Result<()> {
        match option {
            "no-new-privileges" => self.no_new_privileges = true,
            "writable-cgroups" => self.writable_cgroups = Some(true),
            "disable" => self.labels.push("disable".into()),
            _ => return self.read_pair(option),
        }
        Ok(())
    }

    fn read_pair(&mut self, option: &str) -> Result<()> {
        let separator = if option.contains('=') { '=' } else { ':' };
        let Some((name, value)) = option.split_once(separator) else {
            return Err(Error::invalid(format!("invalid --security-opt 1: {option:?}")));
        };
        let invalid = || Error::invalid(format!("invalid --security-opt 2: {option:?}"));
        match name {
            "label" => self.labels.push(value.into()),
            "apparmor" => self.apparmor = value.into(),
            "seccomp" => self.seccomp = value.into(),
            "no-new-privileges" => {
                self.no_new_privileges = parse_bool(value).ok_or_else(invalid)?;
            }
            "writable-cgroups" => {
                self.writable_cgroups = Some(parse_bool(value).ok_or_else(invalid)?);
            }
            "systempaths" if value == "unconfined" => self.unconfined_paths = true,
            _ => return Err(invalid()),
        }
        Ok(())
    }
}

/// The words Go takes for truth, which clients send.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A seccomp profile to be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeccompProfile<'a> {
    /// The built-in one.
    Default,
    /// Text in the form of the reference's profiles.
    Json(&'a str),
}

/// Which profile a container runs under; `None` for no filter.
///
/// `default` is the daemon's: `builtin`, `unconfined`, empty, or a profile's text. A privileged
/// container gets a filter only if it asks for one.
///
/// # Errors
///
/// `InvalidArgument`: a profile on a kernel without seccomp.
pub fn seccomp_profile<'a>(
    asked: &'a str,
    privileged: bool,
    default: &'a str,
    supported: bool,
) -> Result<Option<SeccompProfile<'a>>> {
    let named = |profile: &'a str| match profile {
        "unconfined" => None,
        "builtin" | "" => Some(SeccompProfile::Default),
        text => Some(SeccompProfile::Json(text)),
    };
    match asked {
        "unconfined" => Ok(None),
        "" if privileged => Ok(None),
        _ if !supported => match asked {
            "" | "builtin" => Ok(None),
            _ => Err(Error::invalid(
                "seccomp is not enabled in your kernel, cannot run a custom seccomp profile",
            )),
        },
        "" => Ok(named(default)),
        _ => Ok(named(asked)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<SecurityOptions> {
        let options: Vec<_> = options.iter().map(|s| (*s).to_owned()).collect();
        SecurityOptions::parse(&options, false)
    }

    #[test]
    fn options_are_read() {
        let all = parse(&[
            "no-new-privileges",
            "apparmor:mine",
            "seccomp={\"a\":1}",
            "label=disable",
            "label:level:s0",
            "systempaths=unconfined",
            "writable-cgroups=false",
        ])
        .unwrap();
        assert!(all.no_new_privileges && all.unconfined_paths);
        assert_eq!(all.apparmor, "mine");
        assert_eq!(all.seccomp, "{\"a\":1}");
        assert_eq!(all.labels, ["disable", "level:s0"]);
        assert_eq!(all.writable_cgroups, Some(false));
        assert!(parse(&["no-new-privileges=1"]).unwrap().no_new_privileges);

        let off = SecurityOptions::parse(&["no-new-privileges:false".into()], true).unwrap();
        assert!(!off.no_new_privileges);
    }

    #[test]
    fn mistakes_are_told_as_the_reference_does() {
        let cases = [
            ("fly", "invalid --security-opt 1: \"fly\""),
            ("fly=high", "invalid --security-opt 2: \"fly=high\""),
            ("no-new-privileges=x", "invalid --security-opt 2: \"no-new-privileges=x\""),
            ("systempaths=some", "invalid --security-opt 2: \"systempaths=some\""),
        ];
        for (option, expected) in cases {
            assert_eq!(parse(&[option]).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn which_seccomp_profile() {
        use SeccompProfile::{Default, Json};
        let cases = [
            ("", false, "builtin", true, Ok(Some(Default))),
            ("", false, "unconfined", true, Ok(None)),
            ("", false, "{}", true, Ok(Some(Json("{}")))),
            ("builtin", false, "unconfined", true, Ok(Some(Default))),
            ("{1}", false, "builtin", true, Ok(Some(Json("{1}")))),
            ("unconfined", false, "builtin", true, Ok(None)),
            ("", true, "builtin", true, Ok(None)),
            ("{1}", true, "builtin", true, Ok(Some(Json("{1}")))),
            ("", false, "builtin", false, Ok(None)),
            ("{1}", false, "builtin", false, Err(())),
        ];
        for (asked, privileged, default, supported, expected) in cases {
            let found = seccomp_profile(asked, privileged, default, supported).map_err(|_| ());
            assert_eq!(found, expected, "{asked:?} {privileged} {default:?} {supported}");
        }
    }
}
