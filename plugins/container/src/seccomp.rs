//! Seccomp profiles resolved for a container's capabilities, kept because most containers ask for
//! the same one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gantry_sdk::{Error, Result};
use gantry_seccomp::{Arch, Host, KernelVersion, Profile, default_profile};
use oci_spec::runtime::LinuxSeccomp;

use crate::spec::SeccompProfile;

/// Resolved profiles that are kept; more are made again each time.
const KEPT: usize = 64;

/// A profile's text and the bounding set.
type Key = (String, Vec<String>);

/// Resolved profiles.
#[derive(Debug, Default)]
pub struct Profiles(Mutex<HashMap<Key, Option<LinuxSeccomp>>>);

impl Profiles {
    /// The rules of `profile` for a bounding set; none if it switches filtering off.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a profile that cannot be read.
    pub fn resolve(
        &self,
        profile: SeccompProfile<'_>,
        capabilities: &[String],
    ) -> Result<Option<LinuxSeccomp>> {
        let text = match profile {
            SeccompProfile::Default => "",
            SeccompProfile::Json(text) => text,
        };
        let key = (text.to_owned(), capabilities.to_vec());
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(&key) {
            return Ok(found.clone());
        }
        let resolved = resolve(text, capabilities)?;
        let mut kept = lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, resolved.clone());
        Ok(resolved)
    }
}

fn resolve(text: &str, capabilities: &[String]) -> Result<Option<LinuxSeccomp>> {
    let profile = match text {
        "" => default_profile(),
        json => Profile::from_json(json)
            .map_err(|e| Error::invalid("decoding seccomp profile failed").caused_by(e))?,
    };
    let Some(filter) = profile.resolve(capabilities, &host()?) else { return Ok(None) };
    serde_json::to_value(&filter)
        .and_then(serde_json::from_value)
        .map(Some)
        .map_err(|e| Error::internal("cannot convert a seccomp filter", e))
}

fn host() -> Result<Host> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = KernelVersion::from_release(&release).ok_or_else(|| {
        Error::unsupported(format!("no seccomp filters for a kernel called {release:?}"))
    })?;
    Ok(Host { arch: Arch::native(), kernel })
}
