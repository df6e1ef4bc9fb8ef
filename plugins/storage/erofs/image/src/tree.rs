//! The tree in memory: names and inodes, without data.

use std::collections::BTreeMap;

use gantry_archive::{ArchiveError, Result};

use crate::attributes::Attributes;
use crate::data::Data;

/// Number of an inode.
pub(crate) type Id = u32;

/// The top directory.
pub(crate) const TOP: Id = 0;

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl Kind {
    /// As directories number it.
    pub(crate) fn dirent(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }

    /// The type bits of a mode.
    pub(crate) fn bits(self) -> u16 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// What is in an inode.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A file of so many bytes.
    File(u64, Data),
    Directory(Directory),
    Symlink(Box<[u8]>),
    /// A device by its number as the format has it; pipes and sockets have 0.
    Special(Kind, u32),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    pub(crate) entries: BTreeMap<Box<[u8]>, Id>,
    /// Nothing of the layers below shines through.
    pub(crate) is_opaque: bool,
}

/// An inode.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) content: Content,
    /// Names; of directories, not counting themselves and what is in them.
    pub(crate) names: u32,
}

impl Node {
    pub(crate) fn kind(&self) -> Kind {
        match &self.content {
            Content::File(..) => Kind::File,
            Content::Directory(_) => Kind::Directory,
            Content::Symlink(_) => Kind::Symlink,
            Content::Special(kind, _) => *kind,
        }
    }

    /// Whether this is overlayfs' mark of a deletion.
    pub(crate) fn is_whiteout(&self) -> bool {
        matches!(self.content, Content::Special(Kind::CharDevice, 0))
    }
}

/// The tree. Inodes that have lost their last name stay in the list and in the count of bytes.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    bytes: u64,
    limit: u64,
}

/// About what an inode and a name take beyond their variable parts.
const NODE: u64 = 160;
const NAME: u64 = 64;

impl Tree {
    /// An empty top directory, and at most `limit` bytes of memory.
    pub(crate) fn new(top: Attributes, limit: u64) -> Self {
        let content = Content::Directory(Directory::default());
        Self { nodes: vec![Node { attributes: top, content, names: 1 }], bytes: 0, limit }
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// The directory `id`; None for anything else.
    pub(crate) fn directory(&self, id: Id) -> Option<&Directory> {
        match &self.node(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// What the directory `dir` has of that name.
    pub(crate) fn get(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.directory(dir)?.entries.get(name).copied()
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limit {
            let limit = self.limit;
            return Err(ArchiveError::Limit { limit, unit: "bytes of names and attributes" });
        }
        Ok(())
    }

    /// A new inode, without a name.
    ///
    /// # Errors
    ///
    /// `Limit`.
    pub(crate) fn add(&mut self, attributes: Attributes, content: Content) -> Result<Id> {
        let own = match &content {
            Content::File(_, Data::Chunks { table, .. }) => table.len() * 4,
            Content::Symlink(target) => target.len(),
            _ => 0,
        };
        self.spend(NODE + (own + attributes.xattrs.len()) as u64)?;
        let id = Id::try_from(self.nodes.len()).unwrap_or(Id::MAX);
        if id >= Id::MAX - 1 {
            return Err(ArchiveError::Limit { limit: u64::from(Id::MAX), unit: "inodes" });
        }
        self.nodes.push(Node { attributes, content, names: 0 });
        Ok(id)
    }

    /// Gives the inode `id` a name in the directory `dir` that is not taken.
    ///
    /// # Errors
    ///
    /// `Limit`.
    pub(crate) fn link(&mut self, dir: Id, name: &[u8], id: Id) -> Result<()> {
        self.spend(NAME + name.len() as u64)?;
        self.node_mut(id).names += 1;
        if let Content::Directory(directory) = &mut self.node_mut(dir).content {
            directory.entries.insert(name.into(), id);
        }
        Ok(())
    }

    /// Takes a name away, and of a directory everything in it.
    pub(crate) fn unlink(&mut self, dir: Id, name: &[u8]) {
        let Content::Directory(directory) = &mut self.node_mut(dir).content else { return };
        let mut gone: Vec<Id> = directory.entries.remove(name).into_iter().collect();
        while let Some(id) = gone.pop() {
            let node = self.node_mut(id);
            node.names = node.names.saturating_sub(1);
            if let Content::Directory(directory) = &mut node.content {
                gone.extend(std::mem::take(&mut directory.entries).into_values());
            }
        }
    }

    /// Makes a directory hide what lies below it.
    pub(crate) fn set_opaque(&mut self, id: Id) {
        if let Content::Directory(directory) = &mut self.node_mut(id).content {
            directory.is_opaque = true;
        }
    }

    /// Replaces the attributes of an inode.
    ///
    /// # Errors
    ///
    /// `Limit`.
    pub(crate) fn dress(&mut self, id: Id, attributes: Attributes) -> Result<()> {
        self.spend(attributes.xattrs.len() as u64)?;
        self.node_mut(id).attributes = attributes;
        Ok(())
    }
}
