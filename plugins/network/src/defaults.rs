//! The three networks that are always there: `bridge`, `host`, `none`.

use std::net::IpAddr;
use std::sync::Arc;

use gantry_sdk::id::NetworkId;
use gantry_sdk::kinds::ipam::IpamDriver;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::{Ctx, Error, Labels, Result};
use gantry_sys::netlink::{self, IfName, Route};
use ipnet::IpNet;

use crate::config::{Config, DEFAULT_LINK};
use crate::record::{Record, Subnet};

/// Table of the metadata database: network id → [`Record`].
pub(crate) const TABLE: &str = "networks";

/// The networks of this daemon, and those whose form has changed since the last run.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) records: Vec<Record>,
    /// As they were: to be taken down before they are made again.
    pub(crate) outdated: Vec<Record>,
}

/// Reads the networks and makes the default ones agree with the configuration.
pub(crate) async fn load(
    cx: &Ctx,
    metadata: &Arc<dyn MetadataStore>,
    ipam: &Arc<dyn IpamDriver>,
    config: &Config,
) -> Result<Loaded> {
    let mut records = Vec::new();
    for (key, value) in metadata.scan(cx, TABLE, "").await? {
        let record: Record = serde_json::from_slice(&value)
            .map_err(|e| Error::internal(format!("cannot read network {key}"), e))?;
        records.push(record);
    }
    let mut wanted = vec![plain("host", "host"), plain("none", "null")];
    let known = records.iter().find(|r| r.name == "bridge").cloned();
    if config.has_bridge() {
        wanted.push(bridge(cx, ipam, config, known.as_ref()).await?);
    }
    let mut loaded = Loaded { records, outdated: Vec::new() };
    let mut changes = Vec::new();
    for record in wanted {
        loaded.agree(record, &mut changes)?;
    }
    if let Some(gone) = known.filter(|_| !config.has_bridge()) {
        give_pools_back(cx, ipam, &gone).await?;
        loaded.records.retain(|r| r.id != gone.id);
        changes.push(Change::delete(TABLE, gone.id.as_str()));
        loaded.outdated.push(gone);
    }
    if !changes.is_empty() {
        metadata.commit(cx, changes).await?;
    }
    Ok(loaded)
}

impl Loaded {
    /// Puts `wanted` in the place of the network of its name, whose identity stays.
    fn agree(&mut self, mut wanted: Record, changes: &mut Vec<Change>) -> Result<()> {
        let place = self.records.iter().position(|r| r.name == wanted.name);
        if let Some(at) = place {
            let had = &self.records[at];
            wanted.id = had.id.clone();
            wanted.created.clone_from(&had.created);
            if *had == wanted {
                return Ok(());
            }
            self.outdated.push(self.records.remove(at));
        }
        changes.push(Change::put_json(TABLE, wanted.id.as_str(), &wanted)?);
        self.records.push(wanted);
        Ok(())
    }
}

fn plain(name: &str, driver: &str) -> Record {
    Record {
        id: NetworkId::random(),
        name: name.into(),
        driver: driver.into(),
        created: jiff::Timestamp::now().to_string(),
        internal: false,
        labels: Labels::new(),
        options: Labels::new(),
        subnets: Vec::new(),
    }
}

/// The default bridge as the configuration wants it.
async fn bridge(
    cx: &Ctx,
    ipam: &Arc<dyn IpamDriver>,
    config: &Config,
    known: Option<&Record>,
) -> Result<Record> {
    let mut record = plain("bridge", "bridge");
    if let Some(known) = known {
        record.id = known.id.clone();
    }
    let on_link = addresses_of_link(config.link()).await?;
    if config.link() != DEFAULT_LINK && on_link.is_none() {
        return Err(Error::invalid(format!(
            "bridge device with non default name {} must be created manually",
            config.link()
        )));
    }
    let on_link = on_link.unwrap_or_default();
    for v6 in [false, true] {
        if v6 && !config.ipv6 {
            continue;
        }
        let (bip, range) =
            if v6 { (config.bip6, config.fixed_cidr_v6) } else { (config.bip, config.fixed_cidr) };
        let had = known.and_then(|k| k.subnets.iter().find(|s| s.is_v6() == v6));
        let present = on_link.iter().find(|net| net.addr().is_ipv6() == v6).copied();
        let foreign = config.link() != DEFAULT_LINK;
        let wish = Wish::of(bip, range, had, present, foreign);
        record.subnets.push(wish.grant(cx, ipam, &record.pool(v6), v6).await?);
    }
    if !config.ipv6 && known.is_some_and(|k| k.subnets.iter().any(Subnet::is_v6)) {
        ipam.release_pool(cx, &record.pool(true)).await?;
    }
    record.options = options(config);
    Ok(record)
}

fn options(config: &Config) -> Labels {
    let unspecified = IpAddr::from([0, 0, 0, 0]);
    let option = |name: &str, value: String| (format!("com.docker.network.{name}"), value);
    [
        option("bridge.default_bridge", "true".into()),
        option("bridge.enable_icc", config.icc.to_string()),
        option("bridge.enable_ip_masquerade", config.ip_masq.to_string()),
        option("bridge.host_binding_ipv4", config.ip.unwrap_or(unspecified).to_string()),
        option("bridge.name", config.link().to_owned()),
        option("driver.mtu", config.mtu.to_string()),
    ]
    .into()
}

/// What one family of the default bridge should be, as far as anybody has said.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    subnet: Option<IpNet>,
    range: Option<IpNet>,
    gateway: Option<IpAddr>,
}

impl Wish {
    /// The operator's word, then the operator's link, then what it was, then our own old link.
    fn of(
        bip: Option<IpNet>,
        range: Option<IpNet>,
        had: Option<&Subnet>,
        present: Option<IpNet>,
        foreign: bool,
    ) -> Self {
        let address =
            |net: IpNet| Self { subnet: Some(net.trunc()), range, gateway: Some(net.addr()) };
        let range_is_subnet =
            || range.map(|r| Self { subnet: Some(r.trunc()), range, gateway: None });
        let before = || {
            let had = had.filter(|had| range.is_none_or(|r| had.subnet.contains(&r)))?;
            Some(Self { subnet: Some(had.subnet), range, gateway: had.gateway })
        };
        let link = || present.filter(|p| range.is_none_or(|r| p.trunc().contains(&r))).map(address);
        bip.map(address)
            .or_else(|| link().filter(|_| foreign))
            .or_else(before)
            .or_else(link)
            .or_else(range_is_subnet)
            .unwrap_or(Self { subnet: None, range: None, gateway: None })
    }

    /// Asks the address manager for it.
    async fn grant(
        self,
        cx: &Ctx,
        ipam: &Arc<dyn IpamDriver>,
        key: &str,
        v6: bool,
    ) -> Result<Subnet> {
        let none = Labels::new();
        let range = self.range.map(|r| r.trunc());
        let asked = ipam.request_pool(cx, key, self.subnet, range, v6, &none).await;
        let pool = match asked {
            // The pool of this key is another one: the configuration has changed.
            Err(error) if error.kind() == gantry_sdk::ErrorKind::Conflict => {
                ipam.release_pool(cx, key).await?;
                ipam.request_pool(cx, key, self.subnet, range, v6, &none).await
            }
            asked => asked,
        };
        let pool = pool.map_err(|e| e.context("the default bridge network has no subnet"))?;
        let gateway = ipam
            .request_address(cx, "gateway", &pool.id, self.gateway)
            .await
            .map_err(|e| e.context("the default bridge network has no gateway"))?;
        Ok(Subnet { subnet: pool.subnet, range, gateway: Some(gateway) })
    }
}

async fn give_pools_back(cx: &Ctx, ipam: &Arc<dyn IpamDriver>, record: &Record) -> Result<()> {
    for subnet in &record.subnets {
        ipam.release_pool(cx, &record.pool(subnet.is_v6())).await?;
    }
    Ok(())
}

/// The global addresses of a link; `None` if there is no such link.
async fn addresses_of_link(link: &str) -> Result<Option<Vec<IpNet>>> {
    const UNIVERSE: u8 = 0;
    let name = IfName::new(link).map_err(|e| Error::invalid("invalid bridge").caused_by(e))?;
    let read = move || {
        let mut route = Route::open()?;
        let Some(link) = route.link(&name)? else { return Ok(None) };
        let all = route.addresses()?;
        let own = all.iter().filter(|a| a.index == link.index && a.scope == UNIVERSE);
        Ok(Some(own.filter_map(|a| IpNet::new(a.address, a.prefix).ok()).collect()))
    };
    tokio::task::spawn_blocking(read)
        .await?
        .map_err(|e: netlink::Error| Error::internal("cannot look at the default bridge", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Option<IpNet> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_operator_s_word_comes_first() {
        let had = Subnet {
            subnet: "172.17.0.0/16".parse().unwrap(),
            range: None,
            gateway: Some("172.17.0.1".parse().unwrap()),
        };
        let had = Some(&had);
        let bip = net("192.168.5.1/24");
        let link = net("10.8.0.1/16");
        let within = net("172.17.4.0/24");
        let cases = [
            ("bip", Wish::of(bip, None, had, link, false), net("192.168.5.0/24"), "192.168.5.1"),
            (
                "the operator's link",
                Wish::of(None, None, had, link, true),
                net("10.8.0.0/16"),
                "10.8.0.1",
            ),
            (
                "as it was",
                Wish::of(None, None, had, link, false),
                net("172.17.0.0/16"),
                "172.17.0.1",
            ),
            (
                "with a range",
                Wish::of(None, within, had, link, false),
                net("172.17.0.0/16"),
                "172.17.0.1",
            ),
            (
                "our old link",
                Wish::of(None, None, None, link, false),
                net("10.8.0.0/16"),
                "10.8.0.1",
            ),
        ];
        for (what, wish, subnet, gateway) in cases {
            assert_eq!((wish.subnet, wish.gateway), (subnet, gateway.parse().ok()), "{what}");
        }
        let elsewhere = Wish::of(None, net("10.9.0.0/24"), had, None, false);
        assert_eq!((elsewhere.subnet, elsewhere.gateway), (net("10.9.0.0/24"), None));
        assert_eq!(Wish::of(None, None, None, None, false).subnet, None);
    }
}
