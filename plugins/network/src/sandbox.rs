//! One container's sandbox: namespace, addresses, endpoint, files. All of it or nothing.

use std::net::IpAddr;
use std::sync::Arc;

use gantry_sdk::id::NetworkId;
use gantry_sdk::kinds::network::{EndpointSpec, Joined, NetNsFd};
use gantry_sdk::kinds::networks::{EndpointStatus, SandboxNs, SandboxSpec, SandboxStatus};
use gantry_sdk::{Ctx, Error, ErrorKind, Result};
use gantry_sys::netlink::{Mac, NetNs};
use ipnet::IpNet;

use crate::files::{self, Naming};
use crate::ports;
use crate::record::Record;
use crate::resolv::Place;
use crate::store::{Entry, Held, Store};

/// The interface of the first network.
const INTERFACE: &str = "eth0";

/// Makes the sandbox of `spec` in the network `entry`.
pub(crate) async fn open(
    store: &Store,
    cx: &Ctx,
    entry: &Arc<Entry>,
    spec: &SandboxSpec,
) -> Result<(SandboxNs, Held)> {
    match entry.record.driver.as_str() {
        "host" => {
            write_files(store, spec, Place::Host, Vec::new()).await?;
            Ok((SandboxNs::Host, held(entry, spec, EndpointStatus::default(), None)))
        }
        "null" => {
            write_files(store, spec, Place::Sandbox { v6: false }, Vec::new()).await?;
            let netns = new_netns().await?;
            Ok((SandboxNs::Ready(netns), held(entry, spec, EndpointStatus::default(), None)))
        }
        _ => connect(store, cx, entry, spec).await,
    }
}

fn held(
    entry: &Arc<Entry>,
    spec: &SandboxSpec,
    place: EndpointStatus,
    endpoint: Option<(EndpointSpec, Joined)>,
) -> Held {
    let record = &entry.record;
    let endpoint_id = match &endpoint {
        Some((endpoint, _)) => endpoint.id.clone(),
        None => NetworkId::random().to_string(),
    };
    let place = EndpointStatus {
        network_id: record.id.to_string(),
        endpoint_id,
        options: spec.options.clone(),
        ..place
    };
    let status = SandboxStatus {
        sandbox_id: NetworkId::random().to_string(),
        networks: [(record.name.clone(), place)].into(),
        ports: endpoint.as_ref().map(|(_, joined)| joined.ports.clone()).unwrap_or_default(),
    };
    Held { name: spec.name.clone(), entry: entry.clone(), status, endpoint }
}

async fn new_netns() -> Result<NetNsFd> {
    tokio::task::spawn_blocking(NetNs::new)
        .await?
        .map(|netns| Arc::new(netns.into_fd()))
        .map_err(|e| Error::internal("the container has no network namespace", e))
}

async fn connect(
    store: &Store,
    cx: &Ctx,
    entry: &Arc<Entry>,
    spec: &SandboxSpec,
) -> Result<(SandboxNs, Held)> {
    let record = &entry.record;
    let mut endpoint = endpoint_of(store, record, spec)?;
    let connected = async {
        request_addresses(store, cx, record, spec, &mut endpoint).await?;
        let own = endpoint.addresses.iter().map(IpNet::addr).collect::<Vec<_>>();
        let v6 = own.iter().any(IpAddr::is_ipv6);
        write_files(store, spec, Place::Sandbox { v6 }, own).await?;
        let netns = new_netns().await?;
        // Last: from here on there is nothing that could fail and would have to undo a join.
        let driver = store.driver(record)?;
        let joined = driver.join(cx, &record.spec(), &endpoint, netns.clone()).await;
        Ok((netns, joined.map_err(|e| with_endpoint(e, spec, &endpoint))?))
    };
    let connected: Result<(NetNsFd, Joined)> = connected.await;
    match connected {
        Ok((netns, joined)) => {
            let place = place(record, &endpoint, &joined);
            Ok((SandboxNs::Ready(netns), held(entry, spec, place, Some((endpoint, joined)))))
        }
        Err(cause) => {
            // Cannot fail for addresses we hold; and the cause is what matters.
            let _ = release_addresses(store, cx, record, &endpoint).await;
            Err(cause)
        }
    }
}

/// Clients know this sentence; scripts look for its end.
fn with_endpoint(error: Error, spec: &SandboxSpec, endpoint: &EndpointSpec) -> Error {
    if error.kind() != ErrorKind::Conflict {
        return error;
    }
    error.context(format!(
        "driver failed programming external connectivity on endpoint {} ({})",
        spec.name, endpoint.id
    ))
}

fn endpoint_of(store: &Store, record: &Record, spec: &SandboxSpec) -> Result<EndpointSpec> {
    if record.is_predefined() && !spec.addresses.is_empty() {
        return Err(Error::invalid(
            "user specified IP address is supported on user defined networks only",
        ));
    }
    let mac = match &spec.mac {
        None => None,
        Some(text) => {
            let mac: Mac =
                text.parse().map_err(|e| Error::invalid("invalid endpoint").caused_by(e))?;
            Some(mac.0)
        }
    };
    Ok(EndpointSpec {
        id: NetworkId::random().to_string(),
        container: spec.container.clone(),
        interface: INTERFACE.to_owned(),
        addresses: Vec::with_capacity(record.subnets.len()),
        mac,
        ports: ports::wanted(spec, store.config.ip),
        gateway: !record.internal,
        options: spec.options.clone(),
    })
}

/// One address from every subnet, into `endpoint`: also what was given before a failure.
async fn request_addresses(
    store: &Store,
    cx: &Ctx,
    record: &Record,
    spec: &SandboxSpec,
    endpoint: &mut EndpointSpec,
) -> Result<()> {
    let nowhere =
        spec.addresses.iter().find(|a| !record.subnets.iter().any(|s| s.subnet.contains(*a)));
    if let Some(address) = nowhere {
        return Err(Error::invalid(format!(
            "no configured subnet of network {} contains address {address}",
            record.name
        )));
    }
    for subnet in &record.subnets {
        let want = spec.addresses.iter().find(|a| subnet.subnet.contains(*a)).copied();
        let pool = record.pool(subnet.is_v6());
        let given = store.ipam.request_address(cx, &endpoint.id, &pool, want).await;
        let address = given.map_err(|e| e.context(format!("network {}", record.name)))?;
        endpoint.addresses.extend(IpNet::new(address, subnet.subnet.prefix_len()).ok());
    }
    Ok(())
}

/// Gives back every address of `endpoint`.
pub(crate) async fn release_addresses(
    store: &Store,
    cx: &Ctx,
    record: &Record,
    endpoint: &EndpointSpec,
) -> Result<()> {
    let mut result = Ok(());
    for net in &endpoint.addresses {
        let pool = record.pool(net.addr().is_ipv6());
        result = result.and(store.ipam.release_address(cx, &pool, net.addr()).await);
    }
    result
}

async fn write_files(
    store: &Store,
    spec: &SandboxSpec,
    place: Place,
    addresses: Vec<IpAddr>,
) -> Result<()> {
    let naming = Naming { place, addresses, host_gateways: host_gateways(store) };
    let (spec, config) = (spec.clone(), store.config.clone());
    tokio::task::spawn_blocking(move || files::write_all(&spec, &naming, &config)).await?
}

/// What `host-gateway` stands for: the operator's word, or the default bridge's own addresses.
fn host_gateways(store: &Store) -> Vec<IpAddr> {
    if !store.config.host_gateway_ips.is_empty() {
        return store.config.host_gateway_ips.clone();
    }
    let bridge = store.networks().iter().find(|e| e.record.name == "bridge");
    bridge.into_iter().flat_map(|e| &e.record.subnets).filter_map(|s| s.gateway).collect()
}

/// An endpoint as inspect shows it.
fn place(record: &Record, endpoint: &EndpointSpec, joined: &Joined) -> EndpointStatus {
    let mut place = EndpointStatus {
        mac: joined.mac.map(|bytes| Mac(bytes).to_string()).unwrap_or_default(),
        ..EndpointStatus::default()
    };
    for net in &endpoint.addresses {
        let v6 = net.addr().is_ipv6();
        let gateway = record
            .subnets
            .iter()
            .find(|s| s.is_v6() == v6 && endpoint.gateway)
            .and_then(|s| s.gateway)
            .map(|g| g.to_string())
            .unwrap_or_default();
        let address = net.addr().to_string();
        if v6 {
            (place.ip6, place.prefix6, place.gateway6) = (address, net.prefix_len(), gateway);
        } else {
            (place.ip, place.prefix, place.gateway) = (address, net.prefix_len(), gateway);
        }
    }
    place
}

/// The endpoint of a container that outlived a daemon; takes its addresses again.
pub(crate) async fn recover(
    store: &Store,
    cx: &Ctx,
    record: &Record,
    spec: &SandboxSpec,
    status: &SandboxStatus,
    place: &EndpointStatus,
) -> Option<(EndpointSpec, Joined)> {
    if record.subnets.is_empty() {
        return None;
    }
    let net = |address: &str, prefix| IpNet::new(address.parse().ok()?, prefix).ok();
    let addresses: Vec<_> = [net(&place.ip, place.prefix), net(&place.ip6, place.prefix6)]
        .into_iter()
        .flatten()
        .collect();
    for address in addresses.iter().map(IpNet::addr) {
        let pool = record.pool(address.is_ipv6());
        let taken = store.ipam.request_address(cx, &place.endpoint_id, &pool, Some(address)).await;
        if let Err(error) = taken {
            // It runs with that address whatever we think; the table is what is behind.
            let (container, error) = (&spec.container, error.chain());
            tracing::warn!(container, %address, error, "A running container's address is not ours.");
        }
    }
    let mac = place.mac.parse::<Mac>().ok().map(|mac| mac.0);
    let endpoint = EndpointSpec {
        id: place.endpoint_id.clone(),
        container: spec.container.clone(),
        interface: INTERFACE.to_owned(),
        addresses,
        mac,
        ports: status.ports.clone(),
        gateway: !record.internal,
        options: spec.options.clone(),
    };
    let joined = Joined { mac, ports: status.ports.clone(), host_interface: None };
    Some((endpoint, joined))
}
