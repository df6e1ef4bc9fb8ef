//! From addresses to bound sockets.

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio_rustls::TlsAcceptor;

use super::tls;
use crate::config::host::HostAddr;
use crate::config::typed::{KernelConfig, SocketGroup};

/// Who may use the socket: owner and group. The group `docker` is root-equivalent by this.
const SOCKET_MODE: u32 = 0o660;
/// Descriptors passed by a service manager begin here. Source: sd_listen_fds(3).
const FIRST_INHERITED: i32 = 3;
/// The group used if it exists and none is configured.
const DEFAULT_GROUP: &str = "docker";

/// A bound socket that is not accepting yet.
pub enum Listener {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP socket, with TLS or without.
    Tcp(TcpListener, Option<TlsAcceptor>),
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(listener) => f.debug_tuple("Unix").field(listener).finish(),
            Self::Tcp(listener, tls) => {
                f.debug_tuple("Tcp").field(listener).field(&tls.is_some()).finish()
            }
        }
    }
}

/// All bound sockets; sockets in the file system that we made are removed when this is dropped.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The sockets, taken out by whoever accepts on them.
    pub sockets: Vec<Listener>,
    made: Vec<PathBuf>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = std::fs::remove_file(path); // somebody else may have removed it
        }
    }
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something went wrong with one address.
    #[error("cannot listen on {host}: {doing}")]
    Io {
        /// The address.
        host: HostAddr,
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon is there.
    #[error("cannot listen on {host}: another process answers there")]
    InUse {
        /// The address.
        host: HostAddr,
    },
    /// There is something at that path, and it is not a socket.
    #[error("cannot listen on {host}: there is a file of another kind")]
    NotASocket {
        /// The address.
        host: HostAddr,
    },
    /// The service manager passed no such socket.
    #[error("cannot listen on {host}: {why}")]
    Inherited {
        /// The address.
        host: HostAddr,
        /// What is missing.
        why: &'static str,
    },
    /// The configured group does not exist.
    #[error("cannot listen on {host}: there is no group {group}")]
    NoGroup {
        /// The address.
        host: HostAddr,
        /// Its name.
        group: String,
    },
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl Listeners {
    /// Binds every configured address.
    ///
    /// # Errors
    ///
    /// The first address that cannot be bound; those before it are released again.
    pub fn bind(config: &KernelConfig) -> Result<Self, BindError> {
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let mut inherited = ListenFd::from_env();
        let mut listeners = Self::default();
        for host in &config.hosts {
            match host {
                HostAddr::Unix(path) => listeners.bind_unix(host, path, &config.group)?,
                HostAddr::Tcp { host: name, port } => {
                    let socket = bind_tcp(host, name, *port)?;
                    listeners.sockets.push(Listener::Tcp(socket, acceptor.clone()));
                }
                HostAddr::Inherited(fd) => {
                    let sockets = take_inherited(host, *fd, &mut inherited, acceptor.as_ref())?;
                    listeners.sockets.extend(sockets);
                }
            }
        }
        Ok(listeners)
    }

    fn bind_unix(
        &mut self,
        host: &HostAddr,
        path: &Path,
        group: &SocketGroup,
    ) -> Result<(), BindError> {
        let fail = |doing: &str| {
            let (host, doing) = (host.clone(), doing.to_owned());
            move |source| BindError::Io { host, doing, source }
        };
        let gid = group_id(host, group)?;
        remove_stale(host, path)?;
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(fail("create its directory"))?;
        }
        let socket = UnixListener::bind(path).map_err(fail("bind"))?;
        self.made.push(path.to_owned());
        if gid.is_some() {
            std::os::unix::fs::chown(path, None, gid).map_err(fail("set its group"))?;
        }
        let mode = std::fs::Permissions::from_mode(SOCKET_MODE);
        std::fs::set_permissions(path, mode).map_err(fail("set its mode"))?;
        self.sockets.push(Listener::Unix(socket));
        Ok(())
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(host: &HostAddr, path: &Path) -> Result<(), BindError> {
    let fail =
        |doing: &str, source| BindError::Io { host: host.clone(), doing: doing.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at its path", error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket { host: host.clone() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { host: host.clone() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| fail("remove the stale socket", error))
        }
        Err(error) => Err(fail("ask who is there", error)),
    }
}

/// The group of a new socket; none leaves it as it is made.
fn group_id(host: &HostAddr, group: &SocketGroup) -> Result<Option<u32>, BindError> {
    match group {
        SocketGroup::Default => Ok(lookup_group(DEFAULT_GROUP)),
        SocketGroup::Named(name) if name.is_empty() => Ok(None),
        SocketGroup::Named(name) => match name.parse().ok().or_else(|| lookup_group(name)) {
            Some(gid) => Ok(Some(gid)),
            None => Err(BindError::NoGroup { host: host.clone(), group: name.clone() }),
        },
    }
}

/// Source: group(5).
fn lookup_group(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Prefers IPv4, as the reference engine's language does for names with both.
fn bind_tcp(host: &HostAddr, name: &str, port: u16) -> Result<TcpListener, BindError> {
    let fail =
        |doing: &str, source| BindError::Io { host: host.clone(), doing: doing.to_owned(), source };
    let mut addresses: Vec<_> = (name, port)
        .to_socket_addrs()
        .map_err(|error| fail("find the address of this name", error))?
        .collect();
    addresses.sort_by_key(|address| !address.is_ipv4());
    let address = *addresses.first().ok_or_else(|| {
        fail("find the address of this name", io::ErrorKind::AddrNotAvailable.into())
    })?;
    let socket = TcpListener::bind(address).map_err(|error| fail("bind", error))?;
    keep_alive(&socket).map_err(|error| fail("set keep-alive", error))?;
    Ok(socket)
}

/// Notices clients whose machine is gone: after half a minute of silence the kernel asks, and gives
/// up after four answers that do not come. Accepted sockets inherit this. Source: tcp(7).
fn keep_alive(socket: &TcpListener) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &30)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &15)?;
    setsockopt(socket, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

/// Sockets opened by the service manager. TLS applies to TCP among them.
fn take_inherited(
    host: &HostAddr,
    fd: Option<i32>,
    inherited: &mut ListenFd,
    acceptor: Option<&TlsAcceptor>,
) -> Result<Vec<Listener>, BindError> {
    let missing = |why| BindError::Inherited { host: host.clone(), why };
    let count = inherited.len();
    if count == 0 {
        return Err(missing(
            "no sockets found via socket activation: make sure the service was started by systemd",
        ));
    }
    let wanted = match fd.map(|fd| usize::try_from(fd - FIRST_INHERITED)) {
        None => 0..count,
        Some(Ok(n)) if n < count => n..n + 1,
        Some(_) => {
            return Err(missing("too few socket activated files passed in by systemd"));
        }
    };
    wanted
        .map(|n| {
            take_one(n, inherited, acceptor).map_err(|source| BindError::Io {
                host: host.clone(),
                doing: format!("take descriptor {}", n + 3),
                source,
            })
        })
        .collect()
}

fn take_one(
    n: usize,
    inherited: &mut ListenFd,
    acceptor: Option<&TlsAcceptor>,
) -> io::Result<Listener> {
    // Cloned, because clones are closed on exec and inherited descriptors are not.
    if let Ok(Some(socket)) = inherited.take_unix_listener(n) {
        return Ok(Listener::Unix(socket.try_clone()?));
    }
    match inherited.take_tcp_listener(n)? {
        Some(socket) => Ok(Listener::Tcp(socket.try_clone()?, acceptor.cloned())),
        None => Err(io::Error::other("it is used twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(path: &Path) -> HostAddr {
        HostAddr::Unix(path.to_owned())
    }

    fn bind(path: &Path) -> Result<Listeners, BindError> {
        let mut listeners = Listeners::default();
        listeners.bind_unix(&host(path), path, &SocketGroup::Named(String::new()))?;
        Ok(listeners)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/docker.sock");
        let live = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert!(matches!(bind(&path), Err(BindError::InUse { .. })));
        drop(live);
        assert!(!path.exists(), "our own socket is removed");
        drop(UnixListener::bind(&path).unwrap()); // leaves the file behind
        bind(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        let at = host(Path::new("/x"));
        assert_eq!(lookup_group("root"), Some(0));
        assert_eq!(group_id(&at, &SocketGroup::Named("7".into())).unwrap(), Some(7));
        assert!(group_id(&at, &SocketGroup::Named("no-such-group".into())).is_err());
    }
}
