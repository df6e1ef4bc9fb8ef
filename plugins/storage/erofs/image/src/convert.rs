//! Reading an archive into a tree, with data going straight into the image.
//!
//! The counterpart of `gantry_archive`'s extractor: each member means here what it means there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, Read};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use gantry_archive::name::{self, Marker, join, split};
use gantry_archive::{
    ArchiveError, Entry, Kind as Member, Limits, Passed, Reader, Result, Run, Summary, Time,
    decompressed_with,
};
use rustix::io::Errno;

use crate::attributes::Attributes;
use crate::below::Below;
use crate::data::{Copied, write_plain, write_sparse};
use crate::disk::BLOCK;
use crate::sink::Sink;
use crate::tree::{Content, Directory, Id, Kind, TOP, Tree};
use crate::walk::{Place, Sight};
use crate::{below, layout};

/// How to write an image.
#[derive(Debug)]
pub struct ConvertOptions<'a> {
    /// Bounds.
    pub limits: Limits,
    /// The merged tree of the layers below: gives missing parents their attributes, resolves links
    /// that lead through it, and has the files that hard links may point to.
    pub below: Option<BorrowedFd<'a>>,
    /// There are layers below, and they are not there yet: write what means the same whatever they
    /// hold, and note the rest for [`settle_standalone`](crate::settle_standalone). Without
    /// [`below`](Self::below).
    pub standalone: bool,
    /// Hash the stream as given. Off where the reader verifies it already; the digest of the
    /// uncompressed bytes is computed in any case.
    pub hash_raw: bool,
    /// Bytes of memory for names, inodes and attributes, which wait until the archive has passed.
    pub metadata_bytes: u64,
}

impl Default for ConvertOptions<'_> {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            below: None,
            standalone: false,
            hash_raw: true,
            metadata_bytes: 512 << 20,
        }
    }
}

/// Writes the archive from `reader`, compressed or not, into `image`, which is emptied first, as one
/// EROFS image with overlayfs' marks for deletions.
///
/// Reading and decompressing run on a second thread. Nothing is synced. Blocking.
///
/// # Errors
///
/// See [`ArchiveError`]; the file is no image then. [`ArchiveError::NeedsBelow`] only where
/// [`ConvertOptions::standalone`].
pub fn convert<R: Read + Send>(
    reader: R,
    image: &File,
    options: &ConvertOptions<'_>,
) -> Result<Summary> {
    let (done, stream) =
        decompressed_with(reader, options.hash_raw, |chunks| read(chunks, image, options))?;
    done.finish(image, stream)
}

/// As [`convert`], but reads to the end whatever the layer needs.
///
/// # Errors
///
/// The outer one is about the stream, the inner one about the layer.
pub fn convert_to_end<R: Read + Send>(
    reader: R,
    image: &File,
    options: &ConvertOptions<'_>,
) -> Result<(Result<Summary>, Passed)> {
    let (done, stream) =
        decompressed_with(reader, options.hash_raw, |chunks| match read(chunks, image, options) {
            Err(error @ ArchiveError::Read(_)) => Err(error),
            outcome => Ok(outcome),
        })?;
    Ok((done.and_then(|done| done.finish(image, stream.clone())), stream))
}

fn read<'a, R: BufRead>(
    chunks: R,
    image: &'a File,
    options: &ConvertOptions<'a>,
) -> Result<Done<'a>> {
    if options.standalone && options.below.is_some() {
        let why = "a layer that is unpacked on its own has none below in view";
        return Err(ArchiveError::refused(b"", why));
    }
    let mut converter = Converter::new(chunks, image, options)?;
    converter.run()?;
    Ok(converter.done())
}

/// What is left when the archive has passed.
struct Done<'a> {
    tree: Tree,
    sink: Sink<'a>,
    entries: u64,
    file_bytes: u64,
    skipped_xattrs: u64,
    implied: BTreeSet<Vec<u8>>,
    top_given: bool,
}

impl Done<'_> {
    fn finish(self, image: &File, stream: Passed) -> Result<Summary> {
        layout::write(&self.tree, &self.implied, self.sink, image, &stream.diff_id)?;
        Ok(Summary {
            entries: self.entries,
            file_bytes: self.file_bytes,
            skipped_xattrs: self.skipped_xattrs,
            implied: self.implied.into_iter().collect(),
            top_given: self.top_given,
            stream,
        })
    }
}

pub(crate) struct Converter<'a, R> {
    reader: Reader<R>,
    pub(crate) tree: Tree,
    sink: Sink<'a>,
    depth: usize,
    pub(crate) below: Option<Below<'a>>,
    pub(crate) standalone: bool,
    /// The last directory, by a name over which no link leads.
    pub(crate) last: Option<Rc<Place>>,
    /// Directories that are used and not described, where the layers below are not in view.
    pub(crate) implied: BTreeSet<Vec<u8>>,
    pub(crate) implied_bytes: usize,
    /// Files that are here only because a hard link points to them; to markers they are still files
    /// of the layers below.
    copied: BTreeSet<Vec<u8>>,
    file_bytes: u64,
    skipped_xattrs: u64,
    top_given: bool,
}

/// The longest target of a link. Source: Linux, `PATH_MAX`.
const TARGET: usize = 4095;

impl<'a, R: BufRead> Converter<'a, R> {
    fn new(chunks: R, image: &'a File, options: &ConvertOptions<'a>) -> Result<Self> {
        let below = options.below.map(Below);
        let top = match &below {
            Some(below) => match below.find(b"").map_err(looking(b""))? {
                Some(found) if found.kind == Kind::Directory => found.attributes(b"")?,
                _ => return Err(ArchiveError::io("open the layers below at", b"", Errno::NOTDIR)),
            },
            None => Attributes::plain(0o755, Time::default()),
        };
        Ok(Self {
            reader: Reader::new(chunks, options.limits.clone()),
            tree: Tree::new(top, options.metadata_bytes),
            sink: Sink::new(image, BLOCK, options.limits.reserve_bytes)?,
            depth: options.limits.depth,
            below,
            standalone: options.standalone,
            last: None,
            implied: BTreeSet::new(),
            implied_bytes: 0,
            copied: BTreeSet::new(),
            file_bytes: 0,
            skipped_xattrs: 0,
            top_given: false,
        })
    }

    fn run(&mut self) -> Result<()> {
        while let Some(entry) = self.reader.next_entry()? {
            let path = name::clean(&entry.name, self.depth)?;
            self.member(&path, &entry).map_err(|error| match error {
                // A link below may make it good.
                ArchiveError::Refused { entry, .. } if !self.implied.is_empty() => {
                    ArchiveError::NeedsBelow { entry }
                }
                error => error,
            })?;
        }
        Ok(())
    }

    fn done(self) -> Done<'a> {
        Done {
            entries: self.reader.entries(),
            tree: self.tree,
            sink: self.sink,
            file_bytes: self.file_bytes,
            skipped_xattrs: self.skipped_xattrs,
            implied: self.implied,
            top_given: self.top_given,
        }
    }

    fn member(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        if path.is_empty() {
            return self.top(entry);
        }
        let (parent, last) = split(path);
        let hidden = match name::marker(path)? {
            Marker::Ignored => return Ok(()),
            Marker::Opaque => {
                let dir = self.place(parent, path, entry.mtime)?;
                return self.hide_all(&dir, path, entry.mtime);
            }
            Marker::Whiteout(hidden) => Some(hidden),
            // An upper directory of an overlay, archived as it is, holds its own marks.
            Marker::None if entry.kind == Member::CharDevice && entry.device == (0, 0) => {
                Some(last)
            }
            Marker::None => None,
        };
        let dir = self.place(parent, path, entry.mtime)?;
        if let Some(hidden) = hidden {
            return self.hide(&dir, hidden, entry.mtime);
        }
        match entry.kind {
            Member::Directory => self.directory(&dir, last, path, entry),
            Member::File => self.file(&dir, last, path, entry),
            Member::Hardlink => self.hardlink(&dir, last, path, entry),
            Member::Symlink | Member::CharDevice | Member::BlockDevice | Member::Fifo => {
                self.node(&dir, last, path, entry)
            }
        }
    }

    /// The top directory itself.
    fn top(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Member::Directory {
            return Err(ArchiveError::refused(&entry.name, "only a directory can be the top"));
        }
        self.top_given = true;
        let attributes = self.attributes(entry, Kind::Directory, b"")?;
        self.tree.dress(TOP, attributes)
    }

    fn attributes(&mut self, entry: &Entry, kind: Kind, path: &[u8]) -> Result<Attributes> {
        let (attributes, skipped) = Attributes::of_entry(entry, kind, path)?;
        self.skipped_xattrs += skipped;
        Ok(attributes)
    }

    fn directory(&mut self, dir: &Place, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let attributes = self.attributes(entry, Kind::Directory, path)?;
        let hides = match self.tree.get(dir.dir, last) {
            Some(id) if self.tree.directory(id).is_some() => {
                self.refuse_change(&join(&dir.real, last), path)?;
                return self.tree.dress(id, attributes);
            }
            // What was hidden, or replaced by something else, must not come back.
            Some(_) => true,
            None => false,
        };
        let directory = Directory { is_opaque: hides, ..Directory::default() };
        self.put(dir, last, path, attributes, Content::Directory(directory))
    }

    fn file(&mut self, dir: &Place, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let data = match &entry.sparse {
            None => write_plain(&mut self.sink, &mut self.reader, entry.size)?,
            Some(sparse) => {
                write_sparse(&mut self.sink, &mut self.reader, &sparse.runs, sparse.size)?
            }
        };
        let attributes = self.attributes(entry, Kind::File, path)?;
        self.file_bytes = self.file_bytes.saturating_add(entry.file_size());
        self.put(dir, last, path, attributes, Content::File(entry.file_size(), data))
    }

    /// Symbolic links, devices and pipes.
    fn node(&mut self, dir: &Place, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let content = match entry.kind {
            Member::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > TARGET {
                    let why = "a symbolic link without a proper target";
                    return Err(ArchiveError::refused(path, why));
                }
                Content::Symlink(entry.link.as_slice().into())
            }
            Member::CharDevice => Content::Special(Kind::CharDevice, device(entry, path)?),
            Member::BlockDevice => Content::Special(Kind::BlockDevice, device(entry, path)?),
            _ => Content::Special(Kind::Fifo, 0),
        };
        let kind = match &content {
            Content::Special(kind, _) => *kind,
            _ => Kind::Symlink,
        };
        let mut attributes = self.attributes(entry, kind, path)?;
        if kind == Kind::Symlink {
            attributes.mode = 0o777;
        }
        self.put(dir, last, path, attributes, content)
    }

    fn hardlink(&mut self, dir: &Place, last: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let target = name::clean(&entry.link, self.depth)?;
        let (parent, name) = split(&target);
        if name.is_empty() {
            return Err(ArchiveError::refused(path, "a hard link cannot point to the top"));
        }
        let from = self.place(parent, path, entry.mtime)?;
        if from.dir == dir.dir && name == last {
            return Ok(()); // a link to itself is what it is
        }
        let id = match self.tree.get(from.dir, name) {
            Some(id) if self.tree.directory(id).is_some() => return Err(to_directory(path)),
            Some(id) if self.tree.node(id).is_whiteout() => return Err(no_target(path)),
            Some(id) => id,
            None => self.copy_up(&from, name, path)?,
        };
        let was_its_only_name = self.tree.get(dir.dir, last) == Some(id);
        self.make_room(dir, last, path)?;
        if self.tree.node(id).names == 0 && !was_its_only_name {
            // It was in the directory that the link has replaced.
            return Err(no_target(path));
        }
        self.tree.link(dir.dir, last, id)
    }

    /// Brings a file of the layers below into this one, because a hard link points to it.
    fn copy_up(&mut self, from: &Place, name: &[u8], path: &[u8]) -> Result<Id> {
        let real = join(&from.real, name);
        let (below, found) = match (from.sight, &self.below) {
            (Sight::Unknown, _) => return Err(ArchiveError::needs_below(path)),
            (Sight::There, Some(below)) => match below.find(&real).map_err(looking(path))? {
                Some(found) => (*below, found),
                None => return Err(no_target(path)),
            },
            _ => return Err(no_target(path)),
        };
        let mut attributes = found.attributes(path)?;
        let content = match found.kind {
            Kind::Directory => return Err(to_directory(path)),
            Kind::File => self.copy_data(below, &found, &real)?,
            Kind::Symlink => {
                attributes.mode = 0o777;
                Content::Symlink(found.link().map_err(looking(path))?.into_boxed_slice())
            }
            kind => Content::Special(kind, encode_device(found.stat.st_rdev)),
        };
        let id = self.tree.add(attributes, content)?;
        self.tree.link(from.dir, name, id)?;
        self.copied.insert(real);
        Ok(id)
    }

    fn copy_data(
        &mut self,
        below: Below<'_>,
        found: &below::Found,
        real: &[u8],
    ) -> Result<Content> {
        let file = below.open_data(real).map_err(looking(real))?;
        let (size, runs) = found.runs(&file).map_err(looking(real))?;
        let data = match runs {
            None => {
                let whole = [Run { offset: 0, length: size }];
                write_plain(&mut self.sink, &mut Copied::new(&file, real, &whole), size)?
            }
            Some(runs) => {
                write_sparse(&mut self.sink, &mut Copied::new(&file, real, &runs), &runs, size)?
            }
        };
        Ok(Content::File(size, data))
    }

    /// Removes what was copied up into the directory `real`.
    fn uncopy(&mut self, real: &[u8]) {
        let inside = join(real, b"");
        let gone: Vec<Vec<u8>> = self
            .copied
            .range(inside.clone()..)
            .take_while(|path| path.starts_with(&inside))
            .cloned()
            .collect();
        for path in gone {
            let (parent, last) = split(&path);
            if let Some(dir) = self.plain(parent) {
                self.tree.unlink(dir.dir, last);
            }
            self.copied.remove(&path);
        }
    }

    /// A new inode in the place of whatever is there.
    fn put(
        &mut self,
        dir: &Place,
        last: &[u8],
        path: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Result<()> {
        self.make_room(dir, last, path)?;
        let id = self.tree.add(attributes, content)?;
        self.tree.link(dir.dir, last, id)
    }

    fn make_room(&mut self, dir: &Place, last: &[u8], path: &[u8]) -> Result<()> {
        let Some(id) = self.tree.get(dir.dir, last) else { return Ok(()) };
        let real = join(&dir.real, last);
        if self.tree.directory(id).is_some() {
            self.refuse_removal(&real, path)?;
            let inside = join(&real, b"");
            self.copied.retain(|path| !path.starts_with(&inside));
        }
        self.copied.remove(&real);
        self.last = None;
        self.tree.unlink(dir.dir, last);
        Ok(())
    }

    /// A whiteout: `hidden` of the layers below is gone. What this layer has of that name stays.
    fn hide(&mut self, dir: &Place, hidden: &[u8], time: Time) -> Result<()> {
        let real = join(&dir.real, hidden);
        if self.copied.remove(&real) {
            self.tree.unlink(dir.dir, hidden);
        }
        match self.tree.get(dir.dir, hidden) {
            None => {
                let content = Content::Special(Kind::CharDevice, 0);
                let id = self.tree.add(Attributes::plain(0, time), content)?;
                self.tree.link(dir.dir, hidden, id)?;
            }
            Some(id) if self.tree.directory(id).is_some() => {
                self.uncopy(&real);
                self.last = None;
                self.tree.set_opaque(id);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// An opaque marker: nothing of the layers below shines through this directory.
    fn hide_all(&mut self, dir: &Place, path: &[u8], time: Time) -> Result<()> {
        if !dir.real.is_empty() {
            self.uncopy(&dir.real);
            self.last = None;
            self.tree.set_opaque(dir.dir);
            return Ok(());
        }
        // Overlayfs does not look for the mark on the top directory: hide its entries one by one.
        match (dir.sight, self.below) {
            (Sight::Unknown, _) => Err(ArchiveError::needs_below(path)),
            (Sight::There, Some(below)) => {
                for name in below.top_names().map_err(looking(path))? {
                    self.hide(dir, &name, time)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn looking(path: &[u8]) -> impl FnOnce(Errno) -> ArchiveError + '_ {
    move |errno| ArchiveError::io("look below at", path, errno)
}

fn no_target(path: &[u8]) -> ArchiveError {
    ArchiveError::refused(path, "the target of the hard link is missing")
}

fn to_directory(path: &[u8]) -> ArchiveError {
    ArchiveError::refused(path, "a hard link cannot point to a directory")
}

/// A member's device number as the format has it.
fn device(entry: &Entry, path: &[u8]) -> Result<u32> {
    let (major, minor) = entry.device;
    if major > 0xfff || minor > 0xf_ffff {
        return Err(ArchiveError::refused(path, "its device number is out of range"));
    }
    Ok(encode_device(rustix::fs::makedev(major, minor)))
}

/// Source: Linux, `new_encode_dev`.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
