//! The table of layers and the steps that change it: reserve in memory, act on disk, publish.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_sdk::{Error, ErrorKind, Labels, Result};
use gantry_sys::mount::{project_of, set_project};
use gantry_sys::path::{Links, open_beneath, remove_tree_beneath};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::making::NewLayer;
use crate::record::{Record, State, check_key};

/// The layers of one storage instance. All calls but the reading ones block: use a blocking thread.
#[derive(Debug)]
pub struct Layers {
    pub(crate) root: PathBuf,
    pub(crate) root_fd: OwnedFd,
    pub(crate) dirs: OwnedFd,
    pub(crate) records: OwnedFd,
    pub(crate) trash: OwnedFd,
    pub(crate) table: Mutex<Table>,
    /// Told when something has been put into the trash.
    pub(crate) trashed: tokio::sync::Notify,
    /// Held by a sync. Whether there are marks of durable layers that may not be on disk.
    pub(crate) syncing: Mutex<bool>,
    /// Whether the records were written, or checked, during this boot of the machine.
    pub(crate) same_boot: AtomicBool,
    /// Whether directories can be limited by project quota.
    pub(crate) limits: bool,
    /// The driver's options for this instance.
    pub(crate) options: Labels,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) slots: BTreeMap<String, Slot>,
    /// Keys of the layers that stand on a key, which itself may be missing.
    pub(crate) children: HashMap<String, BTreeSet<String>>,
    pub(crate) next_id: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Slot {
    Ready(Record),
    /// Somebody is at work on it.
    Reserved,
}

impl Table {
    pub(crate) fn insert(&mut self, record: Record) {
        if let Some(parent) = &record.parent {
            self.children.entry(parent.clone()).or_default().insert(record.key.clone());
        }
        self.slots.insert(record.key.clone(), Slot::Ready(record));
    }

    pub(crate) fn forget(&mut self, key: &str, parent: Option<&String>) {
        self.slots.remove(key);
        if let Some(parent) = parent
            && let Some(children) = self.children.get_mut(parent)
        {
            children.remove(key);
            if children.is_empty() {
                self.children.remove(parent);
            }
        }
    }

    fn ready(&self, key: &str) -> Result<&Record> {
        match self.slots.get(key) {
            Some(Slot::Ready(record)) => Ok(record),
            Some(Slot::Reserved) => Err(Error::busy(format!("layer {key} is being changed"))),
            None => Err(Error::not_found(format!("no layer {key}"))),
        }
    }
}

/// What [`Layers::prepare`] found.
enum Reserved {
    /// It is there already.
    Before(Record),
    /// It is ours to make.
    Ours(Record, Option<Record>),
}

impl Layers {
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instance's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same instance with its driver's options.
    #[must_use]
    pub fn with_options(self, options: Labels) -> Self {
        Self { options, ..self }
    }

    /// The driver's options for this instance, as configured.
    pub fn options(&self) -> &Labels {
        &self.options
    }

    /// The instance's root, open.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root_fd.as_fd()
    }

    /// The layer `key`. Memory only.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Busy` while somebody makes or changes it.
    pub fn get(&self, key: &str) -> Result<Record> {
        self.table().ready(key).cloned()
    }

    /// The layer `key` and all below it, from the top down. Memory only.
    ///
    /// # Errors
    ///
    /// `NotFound` for `key` or for one of the layers below.
    pub fn chain(&self, key: &str) -> Result<Vec<Record>> {
        let table = self.table();
        let mut chain = vec![table.ready(key)?.clone()];
        while let Some(parent) = chain.last().and_then(|record| record.parent.clone()) {
            if chain.len() > table.slots.len() {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("layer {key} stands on itself"),
                ));
            }
            let below =
                table.ready(&parent).map_err(|error| error.context(format!("layer {key}")))?;
            chain.push(below.clone());
        }
        Ok(chain)
    }

    /// Up to `limit` layers with keys after `after`, in key order. Memory only.
    pub fn list(&self, after: Option<&str>, limit: u32) -> Vec<Record> {
        use std::ops::Bound::{Excluded, Unbounded};
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let from = after.map_or(Unbounded, Excluded);
        let table = self.table();
        let slots = table.slots.range::<str, _>((from, Unbounded));
        let ready = slots.filter_map(|(_, slot)| match slot {
            Slot::Ready(record) => Some(record.clone()),
            Slot::Reserved => None,
        });
        ready.take(limit).collect()
    }

    /// Makes the active layer `key` on `parent`; `fill` creates what its driver needs in it.
    ///
    /// # Errors
    ///
    /// As [`prepare`](gantry_sdk::kinds::storage::StorageDriver::prepare), and those of `fill`.
    pub fn prepare(
        &self,
        key: &str,
        parent: Option<&str>,
        max_depth: usize,
        fill: impl FnOnce(&NewLayer<'_>) -> Result<()>,
    ) -> Result<Record> {
        self.prepare_as(key, parent, false, max_depth, fill)
    }

    /// As [`prepare`](Self::prepare), for a layer of which nothing survives a power cut if `volatile`.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    pub fn prepare_as(
        &self,
        key: &str,
        parent: Option<&str>,
        volatile: bool,
        max_depth: usize,
        fill: impl FnOnce(&NewLayer<'_>) -> Result<()>,
    ) -> Result<Record> {
        let (record, below) = match self.reserve(key, parent, max_depth)? {
            Reserved::Before(record) => return Ok(record),
            Reserved::Ours(record, below) => (Record { volatile, ..record }, below),
        };
        let made = self.make(&record, below.as_ref(), fill);
        let mut table = self.table();
        match made {
            Ok(()) => table.insert(record.clone()),
            Err(_) => table.forget(key, record.parent.as_ref()),
        }
        drop(table);
        if made.is_err() {
            self.discard(record.id);
        }
        made.map(|()| record)
    }

    fn reserve(&self, key: &str, parent: Option<&str>, max_depth: usize) -> Result<Reserved> {
        check_key(key)?;
        let below = parent.map(|parent| self.base(key, parent, max_depth)).transpose()?;
        let mut table = self.table();
        match table.slots.get(key) {
            Some(Slot::Ready(found)) if found.is_active() && found.parent.as_deref() == parent => {
                return Ok(Reserved::Before(found.clone()));
            }
            Some(Slot::Ready(found)) => {
                let why =
                    if found.is_active() { "stands on another layer" } else { "is committed" };
                return Err(Error::conflict(format!("layer {key} exists and {why}")));
            }
            Some(Slot::Reserved) => {
                return Err(Error::busy(format!("layer {key} is being changed")));
            }
            None => {}
        }
        if let Some(parent) = parent {
            // It may have gone between the two looks.
            table.ready(parent)?;
            table.children.entry(parent.to_owned()).or_default().insert(key.to_owned());
        }
        table.slots.insert(key.to_owned(), Slot::Reserved);
        let id = table.next_id;
        table.next_id += 1;
        let parent = parent.map(str::to_owned);
        let record =
            Record { id, key: key.to_owned(), parent, state: State::Active, volatile: false };
        Ok(Reserved::Ours(record, below))
    }

    /// The layer `parent`, if `key` can stand on it.
    fn base(&self, key: &str, parent: &str, max_depth: usize) -> Result<Record> {
        let chain = self.chain(parent)?;
        let depth = chain.len();
        if depth > max_depth {
            return Err(Error::invalid(format!(
                "layer {key} would have {depth} layers below, the limit is {max_depth}"
            )));
        }
        match chain.into_iter().next() {
            Some(base) if !base.is_active() => Ok(base),
            _ => Err(Error::conflict(format!("layer {parent} is not committed"))),
        }
    }

    /// Puts the active layer `key`, which stands on nothing, onto `parent`.
    ///
    /// # Errors
    ///
    /// As [`rebase`](gantry_sdk::kinds::storage::StorageDriver::rebase).
    pub fn rebase(&self, key: &str, parent: Option<&str>, max_depth: usize) -> Result<()> {
        if let Some(parent) = parent {
            self.base(key, parent, max_depth)?;
        }
        let (old, new) = {
            let mut table = self.table();
            let old = table.ready(key)?.clone();
            if !old.is_active() {
                return Err(Error::not_found(format!("no active layer {key}")));
            }
            match (old.parent.as_deref(), parent) {
                (before, after) if before == after => return Ok(()),
                (None, Some(parent)) => {
                    // It may have gone between the two looks.
                    table.ready(parent)?;
                    table.children.entry(parent.to_owned()).or_default().insert(key.to_owned());
                }
                _ => return Err(Error::conflict(format!("layer {key} stands on another layer"))),
            }
            table.slots.insert(key.to_owned(), Slot::Reserved);
            let new = Record { parent: parent.map(str::to_owned), ..old.clone() };
            (old, new)
        };
        let written = self.rewrite(&new);
        let mut table = self.table();
        if written.is_ok() {
            table.insert(new);
        } else {
            table.forget(key, new.parent.as_ref());
            table.insert(old);
        }
        written
    }

    fn make(
        &self,
        record: &Record,
        parent: Option<&Record>,
        fill: impl FnOnce(&NewLayer<'_>) -> Result<()>,
    ) -> Result<()> {
        let id = record.id.to_string();
        let fail = |doing| self.failed(doing, &record.key);
        rustix::fs::mkdirat(&self.dirs, &id, Mode::from_raw_mode(0o710)).map_err(fail("make"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::openat(&self.dirs, &id, flags, Mode::empty()).map_err(fail("open"))?;
        fill(&NewLayer { record, parent, dir, root: self.root_fd.as_fd() })?;
        rustix::fs::symlinkat(record.encode(), &self.records, &id).map_err(fail("record"))
    }

    pub(crate) fn failed(&self, doing: &'static str, key: &str) -> impl FnOnce(Errno) -> Error {
        let what = format!("layer {key} in {}", self.root.display());
        move |errno| Error::io(doing, what, errno.into())
    }

    /// Turns the active layer `key` into the committed layer `name`.
    ///
    /// # Errors
    ///
    /// As [`commit`](gantry_sdk::kinds::storage::StorageDriver::commit). Again after success: the
    /// same answer, found by `name`.
    pub fn commit(&self, key: &str, name: &str) -> Result<Record> {
        check_key(name)?;
        let old = {
            let mut table = self.table();
            let old = table.ready(key)?.clone();
            if !old.is_active() {
                return Err(Error::not_found(format!("no active layer {key}")));
            }
            if table.slots.contains_key(name) {
                return Err(Error::exists(format!("layer {name} exists")));
            }
            if table.children.contains_key(key) {
                return Err(Error::busy(format!("layer {key} is in use")));
            }
            table.slots.insert(key.to_owned(), Slot::Reserved);
            table.slots.insert(name.to_owned(), Slot::Reserved);
            old
        };
        let new = Record {
            key: name.to_owned(),
            state: State::Committed,
            volatile: false,
            ..old.clone()
        };
        let written = self.rewrite(&new);
        let mut table = self.table();
        table.forget(name, None);
        if let Err(error) = written {
            table.insert(old);
            return Err(error);
        }
        table.forget(key, old.parent.as_ref());
        table.insert(new.clone());
        drop(table);
        self.drop_work(&old);
        Ok(new)
    }

    /// Replaces a record: old or new, never half.
    fn rewrite(&self, record: &Record) -> Result<()> {
        let (id, new) = (record.id.to_string(), format!("{}.new", record.id));
        let fail = |doing| self.failed(doing, &record.key);
        match rustix::fs::unlinkat(&self.records, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(fail("record")(errno)),
        }
        rustix::fs::symlinkat(record.encode(), &self.records, &new).map_err(fail("record"))?;
        rustix::fs::renameat(&self.records, &new, &self.records, &id).map_err(fail("record"))
    }

    /// Lets a volatile layer be mounted again. Overlayfs leaves a mark in its scratch that says the content
    /// is worth nothing after a crash of the machine, and then nobody would come to take it away.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn forgive_volatile(&self, record: &Record) -> Result<()> {
        let marks = format!("{}/work/work/incompat", record.id);
        remove_tree_beneath(&self.dirs, Path::new(&marks))
            .map_err(|e| Error::internal(format!("cannot unmark layer {}", record.key), e))
    }

    /// Overlayfs leaves one empty directory in its scratch, and marks if it was volatile; anything else
    /// there stays until the layer goes.
    fn drop_work(&self, record: &Record) {
        if record.volatile {
            let _ = self.forgive_volatile(record);
        }
        for dir in ["work/work", "work"] {
            let _ = rustix::fs::unlinkat(
                &self.dirs,
                format!("{}/{dir}", record.id),
                AtFlags::REMOVEDIR,
            );
        }
    }

    /// Removes the layer `key`: at once for everybody, on disk by and by.
    ///
    /// # Errors
    ///
    /// `Busy`, naming what stands on it.
    pub fn remove(&self, key: &str) -> Result<()> {
        let record = {
            let mut table = self.table();
            let record = match table.ready(key) {
                Ok(record) => record.clone(),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            if let Some(children) = table.children.get(key) {
                let names: Vec<&str> = children.iter().take(8).map(String::as_str).collect();
                let names = names.join(", ");
                return Err(Error::busy(format!("layer {key} has layers on it: {names}")));
            }
            table.slots.insert(key.to_owned(), Slot::Reserved);
            record
        };
        let gone = self.unrecord(&record);
        let mut table = self.table();
        match gone {
            Ok(()) => table.forget(key, record.parent.as_ref()),
            Err(_) => table.insert(record.clone()),
        }
        drop(table);
        gone?;
        self.discard(record.id);
        Ok(())
    }

    pub(crate) fn unrecord(&self, record: &Record) -> Result<()> {
        match rustix::fs::unlinkat(&self.records, record.id.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", &record.key)(errno)),
        }
    }

    /// Puts a directory into the trash. A failure is found again at the next start: it has no record.
    pub(crate) fn discard(&self, id: u64) {
        let id = id.to_string();
        let mut moved = rustix::fs::renameat(&self.dirs, &id, &self.trash, &id);
        if moved == Err(Errno::XDEV) {
            // The whole instance is in somebody's project, into which nothing moves from another.
            self.leave_project(&id);
            moved = rustix::fs::renameat(&self.dirs, &id, &self.trash, &id);
        }
        match moved {
            Ok(()) => self.trashed.notify_one(),
            Err(Errno::NOENT) => {}
            // Not even a name fits. Whoever removes things then wants the space, and waits for it.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                if let Err(error) = self.delete(&self.dirs, id.as_bytes()) {
                    tracing::warn!(root = %self.root.display(), id, %error, "A removed layer is partly on disk until the next start.");
                }
                self.trashed.notify_one();
            }
            Err(error) => {
                tracing::warn!(root = %self.root.display(), id, %error, "A removed layer stays on disk until the next start.");
            }
        }
    }

    /// Takes a layer's directory out of its own project, into the one that the trash is in.
    fn leave_project(&self, id: &str) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(&self.dirs, id, flags, Mode::empty()) else { return };
        let Ok(trash) = rustix::fs::openat(&self.trash, ".", flags, Mode::empty()) else { return };
        // What goes wrong shows in the rename that follows.
        let _ = project_of(trash).and_then(|project| set_project(dir, project));
    }

    /// Whether directories of this file system say of what type their entries are, as overlays need.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn tells_types(&self) -> Result<bool> {
        let fail = |errno: Errno| Error::io("list", self.root.display(), errno.into());
        for entry in rustix::fs::Dir::read_from(&self.root_fd).map_err(fail)? {
            // Its own directories at the least are among them.
            let is_own = |name: &CStr| [c"l", c"r", c"t"].contains(&name);
            let entry = entry.map_err(fail)?;
            if is_own(entry.file_name()) && entry.file_type() == rustix::fs::FileType::Unknown {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of the files and links in the layer's own directory, and its inodes.
    ///
    /// # Errors
    ///
    /// `NotFound`; what the walk reports.
    pub fn own_usage(&self, key: &str) -> Result<(u64, u64)> {
        let dir = self.open_content(&self.get(key)?)?;
        let usage = gantry_sys::path::usage(dir)
            .map_err(|e| Error::internal(format!("cannot measure layer {key}"), e))?;
        // The top directory is there even in a layer that changes nothing.
        Ok((usage.apparent_bytes, usage.inodes.saturating_sub(1)))
    }

    /// The file system that the instance lies on, as `docker info` names it.
    pub fn backing_file_system(&self) -> String {
        let name = match rustix::fs::fstatfs(&self.root_fd).map(|stat| stat.f_type) {
            Ok(0xef53) => "extfs",
            Ok(0x5846_5342) => "xfs",
            Ok(0x9123_683e) => "btrfs",
            Ok(0x0102_1994) => "tmpfs",
            Ok(0x2fc1_2fc1) => "zfs",
            Ok(0x794c_7630) => "overlayfs",
            Ok(other) => return format!("0x{other:x}"),
            Err(_) => "<unknown>",
        };
        name.to_owned()
    }

    /// Opens a layer's content directory.
    ///
    /// # Errors
    ///
    /// `Internal` if it is not there.
    pub fn open_content(&self, record: &Record) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        open_beneath(
            &self.root_fd,
            Path::new(&record.content()),
            flags,
            Mode::empty(),
            Links::Refuse,
        )
        .map_err(|e| Error::internal(format!("cannot open layer {}", record.key), e))
    }

    /// Puts everything committed so far on disk, and remembers that.
    ///
    /// # Errors
    ///
    /// What the disk reported.
    pub fn sync(&self) -> Result<()> {
        // One at a time, across the disk's work: two would make the same mark.
        let mut marks_wait = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let unsynced: Vec<Record> = {
            let table = self.table();
            let records = table.slots.values().filter_map(|slot| match slot {
                Slot::Ready(record) if record.state == State::Committed => Some(record.clone()),
                _ => None,
            });
            records.collect()
        };
        let fail = |e: Errno| Error::io("sync", self.root.display(), e.into());
        if !unsynced.is_empty() {
            rustix::fs::syncfs(&self.root_fd).map_err(fail)?;
            *marks_wait = true;
            unsynced.iter().try_for_each(|record| self.mark_durable(record))?;
        }
        if *marks_wait {
            // Without the marks a power cut would cost the layers all the same.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let records =
                rustix::fs::openat(&self.records, ".", flags, Mode::empty()).map_err(fail)?;
            rustix::fs::fsync(&records).map_err(fail)?;
            *marks_wait = false;
        }
        Ok(())
    }

    /// Changes a record in place, while everybody may use the layer. If it was removed meanwhile, the
    /// new record goes too: a remover takes the slot first, and the record file after.
    fn mark_durable(&self, record: &Record) -> Result<()> {
        let durable = Record { state: State::Durable, ..record.clone() };
        self.rewrite(&durable)?;
        let is_there = {
            let mut table = self.table();
            match table.slots.get_mut(&record.key) {
                Some(Slot::Ready(now)) if now.id == record.id => {
                    *now = durable;
                    true
                }
                _ => false,
            }
        };
        if is_there { Ok(()) } else { self.unrecord(record) }
    }
}
