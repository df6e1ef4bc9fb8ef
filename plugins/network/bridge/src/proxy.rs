//! Published ports where the firewall does not reach: tasks that pass bytes on.
//!
//! They serve connections to 127.0.0.1 and ::1, connections over IPv6 for a container that has only
//! IPv4, and everything when the daemon was told to have no firewall. The container sees the bridge
//! as the peer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_sdk::kinds::network::Protocol;
use gantry_sdk::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ports::Reservation;

/// Connections that one published port passes on at a time; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// UDP clients that one published port remembers; datagrams of more are dropped.
const CLIENTS: usize = 256;
/// How long a UDP client is remembered. The reference engine's proxy uses the same.
const CLIENT_IDLE: Duration = Duration::from_secs(90);
/// How long a container may take to accept.
const CONNECT: Duration = Duration::from_secs(30);
/// Pause after a failed accept: descriptors are short.
const PAUSE: Duration = Duration::from_millis(100);
const DATAGRAM: usize = 65_536;

/// A port that is published: held, and passed on where needed.
#[derive(Debug)]
pub(crate) struct Publication {
    reservation: Reservation,
    task: Option<JoinHandle<()>>,
}

impl Publication {
    /// Publishes what is reserved; `target` is the container's address, none leaves the port to the
    /// firewall.
    pub(crate) fn start(
        mut reservation: Reservation,
        target: Option<IpAddr>,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let Some(target) = target else { return Ok(Self { reservation, task: None }) };
        let target = SocketAddr::new(target, reservation.mapping.container_port);
        let task = match reservation.mapping.protocol {
            Protocol::Tcp => {
                let Some(socket) = reservation.socket.take() else {
                    return Ok(Self { reservation, task: None });
                };
                let listener = TcpListener::from_std(socket.into())?;
                let inner = tasks.clone();
                Some(tasks.spawn("published tcp port", tcp(listener, target, inner)))
            }
            Protocol::Udp => {
                let Some(socket) = reservation.socket.take() else {
                    return Ok(Self { reservation, task: None });
                };
                let socket = udp_socket(socket)?;
                let inner = tasks.clone();
                Some(tasks.spawn("published udp port", udp(socket, target, inner)))
            }
            // The firewall's alone: a proxy would need the peer's stream structure.
            Protocol::Sctp => None,
        };
        Ok(Self { reservation, task })
    }

    /// Ends it; when this returns the port is free.
    pub(crate) async fn close(self) {
        if let Some(task) = self.task {
            task.abort();
            let _ = task.await; // only now is its socket closed
        }
        drop(self.reservation);
    }
}

fn udp_socket(fd: OwnedFd) -> io::Result<Arc<UdpSocket>> {
    UdpSocket::from_std(fd.into()).map(Arc::new)
}

async fn tcp(listener: TcpListener, target: SocketAddr, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopping().cancelled() => return,
        };
        let Ok((client, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let stop = tasks.stopping().clone();
        tasks.spawn("published tcp connection", async move {
            tokio::select! {
                () = pass_on(client, target) => {}
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// Both directions, each ended by its own end-of-file.
async fn pass_on(mut client: TcpStream, target: SocketAddr) {
    let Ok(Ok(mut container)) = tokio::time::timeout(CONNECT, TcpStream::connect(target)).await
    else {
        // Nobody listens inside; the client sees its connection reset, as it would without us.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = container.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut client, &mut container).await;
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

async fn udp(socket: Arc<UdpSocket>, target: SocketAddr, tasks: Tasks) {
    let clients = Clients::default();
    let gone = CancellationToken::new();
    let _guard = gone.clone().drop_guard(); // takes the clients along, however this task ends
    loop {
        let ready = tokio::select! {
            ready = socket.readable() => ready,
            () = tasks.stopping().cancelled() => return,
        };
        if ready.is_err() {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        // Only while there is something to read: an idle port keeps no buffer.
        let mut buffer = vec![0; DATAGRAM];
        while let Ok((length, client)) = socket.try_recv_from(&mut buffer) {
            if let Some(upstream) =
                upstream_of(client, &socket, target, &clients, &tasks, &gone).await
            {
                let _ = upstream.send(&buffer[..length]).await;
            }
        }
    }
}

/// The socket that stands for `client` before the container, made at its first datagram.
async fn upstream_of(
    client: SocketAddr,
    socket: &Arc<UdpSocket>,
    target: SocketAddr,
    clients: &Clients,
    tasks: &Tasks,
    gone: &CancellationToken,
) -> Option<Arc<UdpSocket>> {
    {
        let known = lock(clients);
        if let Some(upstream) = known.get(&client) {
            return Some(upstream.clone());
        }
        if known.len() >= CLIENTS {
            return None;
        }
    }
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let upstream = UdpSocket::bind((any, 0)).await.ok()?;
    upstream.connect(target).await.ok()?;
    let upstream = Arc::new(upstream);
    lock(clients).insert(client, upstream.clone());

    let (socket, clients, from) = (Arc::downgrade(socket), clients.clone(), upstream.clone());
    let (stop, gone) = (tasks.stopping().clone(), gone.clone());
    tasks.spawn("published udp client", async move {
        loop {
            let ready = tokio::select! {
                ready = tokio::time::timeout(CLIENT_IDLE, from.readable()) => ready,
                () = stop.cancelled() => break,
                () = gone.cancelled() => break,
            };
            // Idle for long, or the port is no longer published.
            let (Ok(Ok(())), Some(socket)) = (ready, socket.upgrade()) else { break };
            let mut buffer = vec![0; DATAGRAM];
            while let Ok(length) = from.try_recv(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], client).await;
            }
        }
        lock(&clients).remove(&client);
    });
    Some(upstream)
}

fn lock(clients: &Clients) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<UdpSocket>>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}
