//! Unix sockets that keep message boundaries and carry descriptors.
//!
//! `SOCK_SEQPACKET`: one send is one receive, in order, and the end of the peer is seen. Descriptors
//! arrive close-on-exec, never more than the receiver asked for, and a message that does not fit is an
//! error rather than a prefix.
//!
//! Source: unix(7), cmsg(3).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Result};

/// The most descriptors one message carries: `SCM_MAX_FD` of the kernel.
pub const FDS_MAX: usize = 253;

/// `sun_path` holds 108 bytes with the terminator.
const ADDRESS_MAX: usize = 107;

/// What [`receive`] found.
#[derive(Debug)]
pub struct Received {
    /// Length of the message; zero says that the peer has closed.
    pub bytes: usize,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Who is at the other end, as of when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process, as numbered in the caller's pid namespace.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// A connected pair, both close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Error::new("make", "socket pair", errno))
}

/// Listens at `path`, which must not exist, with this mode.
///
/// The socket is bound in a state nobody can connect to, gets its mode, and only then listens.
///
/// # Errors
///
/// `EADDRINUSE`: something exists at `path`, perhaps the socket of a dead process.
pub fn listen(path: &Path, backlog: i32, mode: u32) -> Result<OwnedFd> {
    let failed = |errno| Error::at("listen at", path, errno);
    let socket = new_socket().map_err(failed)?;
    with_address(path, |address| rustix::net::bind(&socket, address)).map_err(failed)?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode & 0o777)).map_err(failed)?;
    rustix::net::listen(&socket, backlog).map_err(failed)?;
    Ok(socket)
}

/// Takes the next connection of a listening socket. Waits, unless the socket is non-blocking.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let again = || rustix::net::accept_with(listener.as_fd(), SocketFlags::CLOEXEC);
    Ok(rustix::io::retry_on_intr(again)?)
}

/// Connects to the socket at `path`.
///
/// # Errors
///
/// `ECONNREFUSED`: nobody listens there (any more). `EAGAIN`: the listener's queue is full.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let failed = |errno| Error::at("connect to", path, errno);
    let socket = new_socket().map_err(failed)?;
    with_address(path, |address| rustix::net::connect(&socket, address)).map_err(failed)?;
    Ok(socket)
}

/// Sends one message, whole, with descriptors. Never raises `SIGPIPE`.
///
/// # Errors
///
/// `EMSGSIZE`: longer than the send buffer. `EPIPE`: the peer is gone. Refused here: an empty message
/// (the receiver could not tell it from the end) and more than [`FDS_MAX`] descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > FDS_MAX {
        return Err(Errno::INVAL.into());
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL.into());
    }
    let parts = [IoSlice::new(bytes)];
    let sent = loop {
        match rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            answer => break answer?,
        }
    };
    // The kernel sends a packet whole or not at all.
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE.into()) }
}

/// Receives one message into `buffer`, with at most `fds_max` descriptors (`O_CLOEXEC`).
///
/// # Errors
///
/// `EMSGSIZE`: the message is longer than the buffer, or brings more descriptors than allowed. It is
/// consumed and its descriptors are closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], fds_max: usize) -> io::Result<Received> {
    let fds_max = fds_max.min(FDS_MAX);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds_max))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let answer = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            answer => break answer?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // Padding can leave room for one descriptor more than was asked for.
    let truncated = answer.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if truncated || fds.len() > fds_max {
        return Err(Errno::MSGSIZE.into());
    }
    Ok(Received { bytes: answer.bytes, fds })
}

/// Who connected (`SO_PEERCRED`).
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)
        .map_err(|errno| Error::new("read", "peer credentials", errno))?;
    Ok(Peer {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

/// Calls with the address of `path`; a path that is too long for one goes through its directory's
/// descriptor.
fn with_address<T>(
    path: &Path,
    call: impl FnOnce(&SocketAddrUnix) -> Result<T, Errno>,
) -> Result<T, Errno> {
    if path.as_os_str().as_bytes().len() <= ADDRESS_MAX {
        return call(&SocketAddrUnix::new(path)?);
    }
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(Errno::INVAL)?;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, rustix::fs::Mode::empty())?;
    let short: PathBuf = crate::path::proc_fd(&dir).join(name);
    call(&SocketAddrUnix::new(&short)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::io::{Read, Write};

    #[test]
    fn messages_keep_their_boundaries_and_bring_their_descriptors() {
        let (near, far) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&near, b"one", &[writer.as_fd()]).unwrap();
        send(&near, b"three", &[]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let mut first = receive(&far, &mut buffer, 4).unwrap();
        assert_eq!((&buffer[..first.bytes], first.fds.len()), (&b"one"[..], 1));
        let mut writer = std::fs::File::from(first.fds.remove(0));
        assert!(rustix::io::fcntl_getfd(&writer).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        writer.write_all(b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(&far, &mut buffer, 0).unwrap().bytes, 5);
        drop(near);
        assert_eq!(receive(&far, &mut buffer, 0).unwrap().bytes, 0);
        assert!(send(&far, b"x", &[]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_leaks_nothing() {
        let (near, far) = pair().unwrap();
        let fds = [near.as_fd(), near.as_fd(), near.as_fd()];
        let mut buffer = [0; 4];
        send(&near, b"12345", &[]).unwrap();
        assert!(receive(&far, &mut buffer, 0).is_err());
        for allowed in 0..3 {
            send(&near, b"1", &fds).unwrap();
            let error = receive(&far, &mut buffer, allowed).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()), "{allowed}");
        }
        send(&near, b"1", &fds).unwrap();
        assert_eq!(receive(&far, &mut buffer, 3).unwrap().fds.len(), 3);
        assert!(send(&near, b"", &[]).is_err());
        assert!(send(&near, b"1", &vec![near.as_fd(); FDS_MAX + 1]).is_err());
    }

    #[test]
    fn long_paths_work_and_the_peer_is_known() {
        let dir = Scratch::new("socket");
        let deep = "d".repeat(120);
        dir.make(&deep);
        for path in [dir.path().join("s"), dir.path().join(&deep).join("s")] {
            let listener = listen(&path, 4, 0o600).unwrap();
            let client = connect(&path).unwrap();
            let server = accept(&listener).unwrap();
            send(&client, b"hello", &[]).unwrap();
            assert_eq!(receive(&server, &mut [0; 8], 0).unwrap().bytes, 5);
            let peer = peer(&server).unwrap();
            assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
            assert!(listen(&path, 4, 0o600).unwrap_err().is(Errno::ADDRINUSE));
        }
        assert!(connect(&dir.path().join("nobody")).unwrap_err().is(Errno::NOENT));
    }
}
