//! The host's side of networks and endpoints. Synchronous; called on blocking threads.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_sdk::id::NetworkId;
use gantry_sdk::kinds::network::{EndpointSpec, NetworkSpec, PortMapping};
use gantry_sdk::{Error, Result};
use gantry_sys::netlink::{
    self, Destination, IfName, Link, LinkChange, Mac, Request, Route, Veth, in_netns,
};
use ipnet::{IpNet, Ipv6Net};

use crate::firewall::{Firewall, Redirection, forget_clients};
use crate::settings::{Config, Settings};
use crate::sysctl;

/// The first characters of the names of our host-side links.
pub(crate) const VETH: &str = "veth";

/// The bridge's own link-local address, the same for every bridge as it never leaves its link.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A network that exists on the host.
#[derive(Clone, Debug)]
struct Network {
    spec: NetworkSpec,
    settings: Settings,
    index: u32,
}

#[derive(Clone, Debug)]
struct Endpoint {
    network: NetworkId,
    redirections: Vec<Redirection>,
}

/// What is changed under one lock: the two sockets to the kernel and what was done with them.
#[derive(Debug)]
struct State {
    route: Route,
    firewall: Firewall,
    networks: HashMap<NetworkId, Network>,
    endpoints: HashMap<String, Endpoint>,
}

/// The bridge driver without anything asynchronous.
#[derive(Debug)]
pub(crate) struct Core {
    config: Config,
    state: Mutex<State>,
}

impl Core {
    /// Opens connections to the kernel, in the calling thread's network namespace.
    pub(crate) fn open(config: Config) -> Result<Self> {
        let route = Route::open().map_err(failed)?;
        let firewall = Firewall::open(&config)?;
        let (networks, endpoints) = (HashMap::new(), HashMap::new());
        let state = Mutex::new(State { route, firewall, networks, endpoints });
        Ok(Self { config, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the bridge of `spec` as it should be, whatever is there already.
    pub(crate) fn create(&self, spec: &NetworkSpec) -> Result<()> {
        let settings = Settings::of(spec)?;
        let v6 = settings.subnets.iter().any(|net| net.addr().is_ipv6());
        let opened_up = self.ensure_forwarding(v6)?;
        let mut state = self.state();
        let link = state.ensure_bridge(&settings)?;
        state.ensure_addresses(&link, &settings)?;
        if v6 {
            sysctl::ensure(&format!("ipv6/conf/{}/disable_ipv6", settings.bridge), "0")?;
        }
        let up = LinkChange { up: Some(true), mtu: settings.mtu, ..LinkChange::default() };
        state.route.apply(&[Request::Change(link.index.into(), up)]).map_err(failed)?;
        state.ensure_rules(opened_up && !self.config.ip_forward_no_drop)?;
        state.firewall.add_network(&settings)?;
        let network = Network { spec: spec.clone(), settings, index: link.index };
        state.networks.insert(spec.id.clone(), network);
        Ok(())
    }

    /// Turns forwarding on; returns whether IPv4's was off.
    fn ensure_forwarding(&self, v6: bool) -> Result<bool> {
        if !self.config.ip_forward {
            return Ok(false);
        }
        if v6 {
            // The default is for interfaces to come, `all` for those that exist.
            sysctl::ensure("ipv6/conf/default/forwarding", "1")?;
            sysctl::ensure("ipv6/conf/all/forwarding", "1")?;
        }
        sysctl::ensure("ipv4/ip_forward", "1")
    }

    /// Removes the bridge and its rules.
    pub(crate) fn delete(&self, spec: &NetworkSpec) -> Result<()> {
        let settings = Settings::of(spec)?;
        let mut state = self.state();
        if state.endpoints.values().any(|e| e.network == spec.id) {
            return Err(Error::conflict(format!("network {} has active endpoints", spec.name)));
        }
        if !state.firewall.rules_are_gone() {
            state.firewall.remove_network(&settings)?;
        }
        state.networks.remove(&spec.id);
        if settings.foreign {
            return Ok(());
        }
        match state.route.apply(&[Request::DeleteLink((&settings.bridge).into())]) {
            Err(error) if !error.is_not_found() => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Connects the namespace `netns`: a pair of links, addresses, routes, redirections of `ports`.
    /// On an error nothing of it is left.
    pub(crate) fn join(
        &self,
        spec: &NetworkSpec,
        endpoint: &EndpointSpec,
        ports: &[PortMapping],
        netns: BorrowedFd<'_>,
    ) -> Result<Mac> {
        let inside = Inside::of(spec, endpoint)?;
        let network = self.network(spec)?;
        let host_side = host_link(endpoint)?;
        self.state().make_veth(&network, &host_side, &inside, netns, !ports.is_empty())?;
        let connected =
            inside.configure(netns).and_then(|()| self.state().publish(&network, endpoint, ports));
        match connected {
            Ok(()) => {
                if self.config.iptables || self.config.ip6tables {
                    forget_clients(ports, &endpoint.addresses);
                }
                Ok(inside.mac)
            }
            Err(cause) => Err(self.without_link(&host_side, cause)),
        }
    }

    /// Deletes a link that a failed join made; the error tells if even that fails.
    fn without_link(&self, link: &IfName, cause: Error) -> Error {
        match self.delete_link(link) {
            Ok(()) => cause,
            Err(undo) => cause.context(format!("(and link {link} is left: {})", undo.chain())),
        }
    }

    /// Withdraws what [`join`](Self::join) put into the firewall. The links are not touched: they go
    /// with the namespace.
    pub(crate) fn leave(&self, endpoint: &EndpointSpec, ports: &[PortMapping]) -> Result<()> {
        let mut state = self.state();
        let redirections = match state.endpoints.remove(&endpoint.id) {
            Some(known) => known.redirections,
            None => state.firewall.redirections(ports, &endpoint.addresses),
        };
        if redirections.is_empty() || state.firewall.rules_are_gone() {
            return Ok(());
        }
        state.firewall.unpublish(&redirections)?;
        drop(state); // others need not wait for the walk over all connections
        forget_clients(ports, &endpoint.addresses);
        Ok(())
    }

    /// Deletes a host-side link if it is still there. Takes tens of milliseconds.
    pub(crate) fn delete_link(&self, link: &IfName) -> Result<()> {
        // Its own connection: deleting waits for the kernel, and joins must not wait for that.
        let mut route = Route::open().map_err(failed)?;
        match route.apply(&[Request::DeleteLink(link.into())]) {
            Err(error) if !error.is_not_found() => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Takes over what an earlier daemon left: `live` stays, other redirections into this network
    /// go. Returns the links of endpoints that no longer live, for
    /// [`delete_link`](Self::delete_link).
    pub(crate) fn recover(
        &self,
        spec: &NetworkSpec,
        live: &[(&EndpointSpec, &[PortMapping])],
    ) -> Result<Vec<IfName>> {
        let network = self.network(spec)?;
        let mut state = self.state();
        let mut wanted = HashSet::new();
        for (endpoint, ports) in live {
            let redirections = state.firewall.redirections(ports, &endpoint.addresses);
            state.firewall.publish(&redirections)?;
            wanted.extend(redirections.iter().cloned());
            let endpoint_state = Endpoint { network: spec.id.clone(), redirections };
            state.endpoints.insert(endpoint.id.clone(), endpoint_state);
        }
        let stale = state.firewall.keep_only(&wanted, &network.settings.subnets)?;
        if stale > 0 {
            tracing::info!(network = spec.name, stale, "Removed redirections of ended containers.");
        }
        let mut kept = HashSet::new();
        for (endpoint, _) in live {
            kept.insert(host_link(endpoint)?);
        }
        let links = state.route.links().map_err(failed)?;
        let ports = links
            .into_iter()
            .filter(|l| l.master == Some(network.index) && l.kind.as_deref() == Some("veth"));
        Ok(ports
            .filter_map(|l| IfName::new(l.name).ok())
            .filter(|name| is_ours(name) && !kept.contains(name))
            .collect())
    }

    /// The network, made again if it is not known or its bridge has vanished.
    fn network(&self, spec: &NetworkSpec) -> Result<Network> {
        let known = self.state().networks.get(&spec.id).cloned();
        if let Some(network) = known.filter(|n| n.spec == *spec) {
            let link = self.state().route.link(&network.settings.bridge).map_err(failed)?;
            if link.is_some_and(|link| link.index == network.index) {
                return Ok(network);
            }
            tracing::warn!(network = spec.name, "The bridge had vanished and is made again.");
        }
        self.create(spec)?;
        let made = self.state().networks.get(&spec.id).cloned();
        made.ok_or_else(|| Error::conflict(format!("network {} is being removed", spec.name)))
    }
}

impl State {
    fn ensure_bridge(&mut self, settings: &Settings) -> Result<Link> {
        let name = &settings.bridge;
        let v4 = settings.gateways.iter().find_map(|net| match net.addr() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        // A fixed address: a bridge that follows its ports changes its own with each of them.
        let mac = v4.map(Mac::from_ipv4);
        let create = Request::CreateBridge { name: name.clone(), mac };
        match self.route.apply(&[create]) {
            Err(error) if !error.is_exists() => return Err(failed(error)),
            _ => {}
        }
        let link = self.route.link(name).map_err(failed)?.ok_or_else(|| {
            Error::unavailable(format!("bridge {name} vanished while it was made"))
        })?;
        if link.kind.as_deref() == Some("bridge") {
            Ok(link)
        } else {
            Err(Error::conflict(format!("link {name} exists and is no bridge")))
        }
    }

    fn ensure_addresses(&mut self, link: &Link, settings: &Settings) -> Result<()> {
        let present = self.route.addresses().map_err(failed)?;
        // A router asks for its neighbours from its link-local address. The one the kernel would make
        // is on probation for the first seconds of the bridge, and no container would be reached.
        let v6 = settings.gateways.iter().any(|net| net.addr().is_ipv6());
        let link_local = v6.then(|| IpNet::V6(Ipv6Net::new_assert(LINK_LOCAL, 64)));
        let missing: Vec<_> = settings
            .gateways
            .iter()
            .chain(&link_local)
            .filter(|net| !present.iter().any(|a| a.index == link.index && a.address == net.addr()))
            .map(|net| Request::AddAddress {
                index: link.index,
                address: net.addr(),
                prefix: net.prefix_len(),
            })
            .collect();
        self.route.apply(&missing).map_err(failed)
    }

    /// Loads the rules if they are missing, and then puts everything that is known back in.
    fn ensure_rules(&mut self, drop_others: bool) -> Result<()> {
        if !self.firewall.ensure_rules(drop_others)? {
            return Ok(());
        }
        for network in self.networks.values() {
            self.firewall.add_network(&network.settings)?;
        }
        for endpoint in self.endpoints.values() {
            self.firewall.publish(&endpoint.redirections)?;
        }
        Ok(())
    }

    fn make_veth(
        &mut self,
        network: &Network,
        host_side: &IfName,
        inside: &Inside,
        netns: BorrowedFd<'_>,
        published: bool,
    ) -> Result<()> {
        let veth = Veth {
            name: host_side.clone(),
            peer: inside.interface.clone(),
            peer_netns: netns,
            peer_mac: Some(inside.mac),
            mtu: network.settings.mtu,
            master: Some(network.index),
        };
        let icc = network.settings.icc;
        let filtered = (published || !icc)
            && sysctl::read("bridge/bridge-nf-call-iptables").as_deref() == Some("1");
        // Where the bridge passes packets through the firewall, a container that connects to its own
        // published port is answered by the port it asked from.
        let hairpin = published && filtered;
        // And there the rules keep neighbours apart; isolation would also stop what they redirect.
        let isolated = !icc && !filtered;
        let mut requests = vec![Request::CreateVeth(veth)];
        if hairpin || isolated {
            requests.push(Request::ChangePort { port: host_side.into(), hairpin, isolated });
        }
        let answers = self.route.try_each(&requests).map_err(failed)?;
        let mut answers = answers.into_iter();
        if let Some(error) = answers.next().flatten() {
            return Err(failed(error));
        }
        match answers.next().flatten() {
            Some(error) => {
                let _ = self.route.apply(&[Request::DeleteLink(host_side.into())]);
                Err(failed(error))
            }
            None => Ok(()),
        }
    }

    fn publish(
        &mut self,
        network: &Network,
        endpoint: &EndpointSpec,
        ports: &[PortMapping],
    ) -> Result<()> {
        let redirections = self.firewall.redirections(ports, &endpoint.addresses);
        if !redirections.is_empty()
            && let Err(error) = self.firewall.publish(&redirections)
        {
            if !self.firewall.rules_are_gone() {
                return Err(error);
            }
            tracing::warn!("The firewall's rules had vanished and are loaded again.");
            self.ensure_rules(false)?;
            self.firewall.publish(&redirections)?;
        }
        let state = Endpoint { network: network.spec.id.clone(), redirections };
        self.endpoints.insert(endpoint.id.clone(), state);
        Ok(())
    }
}

/// What is configured inside the container's namespace.
struct Inside {
    interface: IfName,
    mac: Mac,
    addresses: Vec<IpNet>,
    /// Next hops of the default routes.
    gateways: Vec<IpAddr>,
}

impl Inside {
    fn of(spec: &NetworkSpec, endpoint: &EndpointSpec) -> Result<Self> {
        if let Some(option) = endpoint.options.keys().next() {
            let text = format!("the bridge driver has no endpoint option {option:.80}");
            return Err(Error::invalid(text));
        }
        let interface = IfName::new(endpoint.interface.as_str())
            .map_err(|e| Error::invalid("invalid interface name").caused_by(e))?;
        let v4 = endpoint.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        let mac = match (endpoint.mac, v4) {
            (Some(bytes), _) => Mac(bytes),
            (None, Some(v4)) => Mac::from_ipv4(v4),
            (None, None) => mac_of_id(&endpoint.id),
        };
        let has = |v6| endpoint.addresses.iter().any(|net| net.addr().is_ipv6() == v6);
        let gateways = spec
            .subnets
            .iter()
            .filter_map(|(_, gateway)| *gateway)
            .filter(|gateway| endpoint.gateway && !spec.internal && has(gateway.is_ipv6()))
            .collect();
        Ok(Self { interface, mac, addresses: endpoint.addresses.clone(), gateways })
    }

    fn configure(&self, netns: BorrowedFd<'_>) -> Result<()> {
        in_netns(netns, || self.configure_here())
            .map_err(|e| e.0.context(format!("cannot set up {}", self.interface)))
    }

    fn configure_here(&self) -> Result<(), Failure> {
        let mut route = Route::open()?;
        let link = route
            .link(&self.interface)?
            .ok_or_else(|| Error::unavailable(format!("link {} vanished", self.interface)))?;
        if !self.addresses.iter().any(|net| net.addr().is_ipv6()) {
            // Without an address of ours it would still get a link-local one and talk to neighbours.
            let setting = format!("ipv6/conf/{}/disable_ipv6", self.interface);
            if sysctl::read(&setting).is_some() {
                sysctl::ensure(&setting, "1")?;
            }
        }
        let index = link.index;
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let mut requests = vec![Request::Change(index.into(), up)];
        requests.extend(self.addresses.iter().map(|net| Request::AddAddress {
            index,
            address: net.addr(),
            prefix: net.prefix_len(),
        }));
        requests.extend(self.gateways.iter().map(|gateway| {
            let to = match gateway {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            Request::AddRoute(Destination { to, prefix: 0, gateway: Some(*gateway), index })
        }));
        Ok(route.apply(&requests)?)
    }
}

/// Carries either error out of the namespace's thread.
struct Failure(Error);

impl From<netlink::Error> for Failure {
    fn from(error: netlink::Error) -> Self {
        Self(failed(error))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

fn failed(error: netlink::Error) -> Error {
    Error::internal("the kernel refused a network change", error)
}

/// The host-side link of an endpoint: always the same, so it is found again after a restart.
pub(crate) fn host_link(endpoint: &EndpointSpec) -> Result<IfName> {
    let id = endpoint.id.get(..11).unwrap_or_default();
    if id.len() < 11 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::invalid(format!("invalid endpoint id {:.80?}", endpoint.id)));
    }
    IfName::new(format!("{VETH}{id}")).map_err(failed)
}

fn is_ours(name: &IfName) -> bool {
    let hex = name.as_str().strip_prefix(VETH);
    hex.is_some_and(|hex| hex.len() == 11 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// For an endpoint without an IPv4 address: locally administered, from its id.
fn mac_of_id(id: &str) -> Mac {
    let byte = |at| id.get(at..at + 2).and_then(|t| u8::from_str_radix(t, 16).ok()).unwrap_or(0);
    Mac([0x02, 0x42, byte(0), byte(2), byte(4), byte(6)])
}
