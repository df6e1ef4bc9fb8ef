//! Pools and their addresses: the pure part, without disk and without host.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gantry_sdk::{Error, ErrorKind, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::set::OffsetSet;

/// Where subnets come from when nobody names one: `base` cut into subnets of `size` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DefaultPool {
    pub(crate) base: IpNet,
    pub(crate) size: u8,
}

impl DefaultPool {
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { base, size } = self;
        if *size < base.prefix_len() || *size > base.max_prefix_len().saturating_sub(2) {
            return Err(format!("default-address-pools: size {size} does not fit base {base}"));
        }
        Ok(())
    }
}

/// The reference engine's default pools for IPv4.
pub(crate) fn default_v4() -> Vec<DefaultPool> {
    let net = |a, b, prefix, size| DefaultPool {
        base: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix)),
        size,
    };
    vec![
        net(172, 17, 16, 16),
        net(172, 18, 16, 16),
        net(172, 19, 16, 16),
        net(172, 20, 14, 16),
        net(172, 24, 14, 16),
        net(172, 28, 14, 16),
        net(192, 168, 16, 20),
    ]
}

/// A unique local /48, always the same for one host. Source: RFC 4193.
pub(crate) fn default_v6(host_id: &str) -> DefaultPool {
    // FNV-1a: stable for ever and good enough to keep two hosts apart.
    let hash = host_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    let base = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    DefaultPool { base: IpNet::V6(Ipv6Net::new_assert(base, 48)), size: 64 }
}

/// What is kept on disk of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) subnet: IpNet,
    pub(crate) range: Option<IpNet>,
}

#[derive(Debug)]
struct State {
    record: Record,
    used: OffsetSet,
    by_key: HashMap<String, IpAddr>,
    /// Where the search goes on, so that an address just given back rests for a while: neighbours
    /// keep its old owner's hardware address in their caches.
    next: u128,
}

/// All pools in use.
#[derive(Debug)]
pub(crate) struct Pools {
    defaults: Vec<DefaultPool>,
    pools: BTreeMap<String, State>,
}

impl Pools {
    pub(crate) fn new(defaults: Vec<DefaultPool>) -> Self {
        Self { defaults, pools: BTreeMap::new() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Record> {
        self.pools.get(key).map(|state| state.record)
    }

    /// Registers a pool without looking at others; for what was on disk.
    pub(crate) fn restore(&mut self, key: String, record: Record) {
        let state =
            State { record, used: reserved(record.subnet), by_key: HashMap::new(), next: 0 };
        self.pools.insert(key, state);
    }

    /// The pool `key`, made if it is not there. `on_host` tells whether the host routes a subnet
    /// already; it is asked only about default pools, as a named subnet is the user's decision.
    pub(crate) fn request(
        &mut self,
        key: &str,
        want: Option<IpNet>,
        range: Option<IpNet>,
        v6: bool,
        on_host: impl Fn(&IpNet) -> bool,
    ) -> Result<Record> {
        let want = want.map(|net| net.trunc());
        if let Some(had) = self.get(key) {
            if want.is_some_and(|net| net != had.subnet) || range != had.range {
                return Err(Error::conflict(format!("address pool {key} is {}", had.subnet)));
            }
            return Ok(had);
        }
        let subnet = match want {
            Some(net) => self.named(net, v6)?,
            None => self.next_default(v6, on_host)?,
        };
        if let Some(range) = range.filter(|range| !subnet.contains(range)) {
            return Err(Error::invalid(format!("address range {range} is not within {subnet}")));
        }
        let record = Record { subnet, range };
        self.restore(key.to_owned(), record);
        Ok(record)
    }

    pub(crate) fn release(&mut self, key: &str) -> Option<Record> {
        self.pools.remove(key).map(|state| state.record)
    }

    fn overlaps(&self, net: &IpNet) -> Option<IpNet> {
        self.pools.values().map(|state| state.record.subnet).find(|other| overlap(other, net))
    }

    fn named(&self, net: IpNet, v6: bool) -> Result<IpNet> {
        if v6 != matches!(net, IpNet::V6(_)) {
            return Err(Error::invalid(format!("subnet {net} is of the wrong address family")));
        }
        if net.prefix_len() == 0 || net.prefix_len() > net.max_prefix_len() - 1 {
            return Err(Error::invalid(format!("subnet {net} has no room for addresses")));
        }
        match self.overlaps(&net) {
            Some(other) => Err(Error::conflict(format!(
                "Pool overlaps with other one on this address space: {net} and {other}"
            ))),
            None => Ok(net),
        }
    }

    fn next_default(&self, v6: bool, on_host: impl Fn(&IpNet) -> bool) -> Result<IpNet> {
        self.defaults
            .iter()
            .filter(|pool| v6 == matches!(pool.base, IpNet::V6(_)))
            .filter_map(|pool| pool.base.subnets(pool.size).ok())
            .flatten()
            .find(|net| self.overlaps(net).is_none() && !on_host(net))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NoSpace,
                    "all predefined address pools have been fully subnetted",
                )
            })
    }

    /// The address of `key`, given now if it has none.
    pub(crate) fn address(
        &mut self,
        pool: &str,
        key: &str,
        want: Option<IpAddr>,
    ) -> Result<IpAddr> {
        let state = self
            .pools
            .get_mut(pool)
            .ok_or_else(|| Error::not_found(format!("address pool {pool} not found")))?;
        if let Some(had) = state.by_key.get(key) {
            return match want {
                Some(other) if other != *had => {
                    Err(Error::conflict(format!("{key} has address {had}, not {other}")))
                }
                _ => Ok(*had),
            };
        }
        let address = match want {
            Some(address) => state.take(address)?,
            None => state.take_next()?,
        };
        state.by_key.insert(key.to_owned(), address);
        Ok(address)
    }

    pub(crate) fn give_back(&mut self, pool: &str, address: IpAddr) {
        let Some(state) = self.pools.get_mut(pool) else { return };
        let before = state.by_key.len();
        state.by_key.retain(|_, had| *had != address);
        // Without an owner it is a reserved one, or free.
        if state.by_key.len() < before
            && let Some(offset) = offset(state.record.subnet, address)
        {
            state.used.remove(offset);
        }
    }
}

impl State {
    fn take(&mut self, address: IpAddr) -> Result<IpAddr> {
        let subnet = self.record.subnet;
        let offset = offset(subnet, address).ok_or_else(|| {
            Error::invalid(format!("address {address} does not belong to subnet {subnet}"))
        })?;
        if self.used.insert(offset) {
            Ok(address)
        } else {
            Err(Error::conflict(format!("Address already in use: {address}")))
        }
    }

    fn take_next(&mut self) -> Result<IpAddr> {
        let subnet = self.record.subnet;
        let within = self.record.range.unwrap_or(subnet);
        let first = offset(subnet, within.network()).unwrap_or_default();
        let last = offset(subnet, within.broadcast()).unwrap_or_default();
        let from = self.next.clamp(first, last);
        let found = self
            .used
            .first_free(from, last)
            .or_else(|| self.used.first_free(first, from))
            .ok_or_else(|| {
                Error::new(ErrorKind::NoSpace, format!("no available addresses in {within}"))
            })?;
        self.used.insert(found);
        self.next = if found == last { first } else { found + 1 };
        Ok(at(subnet, found))
    }
}

/// The addresses that no host may have: network and broadcast, or the routers' anycast.
fn reserved(subnet: IpNet) -> OffsetSet {
    let mut used = OffsetSet::default();
    let last = offset(subnet, subnet.broadcast()).unwrap_or_default();
    if last > 1 {
        used.insert(0);
        if matches!(subnet, IpNet::V4(_)) {
            used.insert(last);
        }
    }
    used
}

/// Whether two subnets share addresses.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn offset(subnet: IpNet, address: IpAddr) -> Option<u128> {
    match (subnet.network(), address) {
        _ if !subnet.contains(&address) => None,
        (IpAddr::V4(first), IpAddr::V4(a)) => Some(u128::from(a.to_bits() - first.to_bits())),
        (IpAddr::V6(first), IpAddr::V6(a)) => Some(a.to_bits() - first.to_bits()),
        _ => None,
    }
}

/// The address at `offset`, which came from [`offset`] of the same subnet.
fn at(subnet: IpNet, offset: u128) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(first) => {
            let low = u32::try_from(offset).unwrap_or(u32::MAX);
            Ipv4Addr::from_bits(first.to_bits().saturating_add(low)).into()
        }
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().saturating_add(offset)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pools() -> Pools {
        let mut defaults = default_v4();
        defaults.push(default_v6("host"));
        Pools::new(defaults)
    }

    fn pool(subnet: &str, range: Option<&str>) -> Pools {
        let mut pools = pools();
        pools.request("p", Some(net(subnet)), range.map(net), false, |_| false).unwrap();
        pools
    }

    #[test]
    fn default_pools_go_in_order_around_what_is_taken() {
        let mut pools = pools();
        let mut next = |key: &str, v6| {
            let host = net("172.18.5.0/24");
            pools.request(key, None, None, v6, |n| overlap(n, &host)).map(|r| r.subnet.to_string())
        };
        assert_eq!(next("a", false).unwrap(), "172.17.0.0/16");
        assert_eq!(next("b", false).unwrap(), "172.19.0.0/16", "172.18 is routed by the host");
        assert_eq!(next("a", false).unwrap(), "172.17.0.0/16", "the same key, the same pool");
        for n in 0..28 {
            next(&format!("c{n}"), false).unwrap();
        }
        let error = next("d", false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(next("six", true).unwrap().starts_with("fd"));
    }

    #[test]
    fn a_named_subnet_must_be_free_and_sensible() {
        let cases = [
            ("172.17.0.0/24", false, ErrorKind::Conflict),
            ("172.16.0.0/12", false, ErrorKind::Conflict),
            ("0.0.0.0/0", false, ErrorKind::InvalidArgument),
            ("10.0.0.1/32", false, ErrorKind::InvalidArgument),
            ("fd00::/64", false, ErrorKind::InvalidArgument),
            ("10.0.0.0/24", true, ErrorKind::InvalidArgument),
        ];
        for (subnet, v6, kind) in cases {
            let mut pools = pools();
            pools.request("first", None, None, false, |_| false).unwrap();
            let result = pools.request("p", Some(net(subnet)), None, v6, |_| false);
            assert_eq!(result.unwrap_err().kind(), kind, "{subnet}");
        }
        let range = Some(net("10.1.0.0/24"));
        let result = pools().request("p", Some(net("10.0.0.0/24")), range, false, |_| false);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn an_address_given_back_rests() {
        let mut pools = pool("10.0.0.0/29", None);
        let mut take = |key: &str| pools.address("p", key, None).unwrap().to_string();
        assert_eq!((take("gw").as_str(), take("a").as_str()), ("10.0.0.1", "10.0.0.2"));
        assert_eq!(take("a"), "10.0.0.2", "the same key, the same address");
        pools.give_back("p", "10.0.0.2".parse().unwrap());
        let mut take = |key: &str| pools.address("p", key, None);
        for expected in ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"] {
            assert_eq!(take(expected).unwrap().to_string(), expected);
        }
        assert_eq!(take("more").unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn ranges_bound_what_is_given_but_not_what_is_asked_for() {
        let mut pools = pool("10.0.0.0/24", Some("10.0.0.128/30"));
        let given: Vec<_> =
            (0..4).map(|n| pools.address("p", &n.to_string(), None).unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.128", "10.0.0.129", "10.0.0.130", "10.0.0.131"]);
        assert_eq!(pools.address("p", "5", None).unwrap_err().kind(), ErrorKind::NoSpace);
        let cases = [
            ("10.0.0.1", None),
            ("10.0.0.130", Some(ErrorKind::Conflict)),
            ("10.0.0.0", Some(ErrorKind::Conflict)),
            ("10.0.0.255", Some(ErrorKind::Conflict)),
            ("10.0.1.1", Some(ErrorKind::InvalidArgument)),
            ("fd00::1", Some(ErrorKind::InvalidArgument)),
        ];
        for (address, refusal) in cases {
            let result = pools.address("p", address, Some(address.parse().unwrap()));
            assert_eq!(result.err().map(|e| e.kind()), refusal, "{address}");
        }
        pools.give_back("p", "10.0.0.0".parse().unwrap());
        let network = pools.address("p", "x", Some("10.0.0.0".parse().unwrap()));
        assert!(network.is_err(), "reserved addresses cannot be given back");
    }

    #[test]
    fn large_ipv6_subnets_cost_nothing() {
        let mut pools = pools();
        pools.request("p", Some(net("fd00::/64")), None, true, |_| false).unwrap();
        assert_eq!(pools.address("p", "a", None).unwrap().to_string(), "fd00::1");
        let last: IpAddr = "fd00::ffff:ffff:ffff:ffff".parse().unwrap();
        assert_eq!(pools.address("p", "b", Some(last)).unwrap(), last);
    }

    proptest! {
        /// No two owners ever hold the same address, and all are inside the subnet.
        #[test]
        fn addresses_are_never_shared(steps in vec((any::<bool>(), 0..20_u8), 0..200)) {
            let mut pools = pool("10.9.0.0/28", None);
            let mut held = BTreeMap::<u8, IpAddr>::new();
            for (take, who) in steps {
                if take {
                    match pools.address("p", &who.to_string(), None) {
                        Ok(address) => {
                            prop_assert!(net("10.9.0.0/28").contains(&address));
                            prop_assert!(held.iter().all(|(o, a)| *o == who || *a != address));
                            held.insert(who, address);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 14, "full before it said so"),
                    }
                } else if let Some(address) = held.remove(&who) {
                    pools.give_back("p", address);
                }
            }
        }
    }
}
