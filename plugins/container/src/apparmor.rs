//! The AppArmor profile of containers that name none.
//!
//! Loaded by AppArmor's own program when a container first needs it, and again when somebody has
//! unloaded it meanwhile. A profile of that name that is there already, from the operator or another
//! engine, is used as it is. Without the program there is no default profile and no claim of one;
//! profiles that a client names work all the same.
//!
//! Source: apparmor.d(5), apparmor_parser(8).

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_sdk::{Error, Result};

/// The name that clients and operators know.
pub const DEFAULT_PROFILE: &str = "docker-default";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// One line for each loaded profile: its name and, in parentheses, its mode.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PROGRAMS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// How long the program may take; it normally needs a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(30);
static LOADING: Mutex<()> = Mutex::new(());
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What of its complaint is kept, in bytes.
const COMPLAINT: u64 = 4096;

/// Everything is allowed but what reaches beyond the container. Denials win over what is allowed, so
/// the paths that stay writable (`/proc/<pid>`, `/proc/sys/kernel/shm*`, `/sys/fs/cgroup`) are left out
/// of them letter by letter. It includes no other file, for the machine may have none.
const PROFILE: &str = r"
profile docker-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # Anybody outside who may send a signal ends or stops the container.
  signal (receive),
  signal (send) peer=docker-default,
  ptrace (trace,read,tracedby,readby) peer=docker-default,

  deny mount,

  deny /proc/* wkl,
  deny /proc/[^0-9s]*/** wkl,
  deny /proc/s[^y]*/** wkl,
  deny /proc/sys/[^k]** wkl,
  deny /proc/sys/k[^e]** wkl,
  deny /proc/sys/ke[^r]** wkl,
  deny /proc/sys/kernel/[^s]** wkl,
  deny /proc/sys/kernel/s[^h]** wkl,
  deny /proc/sys/kernel/sh[^m]** wkl,
  deny /proc/{kcore,sysrq-trigger} rwklx,

  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/fs/c[^g]*/** wkl,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
";

/// Whether the kernel has AppArmor switched on.
pub fn is_on() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// The default profile, if there is one or one can be loaded.
pub fn default_profile() -> Option<String> {
    if !is_on() {
        return None;
    }
    let available = is_loaded().is_ok_and(|loaded| loaded || program().is_some());
    if !available {
        tracing::warn!(
            "AppArmor is on, but {DEFAULT_PROFILE} is not loaded and apparmor_parser (package \
             apparmor) is not there to load it: containers that name no profile are unconfined."
        );
    }
    available.then(|| DEFAULT_PROFILE.to_owned())
}

/// Loads `profile` if it is the default one and not loaded. Blocking.
///
/// # Errors
///
/// `Unavailable`, with what the program said.
pub fn ensure(profile: Option<&str>) -> Result<()> {
    if profile != Some(DEFAULT_PROFILE) {
        return Ok(());
    }
    let failed = |error: io::Error| {
        let why = format!("cannot load AppArmor profile {DEFAULT_PROFILE}");
        Error::unavailable(why).caused_by(error)
    };
    // Containers that start side by side need it loaded once.
    let _turn = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if is_loaded().map_err(failed)? {
        return Ok(());
    }
    let program = program().ok_or_else(|| {
        failed(io::Error::other("the program apparmor_parser is not installed (package apparmor)"))
    })?;
    load(program).map_err(failed)?;
    tracing::info!(profile = DEFAULT_PROFILE, "Loaded the AppArmor profile of containers.");
    Ok(())
}

fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|path| Path::new(path).exists())
}

fn is_loaded() -> io::Result<bool> {
    fs::read_to_string(LOADED).map(|list| lists_default(&list))
}

fn lists_default(list: &str) -> bool {
    let is_default = |line: &str| line.strip_prefix(DEFAULT_PROFILE).is_some_and(is_mode);
    list.lines().any(is_default)
}

fn is_mode(rest: &str) -> bool {
    rest.starts_with(" (")
}

/// Compiles and loads the profile, without looking at or leaving anything in the cache.
fn load(program: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(["--skip-cache", "--replace", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // If it ended early the write fails; its own words below say more than EPIPE.
        let _ = input.write_all(PROFILE.as_bytes());
    }
    let status = wait(&mut child)?;
    if status.success() {
        return Ok(());
    }
    let mut complaint = Vec::new();
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(COMPLAINT).read_to_end(&mut complaint);
    }
    let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
    Err(io::Error::other(format!("apparmor_parser ended with {status}: {complaint}")))
}

fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            let _ = child.kill(); // it may have ended just now
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "apparmor_parser takes too long"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_profiles_are_recognised_by_their_whole_name() {
        for (list, loaded) in [
            ("", false),
            ("docker-default (enforce)\n", true),
            ("lsb_release (enforce)\ndocker-default (complain)\n", true),
            ("docker-default-2 (enforce)\ndocker-default//hat (enforce)\n", false),
        ] {
            assert_eq!(lists_default(list), loaded, "{list:?}");
        }
    }

    #[test]
    fn other_profiles_are_the_operators_own() {
        for other in [None, Some("unconfined"), Some("mine")] {
            ensure(other).unwrap();
        }
    }

    /// The profile as AppArmor's own program reads it, where it is installed; nothing is loaded.
    #[test]
    fn the_profile_is_well_formed() {
        let Some(program) = program() else {
            return eprintln!("skipped: needs apparmor_parser");
        };
        let mut child = Command::new(program)
            .args(["--skip-kernel-load", "--skip-cache"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(PROFILE.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
