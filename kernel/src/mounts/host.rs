//! Mounts that the operator spelled out: `type`, `device` and `o` of the local volume driver.
//!
//! They may mount whatever the machine can, which is why the step has to be granted. Messages name
//! options and never their values: `password=` is one of them.

use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::Path;

use gantry_sdk::{Error, ErrorKind};
use gantry_sys::mount::{FsContext, MountAttr, MountAttrFlags, clone_tree, set_attr};
use gantry_sys::path::open_root;

use super::execute::Failure;
use super::options::{HostOptions, parse_host};

/// Makes the mount, detached.
pub(super) fn mount(fs_type: &str, device: &str, options: &str) -> Result<OwnedFd, Failure> {
    let options = parse_host(options).map_err(|why| Failure::Own(Error::invalid(why)))?;
    let mount =
        if options.bind { bind(device, &options)? } else { fresh(fs_type, device, &options)? };
    if let Some((propagation, recursive)) = options.propagation {
        let change =
            MountAttr { propagation: Some(propagation), recursive, ..MountAttr::default() };
        set_attr(&mount, &change)?;
    }
    Ok(mount)
}

fn bind(device: &str, options: &HostOptions) -> Result<OwnedFd, Failure> {
    // Like mount(8), a bind follows links and takes a file as well as a directory.
    let source = gantry_sys::path::open_beneath(
        open_root(Path::new("/"))?,
        Path::new(device),
        gantry_sys::path::OFlags::PATH,
        gantry_sys::path::Mode::empty(),
        gantry_sys::path::Links::InRoot,
    )?;
    let mount = clone_tree(source, options.recursive)?;
    if !options.attributes.is_empty() {
        let clears_atime = options.attributes.intersects(MountAttrFlags::MOUNT_ATTR__ATIME);
        let clear =
            if clears_atime { MountAttrFlags::MOUNT_ATTR__ATIME } else { MountAttrFlags::empty() };
        let change = MountAttr {
            set: options.attributes,
            clear,
            recursive: options.recursive,
            ..MountAttr::default()
        };
        set_attr(&mount, &change)?;
    }
    Ok(mount)
}

fn fresh(fs_type: &str, device: &str, options: &HostOptions) -> Result<OwnedFd, Failure> {
    let context = FsContext::open(fs_type)?;
    if !device.is_empty() {
        context.set_string("source", device)?;
    }
    for word in &options.common {
        context.set_flag(word)?;
    }
    for (name, value) in &options.data {
        match value.as_deref() {
            Some(host) if name == "addr" && is_network(fs_type) => {
                context.set_string(name, address(host)?.to_string())?;
            }
            Some(value) => context.set_string(name, value)?,
            None => context.set_flag(name)?,
        }
    }
    context.create()?;
    Ok(context.mount(options.attributes)?)
}

/// File systems whose `addr=` is a numeric address to the kernel, where mount(8) has helpers that
/// resolve names.
fn is_network(fs_type: &str) -> bool {
    matches!(fs_type, "nfs" | "nfs4" | "cifs" | "smb3")
}

fn address(host: &str) -> Result<IpAddr, Failure> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let failed = |error: std::io::Error| {
        let message = format!("cannot resolve {host:?}");
        Failure::Own(Error::new(ErrorKind::Unavailable, message).caused_by(error))
    };
    let mut found = (bare, 0).to_socket_addrs().map_err(failed)?;
    let none = || failed(std::io::ErrorKind::NotFound.into());
    found.next().map(|address| address.ip()).ok_or_else(none)
}
