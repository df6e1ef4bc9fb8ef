//! The firewall's elements: what a network and what an endpoint put there.

use std::collections::HashSet;
use std::net::IpAddr;

use gantry_sdk::kinds::network::{PortMapping, Protocol};
use gantry_sdk::{Error, Result};
use gantry_sys::netlink::Conntrack;
use gantry_sys::nft::{self, Batch, Key, Nft};
use ipnet::IpNet;

use crate::rules::{
    BRIDGES, CONNECTED, HAIRPIN, INTERNAL, MASQUERADED, PUBLISHED_ANYWHERE, PUBLISHED_ON_ADDRESS,
    TABLE, Variant,
};
use crate::settings::{Config, Settings};

const NO_FIREWALL: &str = "the bridge driver has no firewall (it needs none with \"iptables\" and \
    \"ip6tables\" set to false)";

/// One redirection as an element of a map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Redirection {
    map: &'static str,
    key: Key,
    value: Key,
}

/// The firewall of the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Firewall {
    /// None: no rules are wanted, or the kernel has no firewall.
    nft: Option<Nft>,
    /// Why the kernel has none. Told to whoever needs a bridge; everybody else can do without.
    missing: Option<String>,
    v4: bool,
    v6: bool,
}

impl Firewall {
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let (v4, v6) = (config.iptables, config.ip6tables);
        let mut nft = match Nft::open() {
            Ok(nft) => nft,
            Err(error) => {
                let missing = (v4 || v6).then(|| error.to_string());
                return Ok(Self { nft: None, missing, v4, v6 });
            }
        };
        if v4 || v6 {
            return Ok(Self { nft: Some(nft), missing: None, v4, v6 });
        }
        // Rules of an earlier run must not outlive the decision to have none.
        if nft.table_comment(TABLE).map_err(failed)?.is_some() {
            let mut batch = Batch::new(TABLE);
            batch.delete_table();
            nft.commit(&batch).map_err(failed)?;
        }
        Ok(Self { nft: None, missing: None, v4, v6 })
    }

    /// Loads the rules unless they are there. Returns whether the table is new, hence empty.
    pub(crate) fn ensure_rules(&mut self, drop_others: bool) -> Result<bool> {
        if let Some(why) = &self.missing {
            return Err(Error::unavailable(format!("{NO_FIREWALL}: {why}")));
        }
        let Some(nft) = &mut self.nft else { return Ok(false) };
        let found = nft.table_comment(TABLE).map_err(failed)?;
        let variant = |drop_others| Variant { v4: self.v4, v6: self.v6, drop_others };
        // Once forwarding is on nobody can tell who turned it on: a table that drops keeps dropping.
        let drop_others = drop_others || found.as_ref() == Some(&variant(true).comment());
        if found.as_ref() == Some(&variant(drop_others).comment()) {
            return Ok(false);
        }
        nft::load(&variant(drop_others).text())
            .map_err(|e| Error::unavailable(NO_FIREWALL).caused_by(e))?;
        Ok(true)
    }

    pub(crate) fn add_network(&mut self, settings: &Settings) -> Result<()> {
        let mut batch = Batch::new(TABLE);
        self.network_elements(settings, true, &mut batch);
        self.commit(&batch)
    }

    pub(crate) fn remove_network(&mut self, settings: &Settings) -> Result<()> {
        let mut batch = Batch::new(TABLE);
        self.network_elements(settings, false, &mut batch);
        self.withdraw(&batch)
    }

    /// What `ports` of a container with `addresses` need.
    pub(crate) fn redirections(
        &self,
        ports: &[PortMapping],
        addresses: &[IpNet],
    ) -> Vec<Redirection> {
        ports.iter().filter_map(|port| self.redirection(port, addresses)).collect()
    }

    fn redirection(&self, port: &PortMapping, addresses: &[IpNet]) -> Option<Redirection> {
        let v6 = port.host_ip.is_ipv6();
        let wanted = if v6 { self.v6 } else { self.v4 };
        if !wanted || self.nft.is_none() || port.host_ip.is_loopback() {
            return None; // the proxy's
        }
        let target = addresses.iter().map(IpNet::addr).find(|a| a.is_ipv6() == v6)?;
        let family = usize::from(v6);
        let (map, key) = if port.host_ip.is_unspecified() {
            (PUBLISHED_ANYWHERE[family], Key::new())
        } else {
            (PUBLISHED_ON_ADDRESS[family], Key::new().ip(port.host_ip))
        };
        Some(Redirection {
            map,
            key: key.protocol(number(port.protocol)).port(port.host_port),
            value: Key::new().ip(target).port(port.container_port),
        })
    }

    pub(crate) fn publish(&mut self, redirections: &[Redirection]) -> Result<()> {
        let mut batch = Batch::new(TABLE);
        for r in redirections {
            batch.add_entry(r.map, r.key.clone(), r.value.clone());
        }
        self.commit(&batch)
    }

    pub(crate) fn unpublish(&mut self, redirections: &[Redirection]) -> Result<()> {
        let mut batch = Batch::new(TABLE);
        for r in redirections {
            batch.delete(r.map, r.key.clone());
        }
        self.withdraw(&batch)
    }

    /// Removes every redirection to an address of `subnets` that is not in `wanted`; returns how
    /// many there were.
    pub(crate) fn keep_only(
        &mut self,
        wanted: &HashSet<Redirection>,
        subnets: &[IpNet],
    ) -> Result<usize> {
        let Some(nft) = &mut self.nft else { return Ok(0) };
        let mut batch = Batch::new(TABLE);
        for map in [PUBLISHED_ANYWHERE, PUBLISHED_ON_ADDRESS].concat() {
            for element in nft.elements(TABLE, map).map_err(failed)? {
                let Some(value) = element.value else { continue };
                let ours = target(&value).is_some_and(|a| subnets.iter().any(|n| n.contains(&a)));
                let redirection = Redirection { map, key: element.key, value };
                if ours && !wanted.contains(&redirection) {
                    batch.delete(map, redirection.key);
                }
            }
        }
        let count = batch.len();
        self.withdraw(&batch)?;
        Ok(count)
    }

    /// Whether a refused commit means that somebody removed the rules.
    pub(crate) fn rules_are_gone(&mut self) -> bool {
        self.nft.as_mut().is_some_and(|nft| matches!(nft.table_comment(TABLE), Ok(None)))
    }

    fn commit(&mut self, batch: &Batch) -> Result<()> {
        match &mut self.nft {
            Some(nft) => nft.commit(batch).map_err(failed),
            None => Ok(()),
        }
    }

    fn withdraw(&mut self, batch: &Batch) -> Result<()> {
        match &mut self.nft {
            Some(nft) => nft.commit_lenient(batch).map_err(failed),
            None => Ok(()),
        }
    }

    fn network_elements(&self, settings: &Settings, add: bool, batch: &mut Batch) {
        let bridge = || Key::new().ifname(&settings.bridge);
        let mut single = |set, key| if add { batch.add(set, key) } else { batch.delete(set, key) };
        single(BRIDGES, bridge());
        if settings.internal {
            single(INTERNAL, bridge());
        }
        if settings.icc {
            single(CONNECTED, bridge().ifname(&settings.bridge));
        }
        for subnet in &settings.subnets {
            let family = usize::from(subnet.addr().is_ipv6());
            let (first, last) = (subnet.network(), subnet.broadcast());
            let (low, high) = (bridge().ip(first), bridge().ip(last));
            if add {
                batch.add_range(HAIRPIN[family], low, high);
            } else {
                batch.delete_range(HAIRPIN[family], low, high);
            }
            if settings.masquerade && !settings.internal {
                let behind = next(last).map(|address| Key::new().ip(address));
                let first = Key::new().ip(first);
                if add {
                    batch.add_interval(MASQUERADED[family], first, behind);
                } else {
                    batch.delete_interval(MASQUERADED[family], first, behind);
                }
            }
        }
    }
}

/// Makes the kernel ask the rules again about UDP clients that go on sending to `ports`: of a
/// container with `addresses` that has come or that goes.
///
/// Rules are asked once per connection, and UDP's last as long as somebody sends. A kernel before
/// 5.8 cannot; its clients wait until they have been silent for half a minute.
pub(crate) fn forget_clients(ports: &[PortMapping], addresses: &[IpNet]) {
    let udp = ports.iter().filter(|p| p.protocol == Protocol::Udp);
    if udp.clone().next().is_none() {
        return;
    }
    let number = number(Protocol::Udp);
    let forgotten = Conntrack::open().and_then(|mut conntrack| {
        for net in addresses {
            conntrack.forget_answered_by(number, net.addr())?;
        }
        udp.clone().try_for_each(|port| {
            conntrack.forget_made_to(number, port.host_port, port.host_ip.is_ipv6())
        })
    });
    if let Err(error) = forgotten {
        tracing::debug!(%error, "UDP clients may be led astray until they pause.");
    }
}

fn failed(error: nft::Error) -> Error {
    Error::internal("the firewall did not take a change", error)
}

/// Source: IANA, *Protocol Numbers*.
pub(crate) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// The address in a map's value: address, then the port in four bytes.
fn target(value: &Key) -> Option<IpAddr> {
    let bytes = value.as_bytes();
    match bytes.len() {
        8 => <[u8; 4]>::try_from(&bytes[..4]).ok().map(IpAddr::from),
        20 => <[u8; 16]>::try_from(&bytes[..16]).ok().map(IpAddr::from),
        _ => None,
    }
}
