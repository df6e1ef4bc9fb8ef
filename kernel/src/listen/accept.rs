//! Accept loops: one task per listener, one per connection.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::route::Peer;
use gantry_sdk::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::bind::Listener;
use super::tls;
use crate::http::conn::{Serving, serve};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The pause after an accept that failed, most often for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts on `listener` until serving is draining.
///
/// # Errors
///
/// If the socket cannot be handed to the runtime.
pub fn accept(
    listener: Listener,
    serving: &Serving,
    tasks: &Tasks,
    room: &Arc<Semaphore>,
) -> io::Result<()> {
    let doorman = Doorman { serving: serving.clone(), tasks: tasks.clone(), room: room.clone() };
    match listener {
        Listener::Unix(socket) => {
            socket.set_nonblocking(true)?;
            let socket = UnixListener::from_std(socket)?;
            tasks.spawn("accept-unix", async move { doorman.unix(socket).await });
        }
        Listener::Tcp(socket, acceptor) => {
            socket.set_nonblocking(true)?;
            let socket = TcpListener::from_std(socket)?;
            tasks.spawn("accept-tcp", async move { doorman.tcp(socket, acceptor).await });
        }
    }
    Ok(())
}

/// Lets connections in.
struct Doorman {
    serving: Serving,
    tasks: Tasks,
    room: Arc<Semaphore>,
}

impl Doorman {
    async fn unix(self, listener: UnixListener) {
        self.each(
            || listener.accept(),
            |(stream, _), doorman| {
                let peer = unix_peer(&stream);
                doorman.admit(async move { Some((stream, peer)) });
            },
        )
        .await;
    }

    async fn tcp(self, listener: TcpListener, acceptor: Option<TlsAcceptor>) {
        self.each(
            || listener.accept(),
            |(stream, _), doorman| {
                let _ = stream.set_nodelay(true); // only slower without
                match acceptor.clone() {
                    None => doorman.admit(async move { Some((stream, Peer::default())) }),
                    Some(acceptor) => doorman.admit(handshake(acceptor, stream)),
                }
            },
        )
        .await;
    }

    /// Calls `begin` for every connection that `next` accepts.
    async fn each<C, F>(&self, next: impl Fn() -> F, begin: impl Fn(C, &Self))
    where
        F: Future<Output = io::Result<C>>,
    {
        loop {
            let room = async {
                let _ = self.room.acquire().await.map(drop); // the semaphore is never closed
                next().await
            };
            let accepted = tokio::select! {
                accepted = room => accepted,
                () = self.serving.draining.cancelled() => return,
            };
            match accepted {
                Ok(connection) => begin(connection, self),
                Err(error) => {
                    tracing::warn!(%error, "Cannot accept a connection.");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves the connection that `open` yields, as a task of its own.
    fn admit<S>(&self, open: impl Future<Output = Option<(S, Peer)>> + Send + 'static)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            return tracing::warn!("Too many connections; one was closed.");
        };
        let serving = self.serving.clone();
        let stop = self.tasks.stopping().clone();
        self.tasks.spawn("connection", async move {
            let work = async {
                if let Some((stream, peer)) = open.await {
                    serve(stream, peer, serving).await;
                }
            };
            stop.run_until_cancelled(work).await;
            drop(permit);
        });
    }
}

fn unix_peer(stream: &UnixStream) -> Peer {
    let credentials = stream.peer_cred().ok();
    Peer {
        uid: credentials.map(|c| c.uid()),
        pid: credentials.and_then(|c| c.pid()).and_then(|pid| u32::try_from(pid).ok()),
        certificate: None,
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let certificate = certificates.and_then(<[_]>::first).and_then(|c| tls::common_name(c));
            Some((stream, Peer { certificate, ..Peer::default() }))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "A TLS handshake failed.");
            None
        }
        Err(_) => {
            tracing::debug!("A TLS handshake took too long.");
            None
        }
    }
}
