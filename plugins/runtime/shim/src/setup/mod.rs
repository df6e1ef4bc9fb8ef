//! The new process: from the clone to the container's program.
//!
//! | file | holds |
//! |---|---|
//! | `mounts` | root, mounts, masks, pivot |
//! | `devices` | nodes and links under `/dev` |
//! | `terminal` | the container's own pseudo-terminal |
//! | `cgroups` | joining, and the container's view of the tree |
//! | `identity` | limits, labels, user, capabilities, seccomp, exec |
//!
//! Everything here runs in the child and ends in exec or exit.

mod cgroups;
mod devices;
mod identity;
mod mounts;
mod terminal;

pub(crate) use identity::search;

use crate::status::{Context, Voice};
use gantry_shim_protocol::{
    Failure, FdIndex, Launch, LaunchHead, MEMFD_MAX, Namespace, NamespaceMode, Process, Stage,
    decode_body,
};
use gantry_sys::cgroup;
use gantry_sys::process::{Credentials, close_from, exit_now, set_credentials};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use std::os::fd::RawFd;

/// The streams the program gets at 0, 1 and 2, unless it gets a terminal.
#[derive(Debug)]
pub(crate) struct ProgramEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What a first process is made from.
pub(crate) struct First<'a> {
    pub(crate) head: &'a LaunchHead,
    /// A memfd with the [`Launch`].
    pub(crate) body: OwnedFd,
    /// What the head and the launch refer to.
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) ends: ProgramEnds,
    pub(crate) voice: Voice,
    /// The shim's own program, for the tiny init.
    pub(crate) own_program: Option<OwnedFd>,
    /// Whether the program runs without a further word from the shim.
    pub(crate) start: bool,
}

/// What another process in a running container is made from.
pub(crate) struct Another<'a> {
    /// A memfd with the [`Process`].
    pub(crate) body: OwnedFd,
    pub(crate) ends: ProgramEnds,
    pub(crate) voice: Voice,
    /// The container's first process.
    pub(crate) init: BorrowedFd<'a>,
    /// Whether the container has users of its own.
    pub(crate) user_namespace: bool,
    pub(crate) group: &'a cgroup::Group,
    pub(crate) terminal: Option<gantry_shim_protocol::Console>,
}

/// Becomes the container's first program.
pub(crate) fn become_first(first: First<'_>) -> ! {
    let keep: Vec<RawFd> = first.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let ends = &first.ends;
    let named = [&first.body, &ends.stdin, &ends.stdout, &ends.stderr, &first.voice.0];
    let keep: Vec<RawFd> = keep
        .into_iter()
        .chain(named.into_iter().chain(&first.own_program).map(AsRawFd::as_raw_fd))
        .collect();
    let outcome = close_from(3, &keep)
        .during(Stage::Io, || "close the shim's files".to_owned())
        .and_then(|()| run_first(&first));
    if let Err(failure) = outcome {
        first.voice.failed(failure);
    }
    exit_now(1)
}

fn run_first(first: &First<'_>) -> Result<(), Failure> {
    let launch: Launch = read_body(&first.body)?;
    let namespaces = &first.head.namespaces;
    let own_users = namespaces.is_new(Namespace::User);
    if own_users {
        // Until the maps are written, this process is nobody; the shim joins the cgroups for it.
        wait_go(&first.voice)?;
        set_credentials(&Credentials::default())
            .during(Stage::Namespace, || "become root of the new user namespace".to_owned())?;
    }
    rustix::process::setsid().during(Stage::Namespace, || "start a session".to_owned())?;
    join_namespaces(first)?;
    let mut waited = own_users;
    let mut tree = mounts::Tree::open(&launch, &first.fds, namespaces)?;
    for mount in &launch.mounts {
        if matches!(mount.source, gantry_shim_protocol::MountSource::Cgroups) && !waited {
            enter_cgroups(first, &mut waited)?;
        }
        tree.mount(mount, &first.fds, first.head)?;
    }
    enter_cgroups(first, &mut waited)?;
    devices::make(tree.root(), &launch, own_users)?;
    let terminal = match first.head.stdio.terminal {
        Some(size) => Some(terminal::open_first(tree.root(), size, &launch.process, &first.voice)?),
        None => None,
    };
    set_names(&launch)?;
    mounts::write_sysctls(tree.proc()?, &launch.sysctls)?;
    tree.protect(&launch)?;
    let proc = tree.enter(&launch)?;
    let wait = |voice: &Voice| {
        if first.start {
            return Ok(());
        }
        voice.ready_and_wait().during(Stage::State, || "wait for the start".to_owned())
    };
    identity::become_program(identity::Program {
        process: &launch.process,
        proc: proc.as_ref().map(AsFd::as_fd),
        ends: &first.ends,
        terminal,
        init: first.own_program.as_ref(),
        keyring: Some(&first.head.id),
        voice: &first.voice,
        wait: &wait,
    })
}

/// Waits for the shim's cgroups and joins them, once.
fn enter_cgroups(first: &First<'_>, waited: &mut bool) -> Result<(), Failure> {
    if *waited {
        return Ok(());
    }
    wait_go(&first.voice)?;
    *waited = true;
    cgroups::join(&first.head.group)?;
    if first.head.namespaces.is_new(Namespace::Cgroup) {
        gantry_sys::process::unshare(gantry_sys::process::CloneFlags::CGROUP)
            .during(Stage::Namespace, || "make a cgroup namespace".to_owned())?;
    }
    Ok(())
}

fn wait_go(voice: &Voice) -> Result<(), Failure> {
    voice.wait_go().during(Stage::Cgroup, || "wait for the cgroups".to_owned())
}

/// Joins the namespaces given by descriptor. That of processes was entered by the shim before the
/// clone, and mounts are always new.
fn join_namespaces(first: &First<'_>) -> Result<(), Failure> {
    // Users first: being root there is what allows the rest.
    const ORDER: [(Namespace, LinkNameSpaceType); 5] = [
        (Namespace::User, LinkNameSpaceType::User),
        (Namespace::Ipc, LinkNameSpaceType::InterProcessCommunication),
        (Namespace::Uts, LinkNameSpaceType::HostNameAndNISDomainName),
        (Namespace::Network, LinkNameSpaceType::Network),
        (Namespace::Cgroup, LinkNameSpaceType::ControlGroup),
    ];
    for (kind, link) in ORDER {
        if let Some(NamespaceMode::Join(index)) = first.head.namespaces.get(kind) {
            let fd = fd_at(&first.fds, index)?;
            move_into_link_name_space(fd, Some(link))
                .during(Stage::Namespace, || format!("join {kind:?} namespace"))?;
        }
    }
    Ok(())
}

/// The descriptor a plan refers to.
fn fd_at(fds: &[OwnedFd], index: FdIndex) -> Result<BorrowedFd<'_>, Failure> {
    let fd = fds.get(usize::from(index)).ok_or(Errno::BADF);
    fd.map(AsFd::as_fd).during(Stage::Protocol, || format!("find descriptor {index} of the launch"))
}

fn set_names(launch: &Launch) -> Result<(), Failure> {
    if let Some(name) = &launch.hostname {
        rustix::system::sethostname(name.as_bytes())
            .during(Stage::Sysctl, || format!("set host name {name}"))?;
    }
    if let Some(name) = &launch.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .during(Stage::Sysctl, || format!("set domain name {name}"))?;
    }
    Ok(())
}

/// Becomes another program in a running container.
///
/// The shim has entered the container's PID namespace for its children before the clone.
pub(crate) fn become_another(another: Another<'_>) -> ! {
    let ends = &another.ends;
    let keep = [&another.body, &ends.stdin, &ends.stdout, &ends.stderr, &another.voice.0]
        .into_iter()
        .map(AsRawFd::as_raw_fd)
        .chain([another.init.as_raw_fd()])
        .collect::<Vec<RawFd>>();
    // From the next line on this process can be seen from inside the container, so nothing of the
    // host's may be open in it.
    let outcome = close_from(3, &keep)
        .during(Stage::Io, || "close the shim's files".to_owned())
        .and_then(|()| run_another(&another));
    if let Err(failure) = outcome {
        another.voice.failed(failure);
    }
    exit_now(1)
}

fn run_another(another: &Another<'_>) -> Result<(), Failure> {
    let process: Process = read_body(&another.body)?;
    wait_go(&another.voice)?;
    cgroups::join(another.group)?;
    let mut kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::CONTROL_GROUP;
    if another.user_namespace {
        kinds |= ThreadNameSpaceType::USER;
    }
    move_into_thread_name_spaces(another.init, kinds)
        .during(Stage::Namespace, || "join the container's namespaces".to_owned())?;
    if another.user_namespace {
        set_credentials(&Credentials::default())
            .during(Stage::Namespace, || "become root of the user namespace".to_owned())?;
    }
    rustix::process::setsid().during(Stage::Namespace, || "start a session".to_owned())?;
    let terminal = match another.terminal {
        Some(size) => Some(terminal::open_another(size, &process, &another.voice)?),
        None => None,
    };
    let labelled = process.apparmor.is_some() || process.selinux.is_some();
    let proc = if labelled { Some(mounts::private_proc()?) } else { None };
    identity::become_program(identity::Program {
        process: &process,
        proc: proc.as_ref().map(AsFd::as_fd),
        ends: &another.ends,
        terminal,
        init: None,
        keyring: None,
        voice: &another.voice,
        wait: &|_| Ok(()),
    })
}

/// Reads a memfd from its beginning.
fn read_body<T: serde::de::DeserializeOwned>(memfd: &OwnedFd) -> Result<T, Failure> {
    let size = rustix::fs::fstat(memfd)
        .and_then(|stat| usize::try_from(stat.st_size).map_err(|_| Errno::FBIG))
        .and_then(|size| if size > MEMFD_MAX { Err(Errno::FBIG) } else { Ok(size) })
        .during(Stage::Protocol, || "read the plan".to_owned())?;
    let mut bytes = vec![0; size];
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let offset = u64::try_from(at).unwrap_or(u64::MAX);
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(memfd, &mut *rest, offset))
            .during(Stage::Protocol, || "read the plan".to_owned())?;
        if got == 0 {
            break;
        }
        at += got;
    }
    decode_body(&bytes).map_err(|error| Failure {
        stage: Stage::Protocol,
        errno: 0,
        message: format!("cannot read the plan: {error}"),
    })
}
