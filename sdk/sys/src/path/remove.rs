//! Removing a tree that somebody else filled.

use std::ffi::CString;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, unlinkat};
use rustix::io::Errno;

use super::beneath::{Links, open_beneath, split_relative};
use super::descent::{Descent, entries};
use crate::error::{Error, Result};

/// Entries read at once: bounds memory in directories with millions of files.
const BATCH: usize = 4096;

/// Removes the tree at the absolute path `path`; nothing there is success.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::refused("remove", path.display().to_string(), "it has no parent"));
    };
    match super::open_root(parent) {
        Ok(root) => remove_tree_beneath(root, Path::new(name)),
        Err(error) if error.is(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes `path` beneath `root`, a file or a whole tree; nothing there is success.
///
/// Never follows a symbolic link, holds a bounded number of descriptors however deep the tree, and
/// does not descend into mounts: something still mounted inside is an error (`EXDEV`, `EBUSY`) and
/// keeps its content. What was removed until an error stays removed, so it can be called again.
pub fn remove_tree_beneath(root: impl AsFd, path: &Path) -> Result<()> {
    let names = split_relative(path)?;
    let Some((name, parents)) = names.split_last() else {
        return Err(Error::refused("remove", path.display().to_string(), "it is the root itself"));
    };
    let parent: std::path::PathBuf = parents.iter().collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let parent = match open_beneath(root, &parent, flags, Mode::empty(), Links::Refuse) {
        Err(error) if error.is(Errno::NOENT) => return Ok(()),
        answer => answer?,
    };
    let name = to_c_string(name)?;
    let mut descent =
        Descent::start(parent).map_err(|errno| Error::at("look into parent of", path, errno))?;
    remove_entry(&mut descent, name).map_err(|(errno, inside)| {
        let inside = inside.to_string_lossy().into_owned();
        Error::at("remove", path, errno).with_detail(format!("at {inside:?}"))
    })
}

fn to_c_string(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| {
        Error::refused("remove", name.to_string_lossy(), "a name cannot hold a zero byte")
    })
}

/// An error, and the name it happened at.
type At = (Errno, CString);

fn remove_entry(descent: &mut Descent, name: CString) -> Result<(), At> {
    let top = descent.depth();
    remove_or_enter(descent, name, FileType::Unknown)?;
    while descent.depth() > top {
        empty_or_enter(descent)?;
    }
    Ok(())
}

/// Works on the current directory: empties it and goes up, or goes down into a subdirectory.
fn empty_or_enter(descent: &mut Descent) -> Result<(), At> {
    let at = |errno| (errno, CString::default());
    if let Some(name) = descent.next_pending() {
        return remove_or_enter(descent, name, FileType::Directory);
    }
    let batch = entries(descent.here().map_err(at)?, BATCH).map_err(at)?;
    if batch.is_empty() {
        let name = descent.leave().map_err(at)?.unwrap_or_default();
        let answer = unlinkat(descent.here().map_err(at)?, &name, AtFlags::REMOVEDIR);
        return match answer {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Somebody put something in meanwhile: look again. An endless writer cannot hold us:
            // its entries are removed at the rate they appear, and the caller ends writers first.
            Err(Errno::NOTEMPTY) => remove_or_enter(descent, name, FileType::Directory),
            Err(errno) => Err((errno, name)),
        };
    }
    for (name, kind) in batch {
        if kind == FileType::Directory {
            descent.later(name);
        } else {
            remove_file_or_remember(descent, name)?;
        }
    }
    Ok(())
}

fn remove_file_or_remember(descent: &mut Descent, name: CString) -> Result<(), At> {
    let here = descent.here().map_err(|errno| (errno, name.clone()))?;
    match unlinkat(here, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // The directory listing did not say, or it was exchanged for a directory.
        Err(Errno::ISDIR) => {
            descent.later(name);
            Ok(())
        }
        Err(errno) => Err((errno, name)),
    }
}

fn remove_or_enter(descent: &mut Descent, name: CString, kind: FileType) -> Result<(), At> {
    let here = descent.here().map_err(|errno| (errno, name.clone()))?;
    if kind != FileType::Directory {
        match unlinkat(here, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err((errno, name)),
        }
    }
    // Most directories of an image are leaves; an empty one needs no visit.
    match unlinkat(here, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::NOTDIR) => return remove_file_or_remember(descent, name),
        Err(errno) => return Err((errno, name)),
    }
    match descent.enter(name.clone()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => remove_file_or_remember(descent, name),
        Err(errno) => Err((errno, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let dir = Scratch::new("remove");
        dir.write("keep/file", b"x");
        dir.write("tree/a/b/file", b"x");
        dir.make("tree/empty/deeper");
        symlink("../keep", dir.path().join("tree/link")).unwrap();
        symlink("../../keep", dir.path().join("tree/a/link")).unwrap();
        remove_tree_beneath(dir.fd(), Path::new("tree")).unwrap();
        remove_tree_beneath(dir.fd(), Path::new("tree")).unwrap();
        remove_tree_beneath(dir.fd(), Path::new("no/such/parent")).unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(dir.path().join("keep/file").exists());
        remove_tree(&dir.path().join("keep")).unwrap();
        assert!(!dir.path().join("keep").exists());
        assert!(remove_tree_beneath(dir.fd(), Path::new("..")).is_err());
        assert!(remove_tree_beneath(dir.fd(), Path::new(".")).is_err());
    }

    #[test]
    fn a_link_in_place_of_the_tree_goes_and_its_target_stays() {
        let dir = Scratch::new("remove-link");
        dir.write("keep/file", b"x");
        symlink("keep", dir.path().join("link")).unwrap();
        remove_tree_beneath(dir.fd(), Path::new("link")).unwrap();
        assert!(dir.path().join("keep/file").exists());
        symlink("keep", dir.path().join("link")).unwrap();
        assert!(remove_tree_beneath(dir.fd(), Path::new("link/file")).is_err());
        assert!(dir.path().join("keep/file").exists());
    }

    #[test]
    fn depth_beyond_all_limits_is_no_obstacle() {
        let dir = Scratch::on_tmpfs("remove-deep");
        dir.make("tree");
        let mut here = dir.open("tree");
        // Deeper than the descriptors a process may have, longer than the longest path.
        for _ in 0..1200 {
            rustix::fs::mkdirat(&here, "down", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&here, "beside", Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            here = rustix::fs::openat(&here, "down", flags, Mode::empty()).unwrap();
        }
        drop(here);
        let usage = super::super::usage(dir.open("tree")).unwrap();
        assert_eq!(usage.inodes, 2401);
        remove_tree_beneath(dir.fd(), Path::new("tree")).unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn directories_larger_than_a_batch_are_emptied() {
        let dir = Scratch::on_tmpfs("remove-wide");
        dir.make("tree");
        for index in 0..BATCH + 10 {
            std::fs::write(dir.path().join(format!("tree/{index}")), "").unwrap();
        }
        remove_tree_beneath(dir.fd(), Path::new("tree")).unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    /// Runs as root only.
    #[test]
    fn root_something_still_mounted_inside_keeps_its_content() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = Scratch::new("remove-mounted");
        dir.write("precious/file", b"x");
        dir.write("tree/sub/file", b"x");
        dir.make("tree/sub/bound");
        let worker = std::thread::spawn(move || {
            crate::mount::enter_private_namespace().unwrap();
            let target = dir.path().join("tree/sub/bound");
            let precious = crate::mount::clone_tree(dir.open("precious"), false).unwrap();
            crate::mount::attach(&precious, rustix::fs::CWD, &target).unwrap();
            let error = remove_tree(&dir.path().join("tree")).unwrap_err();
            assert!(error.is(Errno::XDEV) || error.is(Errno::BUSY), "{error:?}");
            assert!(dir.path().join("precious/file").exists());
            crate::mount::detach(&target).unwrap();
            remove_tree(&dir.path().join("tree")).unwrap();
            assert!(!dir.path().join("tree").exists());
        });
        worker.join().unwrap();
    }
}
