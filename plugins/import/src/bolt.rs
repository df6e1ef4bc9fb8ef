//! A database file of bbolt, read page by page; nothing of it is trusted.
//!
//! A file is pages. Pages 0 and 1 say where the root is, the newer one that is sound counts. A
//! bucket is a tree of branch and leaf pages, or one leaf page inside the value that stands for it.
//! All numbers are little-endian on the machines that this runs on.
//!
//! Source: `internal/common/{page,meta,bucket}.go` of etcd-io/bbolt.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use gantry_sdk::{Error, Result};

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const IS_BUCKET: u32 = 0x01;
/// Bytes of a bucket's value before the page in it, if there is one.
const BUCKET: usize = 16;
/// Most bytes of one page with those that continue it.
const MAX_PAGE: u64 = 64 << 20;
/// Branches from the root to a leaf: each has two children at least.
const MAX_DEPTH: u32 = 32;
/// Most bytes read of one file.
const MAX_READ: u64 = 2 << 30;
/// Most entries of one bucket.
const MAX_ENTRIES: usize = 1 << 20;

/// A database.
#[derive(Debug)]
pub struct Bolt {
    file: File,
    page_size: u64,
    pages: u64,
    root: u64,
    /// Bytes that may still be read: whatever points wherever, it ends.
    budget: Cell<u64>,
}

/// A bucket: the page where it begins, or the page that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// A tree of pages.
    At(u64),
    /// A leaf page inside a value.
    Inline(Vec<u8>),
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Bytes(Vec<u8>),
    /// A bucket.
    Bucket(Bucket),
}

/// Keys with what they stand for.
pub type Entries = Vec<(Vec<u8>, Value)>;

fn damaged(what: &str) -> Error {
    Error::invalid(format!("the database is damaged: {what}"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let end = at.checked_add(N).ok_or_else(|| damaged("a number out of bounds"))?;
    let found = bytes.get(at..end).and_then(|found| found.try_into().ok());
    found.ok_or_else(|| damaged("a page ends too early"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// `length` bytes, `offset` after `from`.
fn slice(page: &[u8], from: usize, offset: u32, length: u32) -> Result<&[u8]> {
    let start = from.checked_add(offset as usize);
    let range = start.and_then(|start| Some(start..start.checked_add(length as usize)?));
    range.and_then(|range| page.get(range)).ok_or_else(|| damaged("an entry out of its page"))
}

/// What the first pages say.
#[derive(Clone, Copy)]
struct Meta {
    page_size: u32,
    root: u64,
    pages: u64,
    transaction: u64,
}

impl Meta {
    /// From a whole page; none if it is not sound.
    fn parse(page: &[u8]) -> Option<Self> {
        let meta = page.get(HEADER..HEADER + 64)?;
        let sum = u64_at(meta, 56).ok()?;
        let sound = u32_at(meta, 0).ok()? == MAGIC
            && u32_at(meta, 4).ok()? == VERSION
            && fnv(&meta[..56]) == sum;
        sound.then_some(())?;
        Some(Self {
            page_size: u32_at(meta, 8).ok()?,
            root: u64_at(meta, 16).ok()?,
            pages: u64_at(meta, 40).ok()?,
            transaction: u64_at(meta, 48).ok()?,
        })
    }
}

/// FNV-1a, 64 bits.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

impl Bolt {
    /// Looks for the root.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if this is no such file, or a damaged one.
    pub fn open(file: File) -> Result<Self> {
        let length = file.metadata().map_err(|e| Error::io("read", "the database", e))?.len();
        let mut best: Option<Meta> = None;
        // Where the second one is depends on the size of pages, which only a sound one tells.
        for at in std::iter::once(0).chain((9..=16).map(|power| 1 << power)) {
            let mut page = [0; HEADER + 64];
            if file.read_exact_at(&mut page, at).is_err() {
                continue;
            }
            let right = |meta: &Meta| at == 0 || at == u64::from(meta.page_size);
            let found = Meta::parse(&page).filter(right);
            let newer = |meta: &Meta| best.is_none_or(|best| meta.transaction > best.transaction);
            best = found.filter(newer).or(best);
        }
        let meta = best.ok_or_else(|| damaged("it has no sound first page"))?;
        let page_size = u64::from(meta.page_size);
        if !meta.page_size.is_power_of_two() || !(512..=1 << 16).contains(&page_size) {
            return Err(damaged("pages of an impossible size"));
        }
        let pages = meta.pages.min(length / page_size);
        Ok(Self { file, page_size, pages, root: meta.root, budget: Cell::new(MAX_READ) })
    }

    /// The bucket of all buckets.
    pub fn root(&self) -> Bucket {
        Bucket::At(self.root)
    }

    /// A page with those that continue it.
    fn page(&self, id: u64) -> Result<Vec<u8>> {
        if !(2..self.pages).contains(&id) {
            return Err(damaged("it refers to a page that is not there"));
        }
        let at = id * self.page_size;
        let failed = |e| Error::io("read", "the database", e);
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, at).map_err(failed)?;
        let count = u64::from(u32_at(&header, 12)?) + 1;
        let bytes = count * self.page_size;
        if u64_at(&header, 0)? != id || bytes > MAX_PAGE || count > self.pages - id {
            return Err(damaged("a page that is not what it is said to be"));
        }
        let left = self.budget.get().checked_sub(bytes);
        self.budget.set(left.ok_or_else(|| damaged("there is no end to it"))?);
        let mut page = vec![0; bytes as usize];
        self.file.read_exact_at(&mut page, at).map_err(failed)?;
        Ok(page)
    }

    /// Everything in a bucket, in the order of keys.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the file is damaged.
    pub fn entries(&self, bucket: &Bucket) -> Result<Entries> {
        let mut entries = Vec::new();
        match bucket {
            Bucket::At(page) => self.collect(&self.page(*page)?, 0, &mut entries)?,
            Bucket::Inline(page) => leaf(page, &mut entries)?,
        }
        Ok(entries)
    }

    fn collect(&self, page: &[u8], depth: u32, entries: &mut Entries) -> Result<()> {
        match u16_at(page, 8)? {
            LEAF => leaf(page, entries),
            BRANCH if depth < MAX_DEPTH => {
                for n in 0..usize::from(u16_at(page, 10)?) {
                    let below = self.page(u64_at(page, HEADER + n * ELEMENT + 8)?)?;
                    self.collect(&below, depth + 1, entries)?;
                }
                Ok(())
            }
            BRANCH => Err(damaged("a tree without an end")),
            _ => Err(damaged("a page of another type in a tree")),
        }
    }

    /// The bucket of that name; none if there is none.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the file is damaged.
    pub fn bucket(&self, parent: &Bucket, name: &str) -> Result<Option<Bucket>> {
        let found = self.entries(parent)?.into_iter().find(|(key, _)| key == name.as_bytes());
        Ok(match found {
            Some((_, Value::Bucket(bucket))) => Some(bucket),
            _ => None,
        })
    }
}

fn leaf(page: &[u8], entries: &mut Entries) -> Result<()> {
    if u16_at(page, 8)? != LEAF {
        return Err(damaged("a bucket in a value that is no leaf"));
    }
    for n in 0..usize::from(u16_at(page, 10)?) {
        let at = HEADER + n * ELEMENT;
        let (flags, offset) = (u32_at(page, at)?, u32_at(page, at + 4)?);
        let (key_size, value_size) = (u32_at(page, at + 8)?, u32_at(page, at + 12)?);
        let key = slice(page, at, offset, key_size)?.to_vec();
        let value_at = offset.checked_add(key_size).ok_or_else(|| damaged("a huge key"))?;
        let value = slice(page, at, value_at, value_size)?;
        let value = if flags & IS_BUCKET == 0 {
            Value::Bytes(value.to_vec())
        } else {
            match u64_at(value, 0)? {
                0 => Value::Bucket(Bucket::Inline(value.get(BUCKET..).unwrap_or(&[]).to_vec())),
                page => Value::Bucket(Bucket::At(page)),
            }
        };
        entries.push((key, value));
        if entries.len() > MAX_ENTRIES {
            return Err(damaged("a bucket with too many entries"));
        }
    }
    Ok(())
}
