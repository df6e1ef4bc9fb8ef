//! Options of mounts: which a plan may set, and what mount(8)'s words mean.

use gantry_sdk::mounts::FsKind;
use gantry_sys::mount::{MountAttrFlags, Propagation};

/// mount(2) takes a page of options; so does this.
const HOST_OPTIONS_MAX: usize = 4095;

/// The longest value fsconfig(2) takes.
const VALUE_MAX: usize = 255;

/// The file system's name for fsopen(2).
pub(super) const fn name(kind: FsKind) -> &'static str {
    match kind {
        FsKind::Ext4 => "ext4",
        FsKind::Xfs => "xfs",
        FsKind::Btrfs => "btrfs",
        FsKind::Erofs => "erofs",
        FsKind::Squashfs => "squashfs",
    }
}

/// Options a driver's plan may give to a file system.
///
/// None of them names another file or device, changes who may do what, or keeps the file system from
/// noticing that it is damaged. Source: the kernel's `Documentation/filesystems/`.
const fn allow_list(kind: FsKind) -> &'static [&'static str] {
    match kind {
        FsKind::Ext4 => {
            &["barrier", "commit", "data", "discard", "nodiscard", "noload", "lazytime"]
        }
        FsKind::Xfs => &[
            "allocsize",
            "discard",
            "inode64",
            "largeio",
            "logbsize",
            "logbufs",
            "norecovery",
            "nouuid",
            "prjquota",
            "swalloc",
        ],
        FsKind::Btrfs => &[
            "autodefrag",
            "commit",
            "compress",
            "compress-force",
            "discard",
            "nodiscard",
            "noautodefrag",
            "ssd",
            "nossd",
            "space_cache",
            "thread_pool",
        ],
        FsKind::Erofs => &["cache_strategy"],
        FsKind::Squashfs => &["threads"],
    }
}

/// Whether a plan may set this option; an empty value means an option that takes none.
///
/// # Errors
///
/// Why not, for the client.
pub(super) fn allowed(kind: FsKind, option: &str, value: &str) -> Result<(), String> {
    let list = allow_list(kind);
    if !list.contains(&option) {
        return Err(format!(
            "option {option:?} of {} is not among {}",
            name(kind),
            list.join(", ")
        ));
    }
    let of_a_value =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    if value.len() <= 64 && value.bytes().all(of_a_value) {
        Ok(())
    } else {
        Err(format!("the value of option {option:?} is not letters, digits and \".:_-\""))
    }
}

/// Options as an operator wrote them, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostOptions {
    /// A bind mount rather than a file system.
    pub(super) bind: bool,
    /// With the mounts below.
    pub(super) recursive: bool,
    /// Attributes of the mount.
    pub(super) attributes: MountAttrFlags,
    /// Propagation, and whether for mounts below too.
    pub(super) propagation: Option<(Propagation, bool)>,
    /// Words for the file system as a whole that every one understands: `ro`, `sync`, ….
    pub(super) common: Vec<String>,
    /// The rest, for this file system: name, and value if any, in order.
    pub(super) data: Vec<(String, Option<String>)>,
}

/// Takes mount(8)'s comma-separated words apart, the way the reference's local volume driver does.
///
/// # Errors
///
/// Why not, for the client. The values are never part of it: they may be passwords.
pub(super) fn parse_host(text: &str) -> Result<HostOptions, String> {
    if text.len() > HOST_OPTIONS_MAX || text.contains('\0') {
        return Err("its options are too long or hold a zero byte".to_owned());
    }
    let mut options = HostOptions {
        bind: false,
        recursive: false,
        attributes: MountAttrFlags::empty(),
        propagation: None,
        common: Vec::new(),
        data: Vec::new(),
    };
    for word in text.split(',').filter(|word| !word.is_empty()) {
        if !options.attribute(word) && !options.kind(word)? {
            options.data.push(datum(word)?);
        }
    }
    if options.bind
        && (!options.data.is_empty() || options.common.iter().any(|it| it != "ro" && it != "rw"))
    {
        return Err("a bind mount takes no options of a file system".to_owned());
    }
    Ok(options)
}

fn datum(word: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    if name.is_empty() || name.len() > VALUE_MAX {
        return Err("an option has no name".to_owned());
    }
    if value.is_some_and(|value| value.len() > VALUE_MAX) {
        return Err(format!("the value of option {name:?} is longer than {VALUE_MAX} bytes"));
    }
    Ok((name.to_owned(), value.map(str::to_owned)))
}

impl HostOptions {
    /// Words about the mount itself; the later of two opposites wins.
    fn attribute(&mut self, word: &str) -> bool {
        use MountAttrFlags as Flags;
        let (flag, on) = match word {
            "nosuid" => (Flags::MOUNT_ATTR_NOSUID, true),
            "suid" => (Flags::MOUNT_ATTR_NOSUID, false),
            "nodev" => (Flags::MOUNT_ATTR_NODEV, true),
            "dev" => (Flags::MOUNT_ATTR_NODEV, false),
            "noexec" => (Flags::MOUNT_ATTR_NOEXEC, true),
            "exec" => (Flags::MOUNT_ATTR_NOEXEC, false),
            "nodiratime" => (Flags::MOUNT_ATTR_NODIRATIME, true),
            "diratime" => (Flags::MOUNT_ATTR_NODIRATIME, false),
            "ro" => (Flags::MOUNT_ATTR_RDONLY, true),
            "rw" => (Flags::MOUNT_ATTR_RDONLY, false),
            _ => return self.access_time(word),
        };
        self.attributes.set(flag, on);
        if matches!(word, "ro" | "rw") {
            // The file system as a whole too, as mount(2) does.
            self.common.retain(|it| it != "ro" && it != "rw");
            self.common.push(word.to_owned());
        }
        true
    }

    /// The three ways of keeping access times exclude each other.
    fn access_time(&mut self, word: &str) -> bool {
        use MountAttrFlags as Flags;
        let mode = match word {
            "noatime" => Flags::MOUNT_ATTR_NOATIME,
            "strictatime" => Flags::MOUNT_ATTR_STRICTATIME,
            // The kernel's default, and so what the opposites of the others come to.
            "relatime" | "atime" | "norelatime" | "nostrictatime" => Flags::MOUNT_ATTR_RELATIME,
            _ => return false,
        };
        self.attributes.remove(Flags::MOUNT_ATTR__ATIME);
        self.attributes.insert(mode);
        true
    }

    /// Words about what kind of mount it is.
    fn kind(&mut self, word: &str) -> Result<bool, String> {
        let (plain, recursive) = match word.strip_prefix('r') {
            Some(rest) if rest == "bind" || propagation(rest).is_some() => (rest, true),
            _ => (word, false),
        };
        if let Some(found) = propagation(plain) {
            self.propagation = Some((found, recursive));
            return Ok(true);
        }
        match plain {
            "bind" => {
                self.bind = true;
                self.recursive |= recursive;
            }
            "sync" | "async" | "dirsync" | "lazytime" | "nolazytime" | "mand" | "nomand" => {
                self.common.push(plain.to_owned());
            }
            "defaults" => {}
            "remount" | "move" => {
                return Err(format!("{plain:?} changes an existing mount, which no plan may"));
            }
            "loop" => return Err("\"loop\" is mount(8)'s doing, not the kernel's".to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn propagation(word: &str) -> Option<Propagation> {
    match word {
        "private" => Some(Propagation::Private),
        "shared" => Some(Propagation::Shared),
        "slave" => Some(Propagation::Downstream),
        "unbindable" => Some(Propagation::Unbindable),
        _ => None,
    }
}
