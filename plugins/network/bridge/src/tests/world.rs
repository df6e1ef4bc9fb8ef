//! A small world: a host with a client behind it, bridges, containers.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::Ctx;
use gantry_sdk::id::NetworkId;
use gantry_sdk::kinds::network::{
    EndpointSpec, Joined, NetworkDriver, NetworkSpec, PortMapping, Protocol,
};
use gantry_sdk::tasks::Tasks;
use gantry_sys::netlink::{self, Destination, IfName, LinkChange, NetNs, Request, Route, Veth};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::driver::Bridge;
use crate::settings::Config;

pub(super) const HOST4: &str = "192.0.2.1";
pub(super) const CLIENT4: &str = "192.0.2.2";
pub(super) const HOST6: &str = "2001:db8::1";

/// The kernel asks for a neighbour's address again after a second when its first question was lost,
/// which happens on a busy machine.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Where no answer is expected.
const IMPATIENCE: Duration = Duration::from_millis(400);

fn patience(expected: Option<IpAddr>) -> Duration {
    if expected.is_some() { PATIENCE } else { IMPATIENCE }
}

/// Runs `test` on a host of its own.
pub(super) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || std::process::Command::new("nft").arg("-v").output().is_err() {
        eprintln!("SKIPPED: needs root and nft");
        return;
    }
    NetNs::create(|_, _| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
        runtime.shutdown_timeout(Duration::from_secs(5));
        Ok::<_, netlink::Error>(())
    })
    .unwrap();
}

/// Whether bridges pass packets through the firewall. Absent without the kernel module; then both
/// rounds of a test are the one case there is.
pub(super) fn set_bridge_filter(value: &str) {
    for family in ["iptables", "ip6tables"] {
        let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), value);
    }
}

pub(super) fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// A driver as a daemon starts it.
pub(super) fn driver(config: Config) -> (Bridge, Tasks) {
    let tasks = Tasks::new("bridge", &CancellationToken::new());
    (Bridge::open(config, tasks.clone()).unwrap(), tasks)
}

pub(super) fn network(number: u8, options: &[(&str, &str)]) -> NetworkSpec {
    let subnet = |text: String| text.parse::<IpNet>().unwrap();
    let mut all: gantry_sdk::Labels =
        options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    all.insert("com.docker.network.bridge.name".into(), format!("br{number}"));
    NetworkSpec {
        id: NetworkId::random(),
        name: format!("net{number}"),
        subnets: vec![
            (
                subnet(format!("10.{number}.0.0/24")),
                Some(format!("10.{number}.0.1").parse().unwrap()),
            ),
            (subnet(format!("fd0{number}::/64")), Some(format!("fd0{number}::1").parse().unwrap())),
        ],
        options: all,
        internal: false,
    }
}

pub(super) fn port(protocol: Protocol, ip: &str, host: u16, container: u16) -> PortMapping {
    PortMapping {
        protocol,
        container_port: container,
        host_ip: ip.parse().unwrap(),
        host_port: host,
        host_port_end: host,
    }
}

pub(super) fn endpoint(addresses: Vec<IpNet>, ports: &[PortMapping]) -> EndpointSpec {
    EndpointSpec {
        id: gantry_sdk::id::ContainerId::random().to_string(),
        container: "c".into(),
        interface: "eth0".into(),
        addresses,
        mac: None,
        ports: ports.to_vec(),
        gateway: true,
        options: gantry_sdk::Labels::new(),
    }
}

/// A container: a namespace that is connected.
pub(super) struct Container {
    pub(super) netns: Arc<NetNs>,
    pub(super) spec: EndpointSpec,
    pub(super) joined: Joined,
}

impl Container {
    /// Number `n` of network `net`, with both families.
    pub(super) async fn join(
        driver: &Bridge,
        net: &NetworkSpec,
        n: u8,
        ports: &[PortMapping],
    ) -> gantry_sdk::Result<Self> {
        let nets = net.subnets.iter().map(|(subnet, _)| match subnet {
            IpNet::V4(v4) => {
                let [a, b, c, _] = v4.addr().octets();
                IpNet::new([a, b, c, n].into(), 24).unwrap()
            }
            IpNet::V6(v6) => {
                let bits = v6.addr().to_bits() + u128::from(n);
                IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), 64).unwrap()
            }
        });
        Self::join_with(driver, net, nets.collect(), ports).await
    }

    pub(super) async fn join_with(
        driver: &Bridge,
        net: &NetworkSpec,
        addresses: Vec<IpNet>,
        ports: &[PortMapping],
    ) -> gantry_sdk::Result<Self> {
        let spec = endpoint(addresses, ports);
        let netns = NetNs::new().unwrap();
        let fd = Arc::new(netns.try_clone().unwrap().into_fd());
        let joined = driver.join(&Ctx::background(), net, &spec, fd).await?;
        running(&netns, "eth0").await;
        running(&host(), joined.host_interface.as_deref().unwrap()).await;
        running(&host(), &net.options["com.docker.network.bridge.name"]).await;
        Ok(Self { netns: Arc::new(netns), spec, joined })
    }

    pub(super) async fn leave(&self, driver: &Bridge, net: &NetworkSpec) {
        driver.leave(&Ctx::background(), net, &self.spec, &self.joined).await.unwrap();
    }
}

/// Waits until the kernel has noticed that a link carries packets. A real container takes longer to
/// start; here a question that is lost meanwhile would be asked again only after a second.
async fn running(netns: &NetNs, link: &str) {
    let (link, mut route) = (name(link), netns.run(Route::open).unwrap());
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !route.link(&link).unwrap().unwrap().running {
        assert!(std::time::Instant::now() < until, "{link} does not run");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A machine behind the host, with routes to every container subnet.
pub(super) async fn client() -> Arc<NetNs> {
    let netns = NetNs::new().unwrap();
    let mut route = Route::open().unwrap();
    let veth = Veth {
        name: name("client"),
        peer: name("eth0"),
        peer_netns: netns.as_fd(),
        peer_mac: None,
        mtu: None,
        master: None,
    };
    route.apply(&[Request::CreateVeth(veth)]).unwrap();
    let index = route.link(&name("client")).unwrap().unwrap().index;
    give_addresses(&mut route, index, HOST4, HOST6);
    netns
        .run(|| {
            let mut inside = Route::open()?;
            let index = inside.link(&name("eth0"))?.unwrap().index;
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            inside.apply(&[Request::Change(index.into(), up)])?;
            give_addresses(&mut inside, index, CLIENT4, "2001:db8::2");
            let via = |to: &str, prefix, gateway: &str| {
                let gateway = Some(gateway.parse().unwrap());
                Request::AddRoute(Destination { to: to.parse().unwrap(), prefix, gateway, index })
            };
            inside.apply(&[via("10.0.0.0", 8, HOST4), via("fd00::", 8, HOST6)])
        })
        .unwrap();
    running(&netns, "eth0").await;
    running(&host(), "client").await;
    Arc::new(netns)
}

fn give_addresses(route: &mut Route, index: u32, v4: &str, v6: &str) {
    let add = |address: &str, prefix| Request::AddAddress {
        index,
        address: address.parse().unwrap(),
        prefix,
    };
    route.apply(&[add(v4, 24), add(v6, 64)]).unwrap();
}

/// A server in `netns` that tells each client its address, until the test ends.
pub(super) fn serve_tcp(netns: &NetNs, address: &str) {
    let listener =
        netns.run(|| Ok::<_, netlink::Error>(TcpListener::bind(address).unwrap())).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let mut asked = String::new();
            let _ = stream.read_to_string(&mut asked); // until the client's half-close
            if asked == "stop" {
                return;
            }
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

/// What the server at `to` says to a client in `netns`; none if it is not reached. `expected` decides
/// how long to wait.
pub(super) async fn ask_tcp(
    netns: &Arc<NetNs>,
    to: &str,
    expected: Option<IpAddr>,
) -> Option<IpAddr> {
    let (netns, to) = (netns.clone(), to.parse::<SocketAddr>().unwrap());
    let patience = patience(expected);
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        stream.write_all(b"who am I?").ok()?;
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        said.parse::<IpAddr>().ok()
    };
    tokio::task::spawn_blocking(move || netns.run(|| Ok::<_, netlink::Error>(ask())).unwrap())
        .await
        .unwrap()
}

/// A UDP server in `netns` that tells each client its address.
pub(super) fn serve_udp(netns: &NetNs, address: &str) {
    let socket = netns.run(|| Ok::<_, netlink::Error>(UdpSocket::bind(address).unwrap())).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

/// As [`ask_tcp`], by one datagram.
pub(super) async fn ask_udp(
    netns: &Arc<NetNs>,
    to: &str,
    expected: Option<IpAddr>,
) -> Option<IpAddr> {
    let (netns, to) = (netns.clone(), to.parse::<SocketAddr>().unwrap());
    let patience = patience(expected);
    let ask = move || {
        let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).ok()?;
        socket.set_read_timeout(Some(patience)).ok()?;
        socket.connect(to).ok()?;
        socket.send(b"who am I?").ok()?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).ok()?;
        std::str::from_utf8(&buffer[..length]).ok()?.parse::<IpAddr>().ok()
    };
    tokio::task::spawn_blocking(move || netns.run(|| Ok::<_, netlink::Error>(ask())).unwrap())
        .await
        .unwrap()
}

/// One question on a socket that has asked before.
pub(super) async fn ask_on(
    socket: &Arc<UdpSocket>,
    to: &'static str,
    expected: Option<IpAddr>,
) -> Option<IpAddr> {
    let (socket, patience) = (socket.clone(), patience(expected));
    tokio::task::spawn_blocking(move || {
        socket.set_read_timeout(Some(patience)).ok()?;
        socket.send_to(b"who am I?", to).ok()?;
        let mut buffer = [0; 64];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        std::str::from_utf8(&buffer[..length]).ok()?.parse::<IpAddr>().ok()
    })
    .await
    .unwrap()
}

/// The namespace of the host itself.
pub(super) fn host() -> Arc<NetNs> {
    Arc::new(NetNs::current().unwrap())
}

pub(super) fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}
