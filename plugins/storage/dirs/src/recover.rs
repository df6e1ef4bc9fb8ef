//! Opening an instance, and putting right what a crash left.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use gantry_sdk::{Error, ErrorKind, Labels, Result};
use gantry_sys::mount::{
    ProjectLimit, enforces_project_limits, hurry_removed_subvolumes, own_project, set_project_limit,
};
use gantry_sys::path::{
    Durability, Links, Mode, NewDirectory, OFlags, mkdir_all_beneath, open_beneath, open_root,
    read_file_bounded, remove_tree_beneath, replace,
};
use rustix::fs::Dir;

use crate::layers::{Layers, Slot, Table};
use crate::record::{Record, State};
use crate::subvolumes::remove_content;

/// Changes with every boot. Source: proc_sys_kernel(5).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Layers {
    /// Opens the instance at `root`, making what is missing, and reads its records.
    ///
    /// # Errors
    ///
    /// What the file system reported. A record that cannot be read is an error too: guessing would
    /// remove somebody's data.
    pub fn open(root: &Path) -> Result<Self> {
        let fail = |e| Error::internal(format!("cannot open storage {}", root.display()), e);
        std::fs::create_dir_all(root).map_err(|e| Error::io("make", root.display(), e))?;
        let root_fd = open_root(root).map_err(fail)?;
        let open = |name: &str| {
            let new = NewDirectory { mode: 0o710, owner: None };
            mkdir_all_beneath(&root_fd, Path::new(name), new, Links::Refuse).map_err(fail)
        };
        let (dirs, records, trash) = (open("l")?, open("r")?, open("t")?);
        let readable = open("")?; // syncfs does not take an `O_PATH` descriptor
        let table = read_records(&records, root)?;
        let boot = read_file_bounded(Path::new(BOOT_ID), 64).map_err(fail)?;
        let same_boot = read_file_bounded(&root.join("boot"), 64).is_ok_and(|old| old == boot);
        let limits = enforces_project_limits(&readable).map_err(fail)?;
        let layers = Self {
            root: root.to_owned(),
            root_fd: readable,
            limits,
            options: Labels::new(),
            dirs,
            records,
            trash,
            table: Mutex::new(table),
            trashed: tokio::sync::Notify::new(),
            syncing: std::sync::Mutex::default(),
            same_boot: AtomicBool::new(same_boot),
        };
        layers.number_past_leftovers()?;
        Ok(layers)
    }

    /// New layers never take the number of something that is still on disk.
    fn number_past_leftovers(&self) -> Result<()> {
        for dir in [&self.dirs, &self.trash] {
            for name in names(dir, &self.root)? {
                if let Some(id) = to_id(&name) {
                    let mut table = self.table();
                    table.next_id = table.next_id.max(id.saturating_add(1));
                }
            }
        }
        Ok(())
    }

    /// Finishes or undoes what was half done; returns the keys that were dropped. Again: nothing
    /// more. What is not ours is reported in the log and left alone.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut dropped =
            if self.same_boot.load(Relaxed) { Vec::new() } else { self.drop_unsynced()? };
        let mut missing: BTreeMap<u64, Record> = BTreeMap::new();
        {
            let table = self.table();
            for slot in table.slots.values() {
                match slot {
                    Slot::Ready(record) => drop(missing.insert(record.id, record.clone())),
                    // Somebody is at work: then this is not a start, and nothing is left over.
                    Slot::Reserved => return Ok(dropped),
                }
            }
        }
        for name in names(&self.dirs, &self.root)? {
            match to_id(&name) {
                Some(id) if missing.remove(&id).is_some() => {}
                Some(id) => self.discard(id),
                None => {
                    let name = name.escape_ascii().to_string();
                    tracing::warn!(root = %self.root.display(), name, "Something that is no layer lies among the layers.");
                }
            }
        }
        // Removed as far as the directory, or lost: either way there is nothing left to use.
        for record in missing.into_values() {
            self.unrecord(&record)?;
            self.table().forget(&record.key, record.parent.as_ref());
            dropped.push(record.key);
        }
        dropped.extend(self.drop_orphans()?);
        if !self.same_boot.load(Relaxed) {
            let boot = read_file_bounded(Path::new(BOOT_ID), 64)
                .map_err(|e| Error::internal("cannot read the boot id", e))?;
            // If a power cut takes this note along, the next start is as careful as this one.
            replace(&self.root.join("boot"), &boot, Durability::Volatile)
                .map_err(|e| Error::internal("cannot record the boot id", e))?;
            self.same_boot.store(true, Relaxed);
        }
        self.trashed.notify_one();
        Ok(dropped)
    }

    /// Drops the committed layers that a power cut may have damaged, and the volatile ones that it has.
    /// What stands on committed ones stays: the layer store makes them again under the same keys.
    fn drop_unsynced(&self) -> Result<Vec<String>> {
        let doubtful: Vec<Record> = {
            let table = self.table();
            let records = table.slots.values().filter_map(|slot| match slot {
                Slot::Ready(record) if record.state == State::Committed || record.volatile => {
                    Some(record.clone())
                }
                _ => None,
            });
            records.collect()
        };
        for record in &doubtful {
            self.unrecord(record)?;
            self.table().forget(&record.key, record.parent.as_ref());
            self.discard(record.id);
        }
        Ok(doubtful.into_iter().map(|record| record.key).collect())
    }

    /// Drops the committed layers that stand on nothing: they would pass for a whole chain. Writable
    /// ones stay, they cannot be made again.
    fn drop_orphans(&self) -> Result<Vec<String>> {
        let mut dropped = Vec::new();
        loop {
            let orphan = {
                let table = self.table();
                table.slots.values().find_map(|slot| match slot {
                    Slot::Ready(record) if !record.is_active() => {
                        let parent = record.parent.as_ref()?;
                        (!table.slots.contains_key(parent)).then(|| record.clone())
                    }
                    _ => None,
                })
            };
            let Some(record) = orphan else { return Ok(dropped) };
            self.unrecord(&record)?;
            self.table().forget(&record.key, record.parent.as_ref());
            self.discard(record.id);
            dropped.push(record.key);
        }
    }

    /// Deletes what lies in the trash.
    ///
    /// # Errors
    ///
    /// The last failure; the rest is deleted all the same.
    pub fn empty_trash(&self) -> Result<()> {
        let mut outcome = Ok(());
        let mut has_subvolumes = false;
        for name in names(&self.trash, &self.root)? {
            match self.delete(&self.trash, &name) {
                Ok(was_subvolume) => has_subvolumes |= was_subvolume,
                Err(error) => {
                    let name = name.escape_ascii();
                    outcome =
                        Err(Error::internal(format!("cannot delete removed layer {name}"), error));
                }
            }
        }
        if has_subvolumes && let Err(error) = hurry_removed_subvolumes(&self.root_fd) {
            tracing::debug!(%error, "The space of removed layers comes back later.");
        }
        outcome
    }

    /// Deletes a layer's directory; says whether its content was a subvolume.
    pub(crate) fn delete(&self, from: &OwnedFd, name: &[u8]) -> gantry_sys::Result<bool> {
        let name = Path::new(OsStr::from_bytes(name));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = open_beneath(from, name, flags, Mode::empty(), Links::Refuse);
        let (mut project, mut was_subvolume) = (None, false);
        // Something else than a directory has neither a project nor a subvolume.
        if let Ok(dir) = dir {
            if self.limits {
                project = own_project(&dir)?;
            }
            was_subvolume = remove_content(dir.as_fd())?;
        }
        remove_tree_beneath(from, name)?;
        if let Some(id) = project {
            // The id is free when nothing counts on it and no limit is set.
            set_project_limit(&self.root_fd, id, ProjectLimit::default())?;
        }
        Ok(was_subvolume)
    }

    /// Apparent bytes of what lies in the trash.
    ///
    /// # Errors
    ///
    /// What the walk reports.
    pub fn trash_bytes(&self) -> Result<u64> {
        gantry_sys::path::usage(&self.trash)
            .map(|usage| usage.apparent_bytes)
            .map_err(|e| Error::internal("cannot measure removed layers", e))
    }

    /// Waits until there may be something in the trash.
    pub async fn trashed(&self) {
        self.trashed.notified().await;
    }
}

fn to_id(name: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(name).ok()?;
    let id: u64 = text.parse().ok()?;
    (id.to_string() == text).then_some(id)
}

fn names(dir: &OwnedFd, root: &Path) -> Result<Vec<Vec<u8>>> {
    let fail = |e: rustix::io::Errno| Error::io("list", root.display(), e.into());
    let mut names = Vec::new();
    for entry in Dir::read_from(dir.as_fd()).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn read_records(records: &OwnedFd, root: &Path) -> Result<Table> {
    let mut table = Table { next_id: 1, ..Table::default() };
    for name in names(records, root)? {
        if let Some(id) = name.strip_suffix(b".new").and_then(to_id) {
            // A replacement that was not made: the old record counts.
            let _ =
                rustix::fs::unlinkat(records, format!("{id}.new"), rustix::fs::AtFlags::empty());
            continue;
        }
        let text = rustix::fs::readlinkat(records, name.as_slice(), Vec::new());
        let record = text.ok().and_then(|text| {
            let text = text.into_string().ok()?;
            Record::decode(to_id(&name)?, &text)
        });
        let Some(record) = record else {
            let what = format!("{}/r/{}", root.display(), name.escape_ascii());
            return Err(Error::new(
                ErrorKind::Internal,
                format!("cannot understand record {what}"),
            ));
        };
        table.next_id = table.next_id.max(record.id.saturating_add(1));
        if let Some(Slot::Ready(twin)) = table.slots.get(&record.key) {
            let (key, a, b) = (&record.key, twin.id, record.id);
            let why = format!("layer {key} has two records in {}: {a} and {b}", root.display());
            return Err(Error::new(ErrorKind::Internal, why));
        }
        table.insert(record);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(layer: &crate::NewLayer<'_>) -> Result<()> {
        layer.make_content()?;
        layer.make_work()
    }

    fn restart(dir: &tempfile::TempDir) -> Layers {
        Layers::open(dir.path()).unwrap()
    }

    #[test]
    fn layers_are_found_again_and_half_made_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let layers = restart(&dir);
        assert_eq!(layers.recover().unwrap(), Vec::<String>::new());
        layers.prepare("one", None, 9, fill).unwrap();
        layers.commit("one", "base").unwrap();
        layers.prepare("two", Some("base"), 9, fill).unwrap();
        let failing = layers.prepare("bad", Some("base"), 9, |_| Err(Error::invalid("no")));
        assert_eq!(failing.unwrap_err().kind(), ErrorKind::InvalidArgument);
        std::fs::create_dir_all(dir.path().join("l/77/fs")).unwrap(); // a crash before the record
        std::fs::create_dir(dir.path().join("l/lost+found")).unwrap();
        drop(layers);

        let layers = restart(&dir);
        assert_eq!(layers.recover().unwrap(), Vec::<String>::new());
        layers.empty_trash().unwrap();
        assert!(!dir.path().join("l/77").exists() && dir.path().join("l/lost+found").exists());
        assert_eq!(layers.chain("two").unwrap().len(), 2);
        assert_eq!(layers.remove("base").unwrap_err().kind(), ErrorKind::Busy);
        assert!(layers.prepare("three", None, 9, fill).unwrap().id > 77);
    }

    #[test]
    fn syncing_disturbs_nobody_and_brings_nothing_back() {
        let dir = tempfile::tempdir().unwrap();
        let layers = restart(&dir);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..200 {
                    layers.sync().unwrap();
                }
            });
            for n in 0..200 {
                let (key, name) = (format!("k{n}"), format!("n{n}"));
                layers.prepare(&key, None, 9, fill).unwrap();
                layers.commit(&key, &name).unwrap();
                layers.chain(&name).unwrap();
                layers.remove(&name).unwrap();
            }
        });
        assert_eq!(layers.list(None, 10), []);
        assert_eq!(restart(&dir).list(None, 10), []);
        std::os::unix::fs::symlink("1/d//ghost", dir.path().join("r/9999")).unwrap();
        let layers = restart(&dir);
        std::os::unix::fs::symlink("1/d/ghost/orphan", dir.path().join("r/9998")).unwrap();
        std::fs::create_dir(dir.path().join("l/9998")).unwrap();
        drop(layers);
        let layers = restart(&dir);
        assert_eq!(layers.recover().unwrap(), ["ghost", "orphan"]);
        assert_eq!(restart(&dir).list(None, 10), []);
    }

    #[test]
    fn a_layer_without_a_parent_gets_one_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let layers = restart(&dir);
        for name in ["a", "b"] {
            layers.prepare("key", None, 9, fill).unwrap();
            layers.commit("key", name).unwrap();
        }
        layers.prepare("rw", None, 9, fill).unwrap();
        layers.rebase("rw", None, 9).unwrap();
        let refused = [("rw", "none"), ("none", "a"), ("a", "b")];
        for (key, parent) in refused {
            let error = layers.rebase(key, Some(parent), 9).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{key} on {parent}");
        }
        let deep = layers.rebase("rw", Some("a"), 0).unwrap_err();
        assert_eq!(deep.kind(), ErrorKind::InvalidArgument);
        layers.rebase("rw", Some("a"), 9).unwrap();
        layers.rebase("rw", Some("a"), 9).unwrap();
        assert_eq!(layers.rebase("rw", Some("b"), 9).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(layers.rebase("rw", None, 9).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(layers.remove("a").unwrap_err().kind(), ErrorKind::Busy);
        layers.remove("b").unwrap();
        assert_eq!(restart(&dir).get("rw").unwrap().parent.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_removed_is_counted_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let layers = restart(&dir);
        let record = layers.prepare("key", None, 9, fill).unwrap();
        std::fs::write(dir.path().join(record.content()).join("file"), [1; 5000]).unwrap();
        layers.remove("key").unwrap();
        assert_eq!(layers.trash_bytes().unwrap(), 5000);
        layers.empty_trash().unwrap();
        assert_eq!(layers.trash_bytes().unwrap(), 0);
    }

    #[test]
    fn after_a_power_cut_only_what_was_synced_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let layers = restart(&dir);
        layers.recover().unwrap();
        for name in ["synced", "unsynced"] {
            layers.prepare("key", None, 9, fill).unwrap();
            layers.commit("key", name).unwrap();
            if name == "synced" {
                layers.sync().unwrap();
            }
        }
        layers.prepare("rw", Some("unsynced"), 9, fill).unwrap();
        drop(layers);
        assert_eq!(restart(&dir).recover().unwrap(), Vec::<String>::new());

        std::fs::write(dir.path().join("boot"), "another boot").unwrap();
        let layers = restart(&dir);
        assert_eq!(layers.recover().unwrap(), ["unsynced"]);
        assert_eq!(layers.recover().unwrap(), ["unsynced"; 0]);
        assert!(layers.get("synced").is_ok() && layers.get("rw").is_ok());
        assert_eq!(layers.chain("rw").unwrap_err().kind(), ErrorKind::NotFound);
        layers.prepare("again", None, 9, fill).unwrap();
        layers.commit("again", "unsynced").unwrap();
        assert_eq!(layers.chain("rw").unwrap().len(), 2);
        assert_eq!(layers.remove("unsynced").unwrap_err().kind(), ErrorKind::Busy);
    }
}
