//! Where inodes and directories go, and writing them: the part after the archive has passed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;

use gantry_archive::{ArchiveError, Result, Time};
use rustix::io::Errno;

use crate::attributes::encode;
use crate::data::Data;
use crate::disk::{
    BLOCK, COMPACT, DIRENT, Dirent, EXTENDED, Inode, Layout, SLOT, SUPER_AT, Super, XATTR_HEADER,
    encode_block, encode_note, fill_block,
};
use crate::sink::{Sink, block_of, write_all};
use crate::tree::{Content, Directory, Id, Node, TOP, Tree};

/// Where an inode that is not in the image would be.
const NOWHERE: u32 = u32::MAX;

/// Writes what follows the data, and the superblock at last. `implied` directories and the top get
/// inodes that can be changed afterwards; `diff_id` tells equal images from others.
pub(crate) fn write(
    tree: &Tree,
    implied: &BTreeSet<Vec<u8>>,
    mut sink: Sink<'_>,
    image: &File,
    diff_id: &str,
) -> Result<()> {
    let mut plan = Plan::new(tree, implied)?;
    plan.place_directories(&mut sink)?;
    sink.align()?;
    let meta = sink.block()?;
    let (bytes, inodes) = plan.usage();
    sink.write(&encode_note(bytes, inodes))?;
    plan.write_inodes(&mut sink)?;
    sink.align()?;
    let blocks = block_of(sink.position())?;
    sink.end()?;
    let super_block = Super {
        root: u16::try_from(plan.slots[TOP as usize])
            .map_err(|_| ArchiveError::refused(b"", "its attributes are too large"))?,
        inodes,
        time: plan.time,
        blocks,
        meta,
        uuid: uuid(diff_id),
        has_chunks: plan.has_chunks(),
    };
    let fail = |errno: Errno| ArchiveError::io("write the image at", b"", errno);
    write_all(image, &super_block.encode(), SUPER_AT).map_err(fail)
}

/// A UUID (version 8) from the digest of the archive: overlayfs tells file systems apart by it.
fn uuid(diff_id: &str) -> [u8; 16] {
    let hex = diff_id.rsplit(':').next().unwrap_or_default().as_bytes();
    let digit = |at: usize| {
        let byte = hex.get(at).copied().unwrap_or(b'0');
        char::from(byte).to_digit(16).unwrap_or(0) as u8
    };
    let mut uuid: [u8; 16] = std::array::from_fn(|n| digit(2 * n) << 4 | digit(2 * n + 1));
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Who is where.
struct Plan<'a> {
    tree: &'a Tree,
    /// Inodes in the order of the image: each directory's together.
    order: Vec<Id>,
    /// Parents of directories.
    parents: HashMap<Id, Id>,
    /// By inode; [`NOWHERE`] for those without a name.
    slots: Vec<u32>,
    /// By inode; None for those without a name.
    shapes: Vec<Option<Shape>>,
    /// First blocks of directories that have blocks.
    blocks: HashMap<Id, u32>,
    /// Inodes that must have all fields.
    changeable: Vec<bool>,
    /// The time of compact inodes.
    time: Time,
}

impl<'a> Plan<'a> {
    fn new(tree: &'a Tree, implied: &BTreeSet<Vec<u8>>) -> Result<Self> {
        let mut plan = Self {
            tree,
            order: vec![TOP],
            parents: HashMap::from([(TOP, TOP)]),
            slots: vec![NOWHERE; tree.nodes.len()],
            shapes: vec![None; tree.nodes.len()],
            blocks: HashMap::new(),
            changeable: vec![false; tree.nodes.len()],
            time: Time::default(),
        };
        plan.list(implied);
        plan.time = plan.usual_time();
        plan.place_inodes()?;
        Ok(plan)
    }

    /// Goes through the tree, level by level.
    fn list(&mut self, implied: &BTreeSet<Vec<u8>>) {
        let tree = self.tree;
        self.changeable[TOP as usize] = true;
        for path in implied {
            let mut names = path.split(|byte| *byte == b'/');
            let found = names.try_fold(TOP, |dir, name| tree.get(dir, name));
            if let Some(id) = found {
                self.changeable[id as usize] = true;
            }
        }
        let mut seen = vec![false; tree.nodes.len()];
        let mut next = 0;
        while let Some(dir) = self.order.get(next).copied() {
            next += 1;
            let Some(directory) = tree.directory(dir) else { continue };
            for id in directory.entries.values().copied() {
                if tree.directory(id).is_some() {
                    self.parents.insert(id, dir);
                }
                if !std::mem::replace(&mut seen[id as usize], true) {
                    self.order.push(id);
                }
            }
        }
    }

    /// The most frequent time, the earliest of several.
    fn usual_time(&self) -> Time {
        let mut counts: BTreeMap<Time, usize> = BTreeMap::new();
        for id in &self.order {
            *counts.entry(self.tree.node(*id).attributes.mtime).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(time, n)| (*n, std::cmp::Reverse(*time)));
        most.map_or_else(Time::default, |(time, _)| time)
    }

    fn place_inodes(&mut self) -> Result<()> {
        let mut at = SLOT; // the first slot is the note's
        for id in self.order.clone() {
            let shape = self.work_out(id);
            self.shapes[id as usize] = Some(shape);
            let length = shape.bytes();
            // What fits into a block does not cross into the next: the kernel wants it of what is
            // inline, and it saves reading two.
            if at % BLOCK + length.min(BLOCK) > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            self.slots[id as usize] = u32::try_from(at / SLOT)
                .ok()
                .filter(|slot| *slot != NOWHERE)
                .ok_or(ArchiveError::Limit { limit: SLOT << 32, unit: "bytes of inodes" })?;
            at = (at + length).next_multiple_of(SLOT);
        }
        Ok(())
    }

    /// Writes the blocks of the directories that have some.
    fn place_directories(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        sink.align()?;
        let mut block = Vec::with_capacity(BLOCK as usize);
        for id in self.order.clone() {
            let node = self.tree.node(id);
            // Also a link whose attributes leave it no room.
            let is_inside = matches!(node.content, Content::Directory(_) | Content::Symlink(_));
            let layout = self.shapes[id as usize].map(|shape| shape.layout);
            if !is_inside || layout != Some(Layout::Plain) {
                continue;
            }
            self.blocks.insert(id, sink.block()?);
            if let Content::Symlink(target) = &node.content {
                sink.write(target)?;
            }
            let entries = self.entries(id);
            let mut rest = entries.as_slice();
            while !rest.is_empty() {
                let (count, _) = fill_block(rest.iter().map(|entry| entry.name));
                let (now, later) = rest.split_at(count);
                block.clear();
                encode_block(now, &mut block);
                sink.write(&block)?;
                sink.align()?;
                rest = later;
            }
            sink.align()?;
        }
        Ok(())
    }

    fn write_inodes(&self, sink: &mut Sink<'_>) -> Result<()> {
        let start = sink.position() - SLOT;
        let mut out = Vec::new();
        for id in self.order.iter().copied() {
            sink.skip_to(start + u64::from(self.slots[id as usize]) * SLOT)?;
            let node = self.tree.node(id);
            let Some(shape) = self.shapes[id as usize] else { continue };
            out.clear();
            self.inode(id, node, &shape).encode(shape.is_compact, &mut out);
            if shape.xattr_bytes > 0 {
                out.extend_from_slice(&[0; XATTR_HEADER]);
                out.extend_from_slice(&node.attributes.xattrs);
                encode_opaque(node, &mut out);
            }
            match &node.content {
                Content::File(_, Data::Chunks { table, .. }) => {
                    table.iter().for_each(|block| out.extend_from_slice(&block.to_le_bytes()));
                }
                Content::Symlink(target) if shape.layout == Layout::Inline => {
                    out.extend_from_slice(target);
                }
                Content::Directory(_) if shape.layout == Layout::Inline => {
                    encode_block(&self.entries(id), &mut out);
                }
                _ => {}
            }
            sink.write(&out)?;
        }
        Ok(())
    }

    fn inode(&self, id: Id, node: &Node, shape: &Shape) -> Inode {
        let word = match &node.content {
            Content::File(_, Data::Blocks(block)) => *block,
            Content::File(_, Data::Chunks { bits, .. }) => u32::from(*bits),
            Content::Special(_, device) => *device,
            Content::Directory(_) | Content::Symlink(_) => {
                self.blocks.get(&id).copied().unwrap_or(0)
            }
        };
        let nlink = match &node.content {
            Content::Directory(directory) => {
                let inside = directory.entries.values();
                let below = inside.filter(|id| self.tree.directory(**id).is_some()).count();
                2 + u32::try_from(below).unwrap_or(u32::MAX - 2)
            }
            _ => node.names,
        };
        Inode {
            layout: shape.layout,
            mode: node.kind().bits() | node.attributes.mode,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: node.attributes.mtime,
            nlink,
            size: shape.size,
            word,
            number: id + 1,
            xattr_bytes: shape.xattr_bytes,
        }
    }

    /// What a directory holds, in the format's order, with itself and its parent.
    fn entries(&self, id: Id) -> Vec<Dirent<'a>> {
        let Some(directory) = self.tree.directory(id) else { return Vec::new() };
        let parent = self.parents.get(&id).copied().unwrap_or(TOP);
        let entry = |name: &'a [u8], id: Id| Dirent {
            name,
            slot: u64::from(self.slots[id as usize]),
            kind: self.tree.node(id).kind().dirent(),
        };
        let mut entries = vec![entry(b".", id), entry(b"..", parent)];
        entries.extend(directory.entries.iter().map(|(name, id)| entry(name, *id)));
        entries.sort_unstable_by_key(|entry| entry.name);
        entries
    }

    fn work_out(&self, id: Id) -> Shape {
        let node = self.tree.node(id);
        let own = node.attributes.xattrs.len() + opaque_bytes(node);
        let xattr_bytes = if own > 0 { XATTR_HEADER + own } else { 0 };
        let (size, behind, inline) = match &node.content {
            Content::File(size, Data::Blocks(_)) => (*size, 0, Layout::Plain),
            Content::File(size, Data::Chunks { table, .. }) => {
                (*size, table.len() * 4, Layout::Chunks)
            }
            Content::Special(..) => (0, 0, Layout::Plain),
            Content::Symlink(target) => (target.len() as u64, target.len(), Layout::Inline),
            Content::Directory(directory) => {
                let size = directory_bytes(directory);
                (size, usize::try_from(size).unwrap_or(usize::MAX), Layout::Inline)
            }
        };
        let mut shape = Shape { layout: inline, is_compact: false, xattr_bytes, size, behind };
        let inode = self.inode_fields(id, node, size);
        shape.is_compact = !self.changeable[id as usize] && inode.is_small(self.time);
        if inline == Layout::Inline && shape.bytes() > BLOCK {
            shape.layout = Layout::Plain;
            shape.behind = 0;
        }
        shape
    }

    /// As much of the inode as decides about its form.
    fn inode_fields(&self, id: Id, node: &Node, size: u64) -> Inode {
        let shape =
            Shape { layout: Layout::Plain, is_compact: false, xattr_bytes: 0, size, behind: 0 };
        self.inode(id, node, &shape)
    }

    /// Bytes of files and links, and inodes.
    fn usage(&self) -> (u64, u64) {
        let bytes = self.order.iter().map(|id| match &self.tree.node(*id).content {
            Content::File(size, _) => *size,
            Content::Symlink(target) => target.len() as u64,
            _ => 0,
        });
        (bytes.fold(0, u64::saturating_add), self.order.len() as u64)
    }

    fn has_chunks(&self) -> bool {
        self.order
            .iter()
            .any(|id| matches!(self.tree.node(*id).content, Content::File(_, Data::Chunks { .. })))
    }
}

/// How an inode is written.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layout: Layout,
    is_compact: bool,
    xattr_bytes: usize,
    /// As `stat(2)` shows it.
    size: u64,
    /// Bytes behind the attributes.
    behind: usize,
}

impl Shape {
    fn bytes(&self) -> u64 {
        let inode = if self.is_compact { COMPACT } else { EXTENDED };
        (inode + self.xattr_bytes + self.behind) as u64
    }
}

/// Bytes of a directory: whole blocks, and what is used of the last.
fn directory_bytes(directory: &Directory) -> u64 {
    let own: [&[u8]; 2] = [b".", b".."];
    let mut names: Vec<&[u8]> = own.to_vec();
    names.extend(directory.entries.keys().map(|name| &**name));
    // Mostly there is one block, and then the order does not matter.
    let all: usize = names.iter().map(|name| DIRENT + name.len()).sum();
    if all <= BLOCK as usize {
        return all as u64;
    }
    names.sort_unstable();
    let mut rest = names.as_slice();
    let mut size = 0;
    while !rest.is_empty() {
        let (count, bytes) = fill_block(rest.iter().copied());
        rest = &rest[count..];
        size += if rest.is_empty() { bytes as u64 } else { BLOCK };
    }
    size
}

fn encode_opaque(node: &Node, out: &mut Vec<u8>) {
    if matches!(&node.content, Content::Directory(directory) if directory.is_opaque) {
        // Short enough for the format, so there is nothing to report.
        let _ = encode(b"trusted.overlay.opaque", b"y", out);
    }
}

fn opaque_bytes(node: &Node) -> usize {
    let mut out = Vec::new();
    encode_opaque(node, &mut out);
    out.len()
}
