//! A file is old or new, never half.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Tries at a free temporary name; each failure means that somebody used our name before.
const NAME_TRIES: u32 = 64;

/// Whether a write survives a power failure once the call has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Content and name are on disk on return.
    Durable,
    /// Old or new even after a crash of the process, but a power failure may lose either. For state
    /// that means nothing after a reboot.
    Volatile,
}

/// Replaces the content of `path`: afterwards it holds the old bytes or the new ones, nothing between.
///
/// The file gets mode 0600. A crash may leave a file `.{name}.{digits}.new` beside it, which can be
/// removed. `path` is not followed if it is a symbolic link: the link is replaced. Blocking.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::refused("write", path.display().to_string(), "it names no file"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, Mode::empty())
        .map_err(|errno| Error::at("open", parent, errno))?;
    replace_in(&dir, name, content, 0o600, durability)
        .map_err(|error| Error::at("write", path, error))
}

/// As [`replace`], for `name` in the directory `dir` (open for reading), with the given mode.
pub fn replace_at(
    dir: impl AsFd,
    name: &OsStr,
    content: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<()> {
    if name.is_empty() || Path::new(name).file_name() != Some(name) {
        return Err(Error::refused("write", name.to_string_lossy(), "it is not a plain name"));
    }
    replace_in(&dir, name, content, mode, durability)
        .map_err(|error| Error::at("write", Path::new(name), error))
}

fn replace_in(
    dir: &impl AsFd,
    name: &OsStr,
    content: &[u8],
    mode: u32,
    durability: Durability,
) -> std::io::Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    // In the same directory, so on the same file system: a rename across fails.
    let (mut file, temporary) = create_beside(dir, name)?;
    let answer = (|| {
        file.write_all(content)?;
        rustix::fs::fchmod(&file, mode)?;
        if durability == Durability::Durable {
            file.sync_all()?; // content before name
        }
        rustix::fs::renameat(dir, &temporary, dir, name)?;
        Ok(())
    })();
    if answer.is_err() {
        // The error that matters is the first; a leftover is harmless.
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
        return answer;
    }
    if durability == Durability::Durable {
        rustix::fs::fsync(dir)?; // and the name itself
    }
    Ok(())
}

fn create_beside(dir: &impl AsFd, name: &OsStr) -> Result<(std::fs::File, String), Errno> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let stem = name.to_string_lossy();
    // A name may take 255 bytes, and ours adds to it.
    let stem: String = stem.chars().take(48).collect();
    for _ in 0..NAME_TRIES {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec;
        let temporary = format!(".{stem}.{}{count}{now}.new", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, &temporary, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => return Ok((fd.into(), temporary)),
            Err(Errno::EXIST | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn content_is_replaced_and_nothing_else_is_left() {
        let dir = Scratch::new("replace");
        let path = dir.path().join("state.json");
        for (content, durability) in [
            ("old", Durability::Durable),
            ("newer", Durability::Volatile),
            ("", Durability::Durable),
        ] {
            replace(&path, content.as_bytes(), durability).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        replace_at(dir.open("."), OsStr::new("other"), b"x", 0o640, Durability::Volatile).unwrap();
        let mode = std::fs::metadata(dir.path().join("other")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let dir = Scratch::new("replace-fails");
        dir.make("taken/by-a-directory");
        assert!(replace(&dir.path().join("taken"), b"x", Durability::Volatile).is_err());
        assert!(replace(Path::new("/"), b"x", Durability::Volatile).is_err());
        for name in ["", "..", "a/b", "/"] {
            let answer = replace_at(dir.open("."), OsStr::new(name), b"", 0, Durability::Volatile);
            assert!(answer.is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
