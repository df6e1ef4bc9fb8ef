//! Overlay mounts from descriptors.
//!
//! Since Linux 6.8 each lower layer is its own option, `lowerdir+`, so neither the number of layers
//! (500 is the file system's limit) nor the length of their names is bound by one page of options.
//! From 6.13 on the value may be a descriptor; before, its name in `/proc/self/fd` is given.
//!
//! Older kernels want everything in one string of less than a page, and only `mount(2)` takes that
//! much (`fsconfig` stops at 255 bytes). There the mount is made by a thread of its own, in a private
//! mount namespace, whose working directory is `/proc/thread-self/fd`: the layers' names are then
//! their descriptor numbers (`lowerdir=12:13,upperdir=14,workdir=15`). The thread hands back a
//! detached clone of the mount and ends, and the namespace ends with it.
//!
//! Overlayfs takes a layer only from a mount of the caller's own mount namespace (and, since 6.15,
//! from a detached one). So that thread opens every layer again by its path, and makes sure that it
//! got the same directory; a layer without a path, on a detached mount, is refused there.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};

use super::context::FsContext;
use super::tree::{MountAttr, attach, clone_tree_at, enter_private_namespace, set_attr};
use crate::error::{Error, Result};

/// `OVL_MAX_STACK` of the kernel: 501 lowers are refused with `EINVAL`.
const LOWERS_MAX: usize = 500;

/// `mount(2)` copies at most one page of options, and the last byte is the terminator.
const OPTIONS_MAX: usize = 4095;

/// An overlay to be mounted. The topmost lower layer comes first.
///
/// Layers are descriptors of directories, opened with `O_PATH` or for reading.
#[derive(Debug, Default)]
pub struct Overlay<'fd> {
    /// Read-only layers, topmost first; at least one.
    pub lowers: Vec<BorrowedFd<'fd>>,
    /// The layer that takes the changes, and its work directory on the same file system. Without
    /// them the mount is read-only.
    pub upper: Option<(BorrowedFd<'fd>, BorrowedFd<'fd>)>,
    /// Skips syncing the upper layer: after a crash its content is worth nothing. (Linux 5.10.)
    pub volatile: bool,
    /// Keeps overlay's marks in `user.overlay.*`, as mounts in user namespaces must.
    pub userxattr: bool,
    /// `index=`: hard links keep together across copy-up. `None` is the kernel's default.
    pub index: Option<bool>,
    /// `metacopy=`: changes of owner or mode do not copy the data up.
    pub metacopy: Option<bool>,
    /// `redirect_dir=`: directories can be renamed without copying.
    pub redirect_dir: Option<bool>,
    /// Attributes of the mount itself, such as `noatime`.
    pub attributes: Option<MountAttrFlags>,
    /// The user and group that overlayfs acts as in its layers. Needed by
    /// [`mount_on`](Overlay::mount_on) when their mounts are id-mapped and root is not among the ids
    /// that are seen there: the kernel stores no files of ids that it cannot map.
    pub acting_as: Option<(u32, u32)>,
}

impl Overlay<'_> {
    /// Makes the mount, detached.
    ///
    /// # Errors
    ///
    /// With the kernel's own explanation where it gives one. Refused without asking the kernel: no
    /// lower layer, or more than 500.
    pub fn mount(&self) -> Result<OwnedFd> {
        self.check()?;
        if supports_lowerdir_plus() { self.mount_by_context() } else { self.mount_by_string() }
    }

    /// As [`mount`](Self::mount), where layers lie on mounts that are attached nowhere: `mounts`, each
    /// of which must be used for nothing else afterwards.
    ///
    /// Kernels before 6.15 take layers from attached mounts only. Then the mounts are attached in a
    /// namespace of a thread's own for as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`mount`](Self::mount).
    pub fn mount_on(&self, mounts: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        match self.acting_as {
            None => self.mount_somehow_on(mounts),
            Some((user, group)) => on_own_thread(|| {
                act_as(user, group)?;
                self.mount_somehow_on(mounts)
            }),
        }
    }

    fn mount_somehow_on(&self, mounts: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        match self.mount() {
            Err(error) if !mounts.is_empty() && is_about_layers(&error) => self
                .mount_attached(mounts)
                // The first answer is the one to be told, if nothing helps.
                .map_err(|second| error.with_detail(format!("attached: {second}"))),
            answer => answer,
        }
    }

    fn mount_attached(&self, mounts: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        on_own_thread(|| {
            enter_private_namespace()?;
            attach_all(mounts)?;
            self.mount()
        })
    }

    fn check(&self) -> Result<()> {
        match self.lowers.len() {
            1..=LOWERS_MAX => Ok(()),
            count => Err(Error::refused(
                "mount",
                format!("overlay of {count} lower layers"),
                "an overlay has 1 to 500 lower layers",
            )),
        }
    }

    /// Options that are the same in both ways of mounting; `None` marks a flag.
    fn settings(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let switch = |on: bool| Some(if on { "on" } else { "off" });
        let mut settings = Vec::new();
        for (name, wanted) in [
            ("index", self.index),
            ("metacopy", self.metacopy),
            ("redirect_dir", self.redirect_dir),
        ] {
            if let Some(on) = wanted {
                settings.push((name, switch(on)));
            }
        }
        for (name, wanted) in [("volatile", self.volatile), ("userxattr", self.userxattr)] {
            if wanted {
                settings.push((name, None));
            }
        }
        settings
    }

    fn mount_by_context(&self) -> Result<OwnedFd> {
        let context = FsContext::open("overlay")?;
        context.set_string("source", "overlay")?;
        for (name, value) in self.settings() {
            match value {
                Some(value) => context.set_string(name, value)?,
                None => context.set_flag(name)?,
            }
        }
        let mut by_fd = true;
        for lower in &self.lowers {
            set_layer(&context, "lowerdir+", *lower, &mut by_fd)?;
        }
        if let Some((upper, work)) = self.upper {
            set_layer(&context, "upperdir", upper, &mut by_fd)?;
            set_layer(&context, "workdir", work, &mut by_fd)?;
        }
        context.create()?;
        context.mount(self.attributes.unwrap_or(MountAttrFlags::empty()))
    }

    /// The way for kernels before 6.8; see the module's text.
    fn mount_by_string(&self) -> Result<OwnedFd> {
        let mount = on_own_thread(|| self.mount_in_private_namespace())?;
        if let Some(attributes) = self.attributes {
            set_attr(&mount, &MountAttr { set: attributes, ..MountAttr::default() })?;
        }
        Ok(mount)
    }

    /// Runs on a thread of its own: its mount namespace and working directory end with it.
    fn mount_in_private_namespace(&self) -> Result<OwnedFd> {
        let failed = |doing| move |errno: Errno| Error::new(doing, "overlay mount", errno);
        enter_private_namespace()?;
        let again = |layer: &BorrowedFd<'_>| open_again(*layer);
        let lowers = self.lowers.iter().map(again).collect::<Result<Vec<_>>>()?;
        let upper = match self.upper {
            Some((upper, work)) => Some((open_again(upper)?, open_again(work)?)),
            None => None,
        };
        let here = Overlay {
            lowers: lowers.iter().map(AsFd::as_fd).collect(),
            upper: upper.as_ref().map(|(upper, work)| (upper.as_fd(), work.as_fd())),
            ..*self
        };
        let options = here.option_string()?;
        rustix::process::chdir("/proc/thread-self/fd").map_err(failed("enter descriptors for"))?;
        // Any directory will do for a place: nobody else sees this namespace.
        let place = Path::new("/proc");
        rustix::mount::mount("overlay", place, "overlay", MountFlags::empty(), options.as_c_str())
            .map_err(|errno| {
                // Without a context there is no log; say at least what was asked for.
                failed("make")(errno).with_detail(options.to_string_lossy())
            })?;
        clone_tree_at(rustix::fs::CWD, place, false)
    }

    /// The options with descriptor numbers for names.
    fn option_string(&self) -> Result<CString> {
        let numbers: Vec<String> =
            self.lowers.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let mut options = format!("lowerdir={}", numbers.join(":"));
        if let Some((upper, work)) = self.upper {
            // Writing to a string cannot fail.
            let _ = write!(options, ",upperdir={},workdir={}", upper.as_raw_fd(), work.as_raw_fd());
        }
        for (name, value) in self.settings() {
            let _ = match value {
                Some(value) => write!(options, ",{name}={value}"),
                None => write!(options, ",{name}"),
            };
        }
        if options.len() > OPTIONS_MAX {
            let object = format!("overlay of {} lower layers", self.lowers.len());
            return Err(Error::refused("mount", object, "the options do not fit into one page"));
        }
        CString::new(options)
            .map_err(|_| Error::refused("mount", "overlay", "an option holds a zero byte"))
    }
}

/// Runs `work` on a thread that ends with it, and with it whatever the thread changed about itself.
fn on_own_thread(work: impl FnOnce() -> Result<OwnedFd> + Send) -> Result<OwnedFd> {
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .name("overlay-mount".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| Error::new("start thread for", "overlay mount", error))?;
        worker.join().unwrap_or_else(|_| {
            let cause = std::io::Error::other("the mounting thread panicked");
            Err(Error::new("mount", "overlay", cause))
        })
    })
}

/// Gives the calling thread other ids for files, with the capabilities it has. Source: setfsuid(2).
fn act_as(user: u32, group: u32) -> Result<()> {
    let failed = |errno: Errno| Error::new("act as", format!("user {user}"), errno);
    let capabilities = rustix::thread::capabilities(None).map_err(failed)?;
    // SAFETY: both take one integer and change the calling thread only.
    unsafe {
        libc::setfsgid(group);
        libc::setfsuid(user);
    }
    // Changing away from root took those for files away.
    rustix::thread::set_capabilities(None, capabilities).map_err(failed)?;
    // They report no failure but by the answer of the next call.
    // SAFETY: as above; an id that cannot be changes nothing.
    let now = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    if (now.0.cast_unsigned(), now.1.cast_unsigned()) == (user, group) {
        Ok(())
    } else {
        Err(failed(Errno::PERM))
    }
}

/// Whether a kernel before 6.15 may mean that a layer's mount is attached nowhere: `EINVAL` of the
/// mount, or the layer has no path to be opened again by.
fn is_about_layers(error: &Error) -> bool {
    [Errno::INVAL, Errno::NOENT, Errno::STALE, Errno::XDEV].iter().any(|errno| error.is(*errno))
}

/// Attaches the mounts in the calling thread's namespace, which is its own, as `/proc/fs/0` and so on.
/// Returns the directory they lie in, which has space for more.
pub(super) fn attach_all(mounts: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    // Any directory will do for a place, but not all of `/proc`: descriptors are named there.
    let place = Path::new("/proc/fs");
    let tmpfs = FsContext::open("tmpfs")?;
    tmpfs.set_string("source", "tmpfs")?;
    tmpfs.create()?;
    let tmpfs = tmpfs.mount(MountAttrFlags::empty())?;
    attach(&tmpfs, rustix::fs::CWD, place)?;
    for (index, mount) in mounts.iter().enumerate() {
        let name = index.to_string();
        rustix::fs::mkdirat(&tmpfs, &name, rustix::fs::Mode::RWXU)
            .map_err(|errno| Error::new("make place for", "overlay layer", errno))?;
        attach(mount, &tmpfs, Path::new(&name))?;
    }
    Ok(tmpfs)
}

/// Opens the directory anew by its path, in the calling thread's mount namespace.
fn open_again(layer: BorrowedFd<'_>) -> Result<OwnedFd> {
    let path = std::fs::read_link(crate::path::proc_fd(layer))
        .map_err(|error| Error::new("find path of", "overlay layer", error))?;
    let again = crate::path::open_root(&path)?;
    let identity = |fd: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(fd).map_err(|errno| Error::at("examine", &path, errno))?;
        Ok::<_, Error>((stat.st_dev, stat.st_ino))
    };
    if identity(layer)? != identity(again.as_fd())? {
        return Err(Error::at("use overlay layer", &path, Errno::STALE)
            .with_detail("it is not the directory that has this path"));
    }
    Ok(again)
}

/// Sets a layer by descriptor, or by its name in `/proc` once the kernel has refused a descriptor.
fn set_layer(
    context: &FsContext,
    key: &str,
    layer: BorrowedFd<'_>,
    by_fd: &mut bool,
) -> Result<()> {
    if *by_fd {
        match context.set_fd(key, layer) {
            // 6.8 to 6.12 know strings only; some versions refuse `O_PATH` descriptors.
            Err(error) if error.is(Errno::INVAL) || error.is(Errno::BADF) => *by_fd = false,
            answer => return answer,
        }
    }
    context.set_string(key, crate::path::proc_fd(layer))
}

/// Whether this kernel takes one `lowerdir+` per layer (Linux 6.8).
///
/// Asked once. Kernels whose overlayfs does not use the new interface accept any option until the
/// mount is created, so an option that cannot exist is tried as well.
pub fn supports_lowerdir_plus() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Ok(context) = FsContext::open("overlay") else { return false };
        let checks_options = context.set_flag("no-such-option").is_err();
        checks_options && context.set_string("lowerdir+", "/").is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_layers_by_number_and_stay_below_a_page() {
        let file = std::fs::File::open("/").unwrap();
        let fd = file.as_fd();
        let number = fd.as_raw_fd();
        let overlay = Overlay {
            lowers: vec![fd, fd],
            upper: Some((fd, fd)),
            volatile: true,
            index: Some(false),
            ..Overlay::default()
        };
        assert_eq!(
            overlay.option_string().unwrap().to_str().unwrap(),
            format!(
                "lowerdir={number}:{number},upperdir={number},workdir={number},index=off,volatile"
            )
        );
        let most = Overlay { lowers: vec![fd; 500], ..Overlay::default() };
        assert!(most.check().is_ok() && most.option_string().is_ok());
        let more = Overlay { lowers: vec![fd; 501], ..Overlay::default() };
        assert!(more.mount().is_err());
        assert!(Overlay::default().mount().is_err());
    }

    /// Runs as root only.
    #[test]
    fn root_both_ways_of_mounting_show_the_same_tree_and_leave_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let before = crate::mount::read_mountinfo().unwrap();
        let dir = crate::testing::Scratch::on_tmpfs("overlay");
        let layers: Vec<_> = (0..3)
            .map(|index| {
                let file = format!("layer{index}/file{index}");
                dir.write(&file, index.to_string().as_bytes());
                dir.open(&format!("layer{index}"))
            })
            .collect();
        for name in ["upper", "work", "upper2", "work2"] {
            dir.make(name);
        }
        let (upper, work) = (dir.open("upper"), dir.open("work"));
        let (upper2, work2) = (dir.open("upper2"), dir.open("work2"));
        let with = |upper, work| Overlay {
            lowers: layers.iter().map(AsFd::as_fd).collect(),
            upper: Some((upper, work)),
            ..Overlay::default()
        };
        let new = with(upper.as_fd(), work.as_fd()).mount_by_context().unwrap();
        let old = with(upper2.as_fd(), work2.as_fd()).mount_by_string().unwrap();
        for mount in [&new, &old] {
            let at = crate::path::proc_fd(mount);
            for index in 0..3 {
                let content = std::fs::read_to_string(at.join(format!("file{index}"))).unwrap();
                assert_eq!(content, index.to_string());
            }
            std::fs::write(at.join("new"), "x").unwrap();
        }
        assert!(dir.path().join("upper/new").exists() && dir.path().join("upper2/new").exists());
        assert_eq!(crate::mount::read_mountinfo().unwrap(), before);
    }

    /// Runs as root only.
    #[test]
    fn root_layers_on_detached_mounts_work_both_ways() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        use crate::path::{Links, open_beneath};
        use rustix::fs::{Mode, OFlags};
        let before = crate::mount::read_mountinfo().unwrap();
        let dir = crate::testing::Scratch::on_tmpfs("overlay-detached");
        for name in ["lower/file", "top/upper/x", "top/work/x"] {
            dir.write(name, b"x");
        }
        let clone = |name: &str| crate::mount::clone_tree(dir.open(name), false).unwrap();
        let open = |fd: &OwnedFd, name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            open_beneath(fd, Path::new(name), flags, Mode::empty(), Links::Refuse).unwrap()
        };
        type Way = fn(&Overlay<'_>, &[BorrowedFd<'_>]) -> Result<OwnedFd>;
        let ways: [Way; 3] = [
            |overlay, mounts| overlay.mount_on(mounts),
            |overlay, mounts| overlay.mount_attached(mounts),
            |overlay, mounts| {
                std::thread::scope(|scope| {
                    let by_string = || {
                        enter_private_namespace()?;
                        attach_all(mounts)?;
                        overlay.mount_by_string()
                    };
                    scope.spawn(by_string).join().unwrap()
                })
            },
        ];
        for (index, way) in ways.iter().enumerate() {
            let (lower, top) = (clone("lower"), clone("top"));
            let (upper, work) = (open(&top, "upper"), open(&top, "work"));
            let overlay = Overlay {
                lowers: vec![lower.as_fd()],
                upper: Some((upper.as_fd(), work.as_fd())),
                ..Overlay::default()
            };
            let mount = way(&overlay, &[lower.as_fd(), top.as_fd()]).unwrap();
            let at = crate::path::proc_fd(&mount);
            assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "x");
            std::fs::write(at.join(format!("new{index}")), "x").unwrap();
            assert!(dir.path().join(format!("top/upper/new{index}")).exists());
        }
        assert_eq!(crate::mount::read_mountinfo().unwrap(), before);
    }

    /// Runs as root only.
    #[test]
    fn root_the_kernels_words_are_in_the_error() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let overlay = Overlay { lowers: vec![file.as_fd(); 2], ..Overlay::default() };
        let error = overlay.mount().unwrap_err();
        assert!(error.to_string().contains('('), "{error}");
    }
}
