//! A layer that was unpacked before the layers below it were there, made right once they are.
//!
//! Nearly everything in a layer means the same whatever lies below. What does not is either given up
//! at once ([`ArchiveError::NeedsBelow`]) or is noted while unpacking and settled here: directories
//! that the archive uses without describing them, which must look like their counterparts below.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::name::join;
use crate::place::{Attributes, Missing, dress};
use crate::tree::open_beneath;
use crate::xattr::{self, Node};
use crate::{ArchiveError, Result};

/// Directories noted for one archive. Layers describe nearly all of theirs, so who needs more waits
/// for the layers below.
const MOST: usize = 1 << 16;
/// Bytes of their names.
const MOST_BYTES: usize = 8 << 20;

/// Directories that were made because something is in them, by real name.
#[derive(Debug, Default)]
pub(crate) struct Implied {
    names: BTreeSet<Vec<u8>>,
    bytes: usize,
}

impl Implied {
    /// Notes the directory `real`, made for `entry`.
    pub(crate) fn note(&mut self, real: &[u8], entry: &[u8]) -> Result<()> {
        self.bytes += real.len();
        if self.names.len() >= MOST || self.bytes > MOST_BYTES {
            return Err(ArchiveError::needs_below(entry));
        }
        self.names.insert(real.to_vec());
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Fails if `real` is one of them: what the archive says of it now might be about something else
    /// than what it was used for before, if a link of that name lies below.
    pub(crate) fn refuse_change(&self, real: &[u8], entry: &[u8]) -> Result<()> {
        if self.names.contains(real) {
            return Err(ArchiveError::needs_below(entry));
        }
        Ok(())
    }

    /// The same for `real` and everything in it.
    pub(crate) fn refuse_removal(&self, real: &[u8], entry: &[u8]) -> Result<()> {
        self.refuse_change(real, entry)?;
        let inside = join(real, b"");
        match self.names.range(inside.clone()..).next() {
            Some(name) if name.starts_with(&inside) => Err(ArchiveError::needs_below(entry)),
            _ => Ok(()),
        }
    }

    /// In order: a directory comes before those in it.
    pub(crate) fn into_names(self) -> Vec<Vec<u8>> {
        self.names.into_iter().collect()
    }
}

/// Finishes a layer that was unpacked into `root` with [`ExtractOptions::standalone`], now that
/// `below`, the merged tree of the layers below it, is there: `implied` directories, and the top
/// unless it was `top_given`, get owner, mode, attributes and times from their counterparts. Both
/// come from the layer's [`Summary`]. May be repeated. Blocking.
///
/// # Errors
///
/// [`ArchiveError::NeedsBelow`], before anything is changed, if something else than a directory lies
/// below in the place of one: the layer must be unpacked again, with `below` in view.
/// [`ArchiveError::Io`] otherwise.
///
/// [`ExtractOptions::standalone`]: crate::ExtractOptions::standalone
/// [`Summary`]: crate::Summary
pub fn settle_standalone(
    root: BorrowedFd<'_>,
    below: BorrowedFd<'_>,
    implied: &[Vec<u8>],
    top_given: bool,
) -> Result<()> {
    let names: HashSet<&[u8]> = implied.iter().map(Vec::as_slice).collect();
    let mut known = Vec::with_capacity(implied.len());
    for name in implied {
        if has_counterpart(below, name, &names)? {
            known.push(name.as_slice());
        }
    }
    if !top_given {
        dress_like(root, below, b"")?;
    }
    known.into_iter().try_for_each(|name| dress_like(root, below, name))
}

/// Whether the directory `name` is below too. It is not if the archive itself has put a directory
/// on the way to it in the place of something else: that hides what is below.
fn has_counterpart(below: BorrowedFd<'_>, name: &[u8], implied: &HashSet<&[u8]>) -> Result<bool> {
    match open_beneath(below, name) {
        Ok(_) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(errno) => return Err(ArchiveError::io("open the layers below at", name, errno)),
    }
    let ends = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain([name.len()]) {
        let part = &name[..end];
        match open_beneath(below, part) {
            Err(Errno::NOTDIR | Errno::LOOP) if implied.contains(part) => {
                return Err(ArchiveError::needs_below(name));
            }
            Err(_) => return Ok(false),
            Ok(_) => {}
        }
    }
    Ok(true)
}

fn dress_like(root: BorrowedFd<'_>, below: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let fail = |doing| move |errno| ArchiveError::io(doing, name, errno);
    let wanted = open_beneath(below, name)
        .and_then(|fd| Attributes::of_directory(&fd))
        .map_err(fail("read the layers below at"))?;
    let fd = open_beneath(root, name).map_err(fail("open"))?;
    dress(&fd, name, &wanted, &Missing::all(), false)?;
    if let Some(acl) = wanted.xattrs.get(xattr::DEFAULT_ACL) {
        Node::Open(&fd).set(name, xattr::DEFAULT_ACL, acl)?;
    }
    rustix::fs::futimens(&fd, &wanted.mtime.stamps()).map_err(fail("set the time of"))
}
