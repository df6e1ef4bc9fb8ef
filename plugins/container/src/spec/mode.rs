//! Namespace modes: what `--network`, `--ipc`, `--pid`, `--uts`, `--userns` and `--cgroupns` say.

use gantry_sdk::{Error, Result};

/// The other container in `container:<name or id>`.
fn shared_with(mode: &str) -> Option<&str> {
    mode.strip_prefix("container:")
}

/// `HostConfig.NetworkMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode<'a> {
    /// Nothing said, or `default`.
    Default,
    /// `bridge`
    Bridge,
    /// Only a loopback interface.
    None,
    /// The host's.
    Host,
    /// Another container's.
    Container(&'a str),
    /// A network by name or id.
    Named(&'a str),
}

impl<'a> NetworkMode<'a> {
    /// Reads a mode; every text is one.
    #[must_use]
    pub fn parse(mode: &'a str) -> Self {
        match mode {
            "" | "default" => Self::Default,
            "bridge" => Self::Bridge,
            "none" => Self::None,
            "host" => Self::Host,
            _ => shared_with(mode).map_or(Self::Named(mode), Self::Container),
        }
    }

    /// Whether the container has a network namespace of its own.
    #[must_use]
    pub const fn is_private(self) -> bool {
        !matches!(self, Self::Host | Self::Container(_))
    }
}

/// `HostConfig.IpcMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpcMode<'a> {
    /// Nothing said: the daemon's default.
    Unset,
    /// Its own, without `/dev/shm`.
    None,
    /// Its own.
    Private,
    /// Its own, which others may join.
    Shareable,
    /// The host's.
    Host,
    /// Another container's.
    Container(&'a str),
}

impl<'a> IpcMode<'a> {
    /// Reads a mode.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not a mode.
    pub fn parse(mode: &'a str) -> Result<Self> {
        Ok(match mode {
            "" => Self::Unset,
            "none" => Self::None,
            "private" => Self::Private,
            "shareable" => Self::Shareable,
            "host" => Self::Host,
            _ => match shared_with(mode) {
                Some(other) => Self::Container(other),
                None => return Err(Error::invalid(format!("invalid IPC mode: {mode}"))),
            },
        })
    }
}

/// `HostConfig.PidMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidMode<'a> {
    /// Its own.
    Private,
    /// The host's.
    Host,
    /// Another container's.
    Container(&'a str),
}

impl<'a> PidMode<'a> {
    /// Reads a mode.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not a mode, or the other container is not named.
    pub fn parse(mode: &'a str) -> Result<Self> {
        match mode {
            "" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            _ => match shared_with(mode) {
                Some(other) if !other.is_empty() => Ok(Self::Container(other)),
                _ => Err(Error::invalid(format!("invalid PID mode: {mode}"))),
            },
        }
    }
}

/// Reads a mode that is empty or `host`; `true` for the host's.
fn is_host(what: &str, mode: &str) -> Result<bool> {
    match mode {
        "" => Ok(false),
        "host" => Ok(true),
        _ => Err(Error::invalid(format!("invalid {what} mode: {mode}"))),
    }
}

/// Whether `HostConfig.UTSMode` shares the host's name.
///
/// # Errors
///
/// `InvalidArgument`: not a mode.
pub fn shares_uts(mode: &str) -> Result<bool> {
    is_host("UTS", mode)
}

/// Whether `HostConfig.UsernsMode` asks for the host's user namespace, which every container has
/// here.
///
/// # Errors
///
/// `InvalidArgument`: not a mode.
pub fn shares_users(mode: &str) -> Result<bool> {
    is_host("user namespace", mode)
}

/// Whether `HostConfig.CgroupnsMode` asks for a cgroup namespace; `None` if it says nothing.
///
/// # Errors
///
/// `InvalidArgument`: not a mode.
pub fn private_cgroups(mode: &str) -> Result<Option<bool>> {
    match mode {
        "" => Ok(None),
        "private" => Ok(Some(true)),
        "host" => Ok(Some(false)),
        _ => Err(Error::invalid(format!("invalid cgroup namespace mode: {mode}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read() {
        assert_eq!(NetworkMode::parse("container:web"), NetworkMode::Container("web"));
        assert_eq!(NetworkMode::parse("backend"), NetworkMode::Named("backend"));
        assert!(NetworkMode::parse("none").is_private());
        assert!(!NetworkMode::parse("host").is_private());
        assert_eq!(IpcMode::parse("container:").ok(), Some(IpcMode::Container("")));
        assert_eq!(PidMode::parse("container:db").ok(), Some(PidMode::Container("db")));
    }

    #[test]
    fn what_is_no_mode_is_refused() {
        let cases = [
            (IpcMode::parse("hosts").err(), "invalid IPC mode: hosts"),
            (PidMode::parse("container:").err(), "invalid PID mode: container:"),
            (PidMode::parse("private").err(), "invalid PID mode: private"),
            (shares_uts("private").err(), "invalid UTS mode: private"),
            (shares_users("x").err(), "invalid user namespace mode: x"),
            (private_cgroups("x").err(), "invalid cgroup namespace mode: x"),
        ];
        for (error, expected) in cases {
            assert_eq!(error.map(|e| e.to_string()).as_deref(), Some(expected));
        }
    }
}
