//! Device nodes and the customary links.

use super::mounts::parent_and_name;
use crate::status::{Context, SysContext};
use gantry_shim_protocol::{Device, DeviceKind, Failure, Launch, Stage};
use gantry_sys::mount;
use gantry_sys::path::{Links, NewDirectory, mkdir_all_beneath, open_beneath};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::path::Path;

const NEW_DIRECTORY: NewDirectory = NewDirectory { mode: 0o755, owner: None };

/// Makes the nodes, then the links that are missing.
///
/// In a user namespace nobody may make nodes, so the host's are bound instead.
pub(crate) fn make(root: BorrowedFd<'_>, launch: &Launch, own_users: bool) -> Result<(), Failure> {
    let mask = rustix::process::umask(Mode::empty());
    let made = launch.devices.iter().try_for_each(|device| {
        let (dir, name) = open_parent(root, &device.path)?;
        if own_users { bind(&dir, &name, device) } else { make_node(&dir, &name, device) }
    });
    rustix::process::umask(mask);
    made?;
    for (path, content) in &launch.links {
        // Not every kernel has it, and a link to nothing helps nobody.
        if content == KCORE && !exists(root, content) {
            continue;
        }
        let (dir, name) = open_parent(root, path)?;
        match rustix::fs::symlinkat(content.as_str(), &dir, name.as_str()) {
            Err(Errno::EXIST) => {}
            answer => answer.during(Stage::Mount, || format!("make link {path}"))?,
        }
    }
    Ok(())
}

/// What `/dev/core` links to.
const KCORE: &str = "/proc/kcore";

fn exists(root: BorrowedFd<'_>, path: &str) -> bool {
    let relative = Path::new(path).strip_prefix("/").unwrap_or(Path::new(path));
    open_beneath(root, relative, OFlags::PATH, Mode::empty(), Links::InRoot).is_ok()
}

/// Opens the directory of `path` in the container, making it when it is missing.
pub(crate) fn open_parent(root: BorrowedFd<'_>, path: &str) -> Result<(OwnedFd, String), Failure> {
    let path = Path::new(path);
    let relative = path.strip_prefix("/").unwrap_or(path);
    let (parent, name) = parent_and_name(relative)?;
    let dir = mkdir_all_beneath(root, parent, NEW_DIRECTORY, Links::InRoot).at(Stage::Mount)?;
    Ok((dir, name.to_string_lossy().into_owned()))
}

fn make_node(dir: &OwnedFd, name: &str, device: &Device) -> Result<(), Failure> {
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let number = rustix::fs::makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let doing = || format!("make device {}", device.path);
    match rustix::fs::mknodat(dir, name, kind, mode, number) {
        // An image, or a second entry of the same name, may bring the very node.
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .during(Stage::Mount, doing)?;
            if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
                return Err(crate::status::fail(Stage::Mount, Errno::EXIST, doing()));
            }
        }
        answer => answer.during(Stage::Mount, doing)?,
    }
    let owner = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
    rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
        .during(Stage::Mount, doing)
}

/// Binds the host's node of the same path; this mount namespace still has the host's tree.
fn bind(dir: &OwnedFd, name: &str, device: &Device) -> Result<(), Failure> {
    let doing = || format!("bind device {}", device.path);
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let host = rustix::fs::open(&device.path, flags, Mode::empty()).during(Stage::Mount, doing)?;
    let stat = rustix::fs::fstat(&host).during(Stage::Mount, doing)?;
    if stat.st_rdev != rustix::fs::makedev(device.major, device.minor) {
        return Err(crate::status::fail(Stage::Mount, Errno::NODEV, doing()));
    }
    let place = bind_place(dir, name, doing)?;
    let tree = mount::clone_tree(&host, false).at(Stage::Mount)?;
    mount::attach_onto(&tree, &place, Path::new(&device.path)).at(Stage::Mount)
}

/// Makes an empty file to bind something on, and opens it. A link in its place is refused.
pub(crate) fn bind_place(
    dir: impl AsFd,
    name: &str,
    doing: impl Fn() -> String,
) -> Result<OwnedFd, Failure> {
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    rustix::fs::openat(&dir, name, flags | OFlags::NONBLOCK, Mode::from_raw_mode(0o666))
        .during(Stage::Mount, &doing)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir, name, flags, Mode::empty()).during(Stage::Mount, doing)
}
