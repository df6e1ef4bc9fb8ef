//! The container's terminal: a pseudo-terminal of its own devpts, never of the host's.

use super::devices::{bind_place, open_parent};
use crate::status::{Context, SysContext, Voice, fail};
use gantry_shim_protocol::{Console, Failure, Process, Stage};
use gantry_sys::mount;
use gantry_sys::path::{Links, open_beneath};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::path::Path;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Makes the first process's terminal, hands its master to the shim, and shows it as `/dev/console`.
pub(crate) fn open_first(
    root: BorrowedFd<'_>,
    size: Console,
    process: &Process,
    voice: &Voice,
) -> Result<OwnedFd, Failure> {
    let slave = open(root, size, process, voice)?;
    let doing = || "bind /dev/console".to_owned();
    let (dir, name) = open_parent(root, "/dev/console")?;
    let place = bind_place(dir, &name, doing)?;
    let tree = mount::clone_tree(&slave, false).at(Stage::Terminal)?;
    mount::attach_onto(&tree, &place, Path::new("/dev/console")).at(Stage::Terminal)?;
    Ok(slave)
}

/// Makes a terminal for another process, which is in the container's namespaces already.
pub(crate) fn open_another(
    size: Console,
    process: &Process,
    voice: &Voice,
) -> Result<OwnedFd, Failure> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .during(Stage::Terminal, || "open the container's root".to_owned())?;
    open(root.as_fd(), size, process, voice)
}

fn open(
    root: BorrowedFd<'_>,
    size: Console,
    process: &Process,
    voice: &Voice,
) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = open_beneath(root, Path::new("dev/pts/ptmx"), flags, Mode::empty(), Links::Refuse)
        .at(Stage::Terminal)?;
    // Only a real multiplexer may stand there: anything else would be the image's trick.
    let magic = rustix::fs::fstatfs(&master)
        .during(Stage::Terminal, || "look at the terminal".to_owned())?
        .f_type;
    if u64::try_from(magic) != Ok(DEVPTS_MAGIC) {
        return Err(fail(Stage::Terminal, Errno::NODEV, "use /dev/pts/ptmx"));
    }
    rustix::pty::unlockpt(&master).during(Stage::Terminal, || "unlock the terminal".to_owned())?;
    // The slave is opened through the master, not through a path.
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .during(Stage::Terminal, || "open the terminal".to_owned())?;
    if size.rows != 0 && size.cols != 0 {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size)
            .during(Stage::Terminal, || "set the terminal's size".to_owned())?;
    }
    rustix::fs::fchown(&slave, Some(Uid::from_raw(process.uid)), None)
        .during(Stage::Terminal, || "give the terminal away".to_owned())?;
    voice
        .hand_terminal(master.as_fd())
        .during(Stage::Terminal, || "hand the terminal over".to_owned())?;
    Ok(slave)
}
