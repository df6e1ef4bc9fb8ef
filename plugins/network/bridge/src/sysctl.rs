//! Kernel settings below `/proc/sys/net`, of the calling thread's network namespace.

use std::fs;

use gantry_sdk::{Error, Result};

/// The setting `name`, such as `ipv4/ip_forward`; `None` if this kernel has none of that name.
pub(crate) fn read(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|text| text.trim().to_owned())
}

/// Makes the setting `value`; returns whether it was something else before.
///
/// # Errors
///
/// `Unavailable` naming the setting: `/proc/sys` is read-only, or there is no such setting.
pub(crate) fn ensure(name: &str, value: &str) -> Result<bool> {
    if read(name).as_deref() == Some(value) {
        return Ok(false);
    }
    fs::write(path(name), value).map(|()| true).map_err(|e| {
        let setting = format!("net.{}", name.replace('/', "."));
        Error::unavailable(format!("cannot set the kernel parameter {setting} to {value}"))
            .caused_by(e)
    })
}

fn path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}
