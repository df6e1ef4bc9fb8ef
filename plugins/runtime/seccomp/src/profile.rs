//! Profiles: rules that depend on the host and on the container's capabilities, in the JSON form
//! that `--security-opt seccomp=…` takes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    Error,
    arch::Arch,
    filter::{Action, Arg, Filter, Flag, Syscall, or_null},
};

/// The largest profile that is read, in bytes. The default profile is 14 KiB.
pub const MAX_PROFILE_BYTES: usize = 1 << 20;
/// The most rules of a profile.
pub const MAX_RULES: usize = 4096;
/// The most names in all rules of a profile.
pub const MAX_NAMES: usize = 16_384;
/// A call has six arguments. Source: syscall(2).
const ARGUMENTS: u8 = 6;

/// A profile: rules with conditions.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// What happens to a call that no rule matches; `None` only in a profile without rules, which
    /// switches filtering off.
    #[serde(default, deserialize_with = "empty_action")]
    pub default_action: Option<Action>,
    /// The error number of the default action.
    #[serde(default)]
    pub default_errno_ret: Option<u32>,
    /// Modes that calls may be made in, whatever the host is. Excludes [`Profile::arch_map`].
    #[serde(default, deserialize_with = "or_null")]
    pub architectures: Vec<Arch>,
    /// Per host architecture, the other modes that calls may be made in.
    #[serde(default, deserialize_with = "or_null")]
    pub arch_map: Vec<ArchModes>,
    /// Flags for the load.
    #[serde(default)]
    pub flags: Option<Vec<Flag>>,
    /// Where notifications would go.
    #[serde(default, deserialize_with = "or_null")]
    pub listener_path: String,
    /// Opaque data for whoever gets the notifications.
    #[serde(default, deserialize_with = "or_null")]
    pub listener_metadata: String,
    /// The rules, in order.
    #[serde(default, deserialize_with = "or_null")]
    pub syscalls: Vec<Rule>,
}

/// An architecture and its other modes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchModes {
    /// The architecture of the host.
    pub architecture: Arch,
    /// Its other modes.
    #[serde(default, deserialize_with = "or_null")]
    pub sub_architectures: Vec<Arch>,
}

/// A rule and when it is part of the filter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// One call, as old profiles name it. Excludes [`Rule::names`].
    #[serde(default, deserialize_with = "or_null")]
    pub name: String,
    /// The calls.
    #[serde(default, deserialize_with = "or_null")]
    pub names: Vec<String>,
    /// What happens when the rule matches.
    pub action: Action,
    /// The error number that goes with the action.
    #[serde(default)]
    pub errno_ret: Option<u32>,
    /// Conditions on the arguments.
    #[serde(default, deserialize_with = "or_null")]
    pub args: Vec<Arg>,
    /// All of it must hold, or the rule is left out.
    #[serde(default, deserialize_with = "or_null")]
    pub includes: Condition,
    /// Any of it holds, and the rule is left out.
    #[serde(default, deserialize_with = "or_null")]
    pub excludes: Condition,
}

/// Facts about a container and its host. Empty parts say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Capabilities in the bounding set, with `CAP_`.
    #[serde(default, deserialize_with = "or_null")]
    pub caps: Vec<String>,
    /// Architectures, by their names in Go (`amd64`, `arm64`).
    #[serde(default, deserialize_with = "or_null")]
    pub arches: Vec<String>,
    /// The oldest kernel.
    #[serde(default, deserialize_with = "empty_version")]
    pub min_kernel: Option<KernelVersion>,
}

/// The first two numbers of a kernel's version; the rest never decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelVersion {
    /// `6` of `6.1.0-18-amd64`.
    pub version: u32,
    /// `1` of `6.1.0-18-amd64`.
    pub revision: u32,
}

impl KernelVersion {
    /// Reads the start of what uname(2) calls the release.
    #[must_use]
    pub fn from_release(release: &str) -> Option<Self> {
        let mut parts = release.splitn(3, '.');
        let version = parts.next()?.parse().ok()?;
        let rest = parts.next()?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { version, revision: rest[..digits].parse().ok()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.version, self.revision)
    }
}

impl FromStr for KernelVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::KernelVersion(text.chars().take(64).collect());
        let (version, revision) = text.split_once('.').ok_or_else(invalid)?;
        let number = |part: &str| part.parse::<u8>().map(u32::from).map_err(|_| invalid());
        let parsed = Self { version: number(version)?, revision: number(revision)? };
        if (parsed.version, parsed.revision) == (0, 0) {
            return Err(invalid());
        }
        Ok(parsed)
    }
}

/// The host that a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// Its architecture.
    pub arch: Arch,
    /// Its kernel.
    pub kernel: KernelVersion,
}

impl Profile {
    /// Reads a profile from JSON. Unknown keys are ignored, as the reference does.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::Json`] with the place of the mistake, and the checks of
    /// [`Profile::check`].
    pub fn from_json(json: &str) -> Result<Self, Error> {
        if json.len() > MAX_PROFILE_BYTES {
            return Err(Error::TooLarge { what: "bytes", limit: MAX_PROFILE_BYTES });
        }
        // Derived readers also take a list of the fields' values, which nobody means.
        if !json.trim_start().starts_with('{') {
            return Err(Error::NotAnObject);
        }
        let profile: Self = serde_json::from_str(json)?;
        profile.check()?;
        Ok(profile)
    }

    /// Whether the profile makes sense by itself.
    ///
    /// # Errors
    ///
    /// Too many rules or names, `name` beside `names`, `architectures` beside `archMap`, an argument
    /// that no call has, an error number out of range, or rules without a default action.
    pub fn check(&self) -> Result<(), Error> {
        if self.syscalls.len() > MAX_RULES {
            return Err(Error::TooLarge { what: "rules", limit: MAX_RULES });
        }
        if self.syscalls.iter().map(|rule| rule.names.len()).sum::<usize>() > MAX_NAMES {
            return Err(Error::TooLarge { what: "names", limit: MAX_NAMES });
        }
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            return Err(Error::BothArchitectures);
        }
        if self.default_action.is_none() && !self.syscalls.is_empty() {
            return Err(Error::NoDefaultAction);
        }
        check_errno(self.default_errno_ret)?;
        self.syscalls.iter().try_for_each(Rule::check)
    }

    /// The rules that hold for a container with the bounding set `capabilities` on `host`; `None`
    /// if the profile switches filtering off.
    pub fn resolve<S: AsRef<str>>(&self, capabilities: &[S], host: &Host) -> Option<Filter> {
        let default_action = self.default_action?;
        let modes = self.arch_map.iter().find(|modes| modes.architecture == host.arch);
        let mut architectures = self.architectures.clone();
        if let Some(modes) = modes {
            architectures.push(modes.architecture);
            architectures.extend(&modes.sub_architectures);
        }
        let has = |cap: &String| capabilities.iter().any(|c| c.as_ref() == cap);
        let applies =
            |rule: &&Rule| !rule.excludes.any_holds(has, host) && rule.includes.all_hold(has, host);
        Some(Filter {
            default_action,
            default_errno_ret: self.default_errno_ret,
            architectures,
            flags: self.flags.clone(),
            listener_path: self.listener_path.clone(),
            listener_metadata: self.listener_metadata.clone(),
            syscalls: self.syscalls.iter().filter(applies).map(Rule::to_syscall).collect(),
        })
    }
}

impl Rule {
    fn check(&self) -> Result<(), Error> {
        if !self.name.is_empty() && !self.names.is_empty() {
            return Err(Error::BothNames);
        }
        if self.name.is_empty() && self.names.iter().any(String::is_empty) {
            return Err(Error::EmptyName);
        }
        if let Some(arg) = self.args.iter().find(|arg| arg.index >= ARGUMENTS) {
            return Err(Error::ArgumentIndex(arg.index));
        }
        check_errno(self.errno_ret)
    }

    fn to_syscall(&self) -> Syscall {
        let names = if self.name.is_empty() { self.names.clone() } else { vec![self.name.clone()] };
        Syscall { names, action: self.action, errno_ret: self.errno_ret, args: self.args.clone() }
    }
}

impl Condition {
    fn any_holds(&self, has: impl Fn(&String) -> bool, host: &Host) -> bool {
        self.arches.iter().any(|arch| arch == host.arch.profile_name())
            || self.caps.iter().any(has)
            || self.min_kernel.is_some_and(|oldest| host.kernel >= oldest)
    }

    fn all_hold(&self, has: impl Fn(&String) -> bool, host: &Host) -> bool {
        let on_arch = self.arches.iter().any(|arch| arch == host.arch.profile_name());
        (self.arches.is_empty() || on_arch)
            && self.caps.iter().all(has)
            && self.min_kernel.is_none_or(|oldest| host.kernel >= oldest)
    }
}

/// An action's data is 16 bits wide. Source: `SECCOMP_RET_DATA` in seccomp(2).
fn check_errno(errno: Option<u32>) -> Result<(), Error> {
    match errno {
        Some(errno) if errno > u32::from(u16::MAX) => Err(Error::Errno(errno)),
        _ => Ok(()),
    }
}

fn empty_action<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Action>, D::Error> {
    match Option::<String>::deserialize(from)?.as_deref() {
        None | Some("") => Ok(None),
        Some(name) => {
            Action::deserialize(serde::de::value::StrDeserializer::<D::Error>::new(name)).map(Some)
        }
    }
}

fn empty_version<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KernelVersion>, D::Error> {
    match Option::<String>::deserialize(from)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host =
        Host { arch: Arch::X86_64, kernel: KernelVersion { version: 6, revision: 1 } };

    #[test]
    fn kernel_versions() {
        let v = |version, revision| Some(KernelVersion { version, revision });
        let releases = [
            ("6.1.0-18-amd64", v(6, 1)),
            ("3.12-1-amd64", v(3, 12)),
            ("6.18", v(6, 18)),
            ("6", None),
            ("linux", None),
        ];
        for (release, expected) in releases {
            assert_eq!(KernelVersion::from_release(release), expected, "{release}");
        }
        for text in ["4", "4.8.1", "0.0", "a.b", "4.", "256.1", "-1.2"] {
            assert!(text.parse::<KernelVersion>().is_err(), "{text}");
        }
        assert_eq!("4.8".parse::<KernelVersion>().ok(), v(4, 8));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("{", "EOF"),
            ("[]", "expected an object"),
            ("", "expected an object"),
            (r#"{"defaultAction":"SCMP_ACT_WISH"}"#, "SCMP_ACT_WISH"),
            (r#"{"syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW"}]}"#, "default action"),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],
                    "archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#,
                "both 'architectures' and 'archMap'",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO",
                    "syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}"#,
                "both 'name' and 'names'",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a",
                    "action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":65536}"#, "65536"),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a",
                    "action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4"}}]}"#,
                "<kernel>.<major>",
            ),
        ];
        for (json, expected) in cases {
            let error = Profile::from_json(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
        let huge = " ".repeat(MAX_PROFILE_BYTES + 1);
        assert!(matches!(Profile::from_json(&huge), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn an_empty_profile_switches_filtering_off() {
        for json in ["{}", r#"{"defaultAction":"","syscalls":null}"#] {
            let profile = Profile::from_json(json).unwrap();
            assert_eq!(profile.resolve::<&str>(&[], &HOST), None, "{json}");
        }
    }

    #[test]
    fn rules_follow_their_conditions() {
        let json = |condition: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                    {{"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,{condition}}}]}}"#
            )
        };
        let cases = [
            (r#""comment":"""#, true),
            (r#""includes":{}"#, true),
            (r#""includes":{"caps":["CAP_KILL"]}"#, true),
            (r#""includes":{"caps":["CAP_KILL","CAP_BPF"]}"#, false),
            (r#""includes":{"arches":["arm64","amd64"]}"#, true),
            (r#""includes":{"arches":["arm64"]}"#, false),
            (r#""includes":{"minKernel":"6.1"}"#, true),
            (r#""includes":{"minKernel":"6.2"}"#, false),
            (r#""excludes":{"caps":["CAP_BPF","CAP_KILL"]}"#, false),
            (r#""excludes":{"caps":["CAP_BPF"]}"#, true),
            (r#""excludes":{"arches":["amd64"]}"#, false),
            (r#""excludes":{"minKernel":"5.19"}"#, false),
            (r#""excludes":{"minKernel":"6.2"}"#, true),
        ];
        for (condition, expected) in cases {
            let profile = Profile::from_json(&json(condition)).unwrap();
            let filter = profile.resolve(&["CAP_KILL"], &HOST).unwrap();
            assert_eq!(!filter.syscalls.is_empty(), expected, "{condition}");
        }
    }

    #[test]
    fn the_arch_map_is_read_for_the_host_only() {
        let profile = Profile::from_json(
            r#"{"defaultAction":"SCMP_ACT_LOG","archMap":[
                {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]},
                {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]}"#,
        )
        .unwrap();
        let filter = profile.resolve::<&str>(&[], &HOST).unwrap();
        assert_eq!(filter.architectures, [Arch::X86_64, Arch::X86]);
    }
}
