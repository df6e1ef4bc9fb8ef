//! What the tree of a chain has to be, worked out from the archives of its layers alone.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::sync::Arc;

use gantry_archive::{ArchiveError, Entry, Kind, Limits, Passed, Reader, decompressed};
use gantry_sdk::{Error, Result};
use rustix::fs::FileType;
use tokio_util::sync::CancellationToken;

use super::tree::{BlockHash, Node, check, join, show, travelling};

/// Entries of one tree at most; each costs some hundred bytes.
const ENTRIES: usize = 4 << 20;
/// Links expanded on one name. Source: Linux, `MAXSYMLINKS`.
const LINKS: usize = 40;
/// The deepest name.
const DEPTH: usize = 1024;
/// Source: OCI image specification, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// One entry of the tree.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// Attributes and content; none for a directory that no archive describes.
    pub(crate) what: Option<Arc<What>>,
    /// The layer that placed it, counted from 0.
    pub(crate) layer: usize,
}

/// What an entry is; shared by the names of one file.
#[derive(Clone, Debug)]
pub(crate) struct What {
    pub(crate) node: Node,
    /// Hash of a regular file's content, if it was asked for.
    pub(crate) content: Option<[u8; 32]>,
}

impl Expected {
    pub(crate) fn kind(&self) -> FileType {
        self.what.as_ref().map_or(FileType::Directory, |what| what.node.kind)
    }

    fn link(&self) -> Option<&[u8]> {
        let what = self.what.as_ref().filter(|what| what.node.kind == FileType::Symlink)?;
        Some(&what.node.target)
    }
}

/// The tree, by clean path; the top directory is the empty path.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) entries: BTreeMap<Vec<u8>, Expected>,
    /// Layers applied so far.
    pub(crate) layers: usize,
    deep: bool,
}

impl Tree {
    /// The tree of a chain of none. `deep`: also remember what files contain.
    pub(crate) fn new(deep: bool) -> Self {
        let top = Expected { what: None, layer: 0 };
        Self { entries: BTreeMap::from([(Vec::new(), top)]), layers: 0, deep }
    }

    /// Applies the next layer; returns what passed.
    pub(crate) fn apply<R: Read + Send>(
        &mut self,
        blob: R,
        cancel: &CancellationToken,
    ) -> Result<Passed> {
        let mut failure = None;
        let outcome = decompressed(blob, |chunks| {
            let mut reader = Reader::new(chunks, Limits::default());
            while let Some(entry) = reader.next_entry()? {
                if let Err(error) = check(cancel).and_then(|()| self.place(&entry, &mut reader)) {
                    failure = Some(error);
                    return Err(ArchiveError::Read(std::io::Error::other("given up")));
                }
            }
            Ok(())
        });
        self.layers += 1;
        match (failure, outcome) {
            (Some(error), _) => Err(error),
            (None, Ok(((), passed))) => Ok(passed),
            (None, Err(error)) => Err(crate::pour::explain(error)),
        }
    }

    fn place<R: BufRead>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
        let (parent, name) = split(&entry.name)?;
        let Some(name) = name else {
            let what = What { node: node_of(entry), content: None };
            self.insert(Vec::new(), Some(Arc::new(what)));
            return Ok(());
        };
        if name.as_slice() == OPAQUE {
            let dir = self.resolve(&parent)?;
            return self.clear(&dir);
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(WHITEOUT) {
            let dir = self.resolve(&parent)?;
            self.remove(&join(&dir, gone));
            self.touch(&dir);
            return Ok(());
        }
        let dir = self.resolve(&parent)?;
        self.ensure(&dir)?;
        let path = join(&dir, &name);
        let what = self.what(entry, reader)?;
        if what.node.kind != FileType::Directory {
            self.remove_below(&path);
        }
        self.insert(path, Some(what));
        self.touch(&dir);
        Ok(())
    }

    fn what<R: BufRead>(&self, entry: &Entry, reader: &mut Reader<R>) -> Result<Arc<What>> {
        if entry.kind == Kind::Hardlink {
            let (parent, name) = split(&entry.link)?;
            let path = join(&self.resolve(&parent)?, &name.unwrap_or_default());
            let target = self.entries.get(&path).and_then(|target| target.what.clone());
            return target.ok_or_else(|| {
                let (from, to) = (show(&entry.name), show(&path));
                Error::invalid(format!("{from} is a link to {to}, which is not there"))
            });
        }
        let content = match entry.kind {
            Kind::File if self.deep => Some(content(entry, reader).map_err(crate::pour::explain)?),
            _ => None,
        };
        Ok(Arc::new(What { node: node_of(entry), content }))
    }

    fn insert(&mut self, path: Vec<u8>, what: Option<Arc<What>>) {
        self.entries.insert(path, Expected { what, layer: self.layers });
    }

    /// The directory `path` with the links on the way followed, as after `chroot`.
    fn resolve(&self, path: &[Vec<u8>]) -> Result<Vec<u8>> {
        let mut left: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        let mut real = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part.as_slice() == b".." {
                real = parent_of(&real).to_vec();
                continue;
            }
            let next = join(&real, &part);
            let Some(target) = self.entries.get(&next).and_then(Expected::link) else {
                real = next;
                continue;
            };
            links += 1;
            if links > LINKS {
                return Err(Error::invalid(format!(
                    "{} leads through too many links",
                    show(&next)
                )));
            }
            if target.starts_with(b"/") {
                real.clear();
            }
            let parts = target.split(|byte| *byte == b'/').filter(|p| !matches!(*p, b"" | b"."));
            left.extend(parts.rev().map(<[u8]>::to_vec));
        }
        Ok(real)
    }

    /// Sees that `dir` and those above it are directories.
    fn ensure(&mut self, dir: &[u8]) -> Result<()> {
        if self.entries.len() > ENTRIES {
            return Err(Error::invalid(format!("the tree has more than {ENTRIES} entries")));
        }
        let is_there = |entry: &Expected| entry.kind() == FileType::Directory;
        if dir.is_empty() || self.entries.get(dir).is_some_and(is_there) {
            return Ok(());
        }
        let parent = parent_of(dir).to_vec();
        self.ensure(&parent)?;
        self.insert(dir.to_vec(), None);
        self.touch(&parent);
        Ok(())
    }

    /// Something in the directory has changed: what a layer below says of its time no longer holds.
    fn touch(&mut self, dir: &[u8]) {
        let layer = self.layers;
        if let Some(entry) = self.entries.get_mut(dir)
            && entry.layer != layer
            && let Some(what) = &mut entry.what
        {
            Arc::make_mut(what).node.mtime = None;
        }
    }

    /// Removes what layers below have at `path`; what this one placed stays.
    fn remove(&mut self, path: &[u8]) {
        let layer = self.layers;
        if self.entries.get(path).is_some_and(|entry| entry.layer != layer) {
            self.entries.remove(path);
            self.remove_older_below(path);
        }
    }

    /// Removes what layers below have in a directory.
    fn clear(&mut self, dir: &[u8]) -> Result<()> {
        self.ensure(dir)?;
        self.remove_older_below(dir);
        self.touch(dir);
        Ok(())
    }

    fn remove_older_below(&mut self, dir: &[u8]) {
        let layer = self.layers;
        for path in self.below(dir) {
            if self.entries.get(&path).is_some_and(|entry| entry.layer != layer) {
                self.entries.remove(&path);
            }
        }
    }

    fn remove_below(&mut self, dir: &[u8]) {
        for path in self.below(dir) {
            self.entries.remove(&path);
        }
    }

    /// Everything beneath `dir`.
    fn below(&self, dir: &[u8]) -> Vec<Vec<u8>> {
        if dir.is_empty() {
            return self.entries.keys().filter(|path| !path.is_empty()).cloned().collect();
        }
        let prefix = [dir, b"/"].concat();
        let after = self.entries.range(prefix.clone()..).map(|(path, _)| path);
        after.take_while(|path| path.starts_with(&prefix)).cloned().collect()
    }
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"".as_slice(), |at| &path[..at])
}

/// Components of a directory, and a name in it.
type Split = (Vec<Vec<u8>>, Option<Vec<u8>>);

/// The directory's components and the last one; none for the top. Cleaned as text, as archives are.
fn split(name: &[u8]) -> Result<Split> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part.to_vec()),
        }
    }
    if parts.len() > DEPTH {
        return Err(Error::invalid(format!("{:.100} is too deep", show(name))));
    }
    let last = parts.pop();
    Ok((parts, last))
}

fn node_of(entry: &Entry) -> Node {
    let kind = match entry.kind {
        Kind::File | Kind::Hardlink => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Directory => FileType::Directory,
        Kind::Fifo => FileType::Fifo,
    };
    let is = |wanted| kind == wanted;
    Node {
        kind,
        mode: if is(FileType::Symlink) { 0 } else { entry.mode & 0o7777 },
        owner: (entry.uid, entry.gid),
        size: if is(FileType::RegularFile) { entry.file_size() } else { 0 },
        mtime: Some((entry.mtime.seconds, entry.mtime.nanos.into())),
        device: match kind {
            FileType::CharacterDevice | FileType::BlockDevice => entry.device,
            _ => (0, 0),
        },
        target: if is(FileType::Symlink) { entry.link.clone() } else { Vec::new() },
        xattrs: travelling(&entry.xattrs),
    }
}

/// The hash of the data of the reader's present member.
fn content<R: BufRead>(entry: &Entry, reader: &mut Reader<R>) -> Result<[u8; 32], ArchiveError> {
    let mut hash = BlockHash::default();
    let whole = [gantry_archive::Run { offset: 0, length: entry.size }];
    let runs = entry.sparse.as_ref().map_or(whole.as_slice(), |sparse| &sparse.runs);
    for run in runs {
        let (mut at, end) = (run.offset, run.offset.saturating_add(run.length));
        while at < end {
            let chunk = reader.fill()?;
            let most = usize::try_from(end - at).map_or(chunk.len(), |n| n.min(chunk.len()));
            if most == 0 {
                return Ok(hash.finish());
            }
            hash.write_at(at, &chunk[..most]);
            reader.consume(most);
            at += most as u64;
        }
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_testkit::archive::Tar;

    fn tree(layers: Vec<Tar>) -> Tree {
        let mut tree = Tree::new(true);
        for layer in layers {
            tree.apply(std::io::Cursor::new(layer.end()), &CancellationToken::new()).unwrap();
        }
        tree
    }

    fn paths(tree: &Tree) -> Vec<String> {
        tree.entries.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn layers_add_replace_and_delete() {
        let base =
            Tar::default().dir("./").dir("d").file("d/a", "1").file("d/b", "").file("e/x", "");
        let top = Tar::default().file("d/.wh.b", "").file("d/a/in", "2").file("e/.wh..wh..opq", "");
        let base = tree(vec![base, top]);
        assert_eq!(paths(&base), ["", "d", "d/a", "d/a/in", "e"]);
        assert_eq!(base.entries[b"d/a".as_slice()].kind(), FileType::Directory);
        assert!(base.entries[b"e".as_slice()].what.is_none(), "no archive describes it");
        let d = base.entries[b"d".as_slice()].what.clone().unwrap();
        assert_eq!(d.node.mtime, None, "changed by the second layer, which does not describe it");
    }

    #[test]
    fn a_layer_keeps_what_it_placed_before_its_own_marker() {
        let base = Tar::default().file("d/old", "").file("f", "");
        let top = Tar::default().file("d/new", "").file("d/.wh..wh..opq", "").file("f", "n");
        assert_eq!(paths(&tree(vec![base, top])), ["", "d", "d/new", "f"]);
    }
}
