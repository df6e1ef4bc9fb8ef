//! Volumes as directories: `<name>/_data`, and `<name>/opts.json` if it has options.
//!
//! A volume appears by one rename and disappears by one, so a crash leaves either all of it or a
//! directory whose name no volume can have, which the next start removes.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gantry_sdk::kinds::volume::VolumeInfo;
use gantry_sdk::{Error, Result};
use gantry_sys::path::{read_file_bounded, remove_tree};

use crate::options::Options;

/// Where a volume's content is.
pub const DATA: &str = "_data";
const OPTIONS: &str = "opts.json";
/// No volume's name begins with a dot.
const UNFINISHED: &str = ".new-";
const TRASH: &str = ".trash-";
/// The most of an `opts.json` that is read.
const OPTIONS_MAX: usize = 64 << 10;
/// The longest name of a directory. Source: limits.h(0p), `NAME_MAX`.
const NAME_MAX: usize = 255;

/// All volumes of the driver.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

/// What is known of a volume from the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the SDK wants it.
    pub info: VolumeInfo,
    /// Its options; none if it was made without any.
    pub options: Option<Options>,
}

/// Refuses names that cannot be a directory of the root, with the reference engine's words.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn check_name(name: &str) -> Result<()> {
    if name.len() == 1 {
        return Err(Error::invalid(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    if name.len() > NAME_MAX {
        return Err(Error::invalid(format!("volume name is longer than {NAME_MAX} bytes")));
    }
    if !gantry_sdk::id::is_valid_name(name) {
        return Err(Error::invalid(format!(
            "{name:?} includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, \
             use absolute path"
        )));
    }
    Ok(())
}

impl Directory {
    /// Volumes beneath `root`, which exists.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory with the volume's content, whether there is such a volume or not.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join(name).join(DATA)
    }

    /// Makes a volume; one with equal options may be there already. Durable. Blocking.
    ///
    /// # Errors
    ///
    /// `Conflict`: it exists with other options. `NoSpace`, `Internal`.
    pub fn create(&self, name: &str, options: &Options) -> Result<()> {
        if let Some(found) = self.find(name)? {
            return same(name, &found, options);
        }
        let unfinished = self.aside(UNFINISHED);
        let made = self.make(&unfinished, options).and_then(|()| {
            let target = self.root.join(name);
            std::fs::rename(&unfinished, &target)
                .map_err(|e| (e, target))
                .and_then(|()| sync(&self.root))
        });
        let Err((error, path)) = made else { return Ok(()) };
        let _ = remove_tree(&unfinished);
        let taken =
            matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists);
        match self.find(name)? {
            Some(found) if taken => same(name, &found, options),
            _ => Err(Error::io("create volume directory", path.display(), error)),
        }
    }

    fn make(&self, at: &Path, options: &Options) -> std::result::Result<(), (io::Error, PathBuf)> {
        let data = at.join(DATA);
        DirBuilder::new().mode(0o701).create(at).map_err(|e| (e, at.to_owned()))?;
        DirBuilder::new()
            .mode(0o755)
            .create(&data)
            // Whatever the umask.
            .and_then(|()| std::fs::set_permissions(&data, Permissions::from_mode(0o755)))
            .map_err(|e| (e, data))?;
        if *options != Options::default() {
            let path = at.join(OPTIONS);
            write_new(&path, options).map_err(|e| (e, path))?;
        }
        sync(at)
    }

    /// The volume `name`, if there is one. Blocking.
    ///
    /// # Errors
    ///
    /// `Internal` for what is on disk and cannot be understood.
    pub fn find(&self, name: &str) -> Result<Option<Found>> {
        let path = self.root.join(name);
        let Some(about) = existing(&path)? else { return Ok(None) };
        let options = existing(&path.join(OPTIONS))?;
        if !about.is_dir() || (options.is_none() && existing(&path.join(DATA))?.is_none()) {
            return Ok(None);
        }
        let options = options.map(|_| read_options(&path.join(OPTIONS))).transpose()?;
        Ok(Some(Found {
            info: VolumeInfo {
                name: name.to_owned(),
                created: rfc3339(about.ctime()),
                mountpoint: path.join(DATA).display().to_string(),
                status: gantry_sdk::Labels::new(),
            },
            options: options.filter(|options| *options != Options::default()),
        }))
    }

    /// Up to `limit` volumes with names after `after`, in order. Blocking.
    ///
    /// # Errors
    ///
    /// `Internal` if the directory cannot be read.
    pub fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<VolumeInfo>> {
        let failed = |e| Error::io("list", self.root.display(), e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().filter(|name| check_name(name).is_ok())
                && after.is_none_or(|after| name > after)
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        let mut found = Vec::new();
        for name in names {
            if found.len() == limit {
                break;
            }
            match self.find(&name) {
                Ok(Some(volume)) => found.push(volume.info),
                Ok(None) => {}
                Err(error) => tracing::warn!(error = %error.chain(), "Cannot read a volume."),
            }
        }
        Ok(found)
    }

    /// Takes a volume away, and then its content; a missing one is no error. Blocking, and as long
    /// as the content is large.
    ///
    /// # Errors
    ///
    /// `Busy`: something is mounted in it, and stays. `Internal`.
    pub fn remove(&self, name: &str) -> Result<()> {
        let (path, trash) = (self.root.join(name), self.aside(TRASH));
        match std::fs::rename(&path, &trash) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(Error::busy(format!("volume {name} is a mount point")).caused_by(error));
            }
            Err(error) => return Err(Error::io("remove volume", path.display(), error)),
        }
        sync(&self.root).map_err(|(e, path)| Error::io("write to disk", path.display(), e))?;
        // The volume is gone whatever happens to its content; the next start tries again.
        if let Err(error) = remove_tree(&trash) {
            tracing::warn!(volume = name, %error, "Cannot remove all content of a volume.");
        }
        Ok(())
    }

    /// Removes what an interrupted creation or removal left. Blocking.
    pub fn clean(&self) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let left = name
                .to_str()
                .is_some_and(|name| name.starts_with(UNFINISHED) || name.starts_with(TRASH));
            if left && let Err(error) = remove_tree(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "Cannot remove a left-over.");
            }
        }
    }

    fn aside(&self, prefix: &str) -> PathBuf {
        let number = std::hash::BuildHasher::hash_one(
            &std::hash::RandomState::new(),
            std::time::SystemTime::now(),
        );
        self.root.join(format!("{prefix}{number:016x}"))
    }
}

fn same(name: &str, found: &Found, options: &Options) -> Result<()> {
    if found.options.as_ref().is_none_or(|have| have == options)
        && (found.options.is_some() || *options == Options::default())
    {
        return Ok(());
    }
    Err(Error::conflict(format!("volume {name} exists with other options")))
}

fn existing(path: &Path) -> Result<Option<std::fs::Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(about) => Ok(Some(about)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path.display(), error)),
    }
}

fn read_options(path: &Path) -> Result<Options> {
    let bad = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("cannot read volume options {}", path.display()), e)
    };
    let text = read_file_bounded(path, OPTIONS_MAX).map_err(|e| bad(Box::new(e)))?;
    serde_json::from_slice(&text).map_err(|e| bad(Box::new(e)))
}

fn write_new(path: &Path, options: &Options) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(options)?)?;
    file.sync_all()
}

fn sync(dir: &Path) -> std::result::Result<(), (io::Error, PathBuf)> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| (e, dir.to_owned()))
}

fn rfc3339(seconds: i64) -> String {
    let since = std::time::Duration::from_secs(seconds.try_into().unwrap_or_default());
    gantry_sdk::time::rfc3339(std::time::UNIX_EPOCH + since)
}
