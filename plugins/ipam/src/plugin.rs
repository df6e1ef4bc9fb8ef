//! Registration, configuration and persistence.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_sdk::kinds::ipam::{Ipam, IpamDriver, Pool};
use gantry_sdk::kinds::metadata::{Change, Metadata, MetadataStore};
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, ConfigView, Context, Ctx, Descriptor, Error, Init, Labels, Need, Phase, Plugin,
    Provide, Registration, Result,
};
use gantry_sys::netlink::Route;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;

use crate::pools::{DefaultPool, Pools, Record, default_v4, default_v6, overlap};

/// Table of the metadata database: pool key → [`Record`].
const TABLE: &str = "ipam";

/// The longest key of a pool or address; ours are ids.
const KEY_LIMIT: usize = 256;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Ipam::NAME, "default")],
    needs: &[Need::Kind(Metadata::NAME)],
    config: &[ConfigKey::fixed("default-address-pools")],
    check_config,
    ..Descriptor::new("ipam.default", Phase::Ipam)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(IpamPlugin)) }

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
struct Config {
    default_address_pools: Vec<DefaultPool>,
}

fn check_config(view: &ConfigView) -> Vec<String> {
    match view.parse::<Config>() {
        Ok(config) => {
            config.default_address_pools.iter().filter_map(|pool| pool.check().err()).collect()
        }
        Err(error) => vec![error.chain()],
    }
}

struct IpamPlugin;

#[async_trait]
impl Plugin for IpamPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let config: Config = cx.config.parse()?;
        let defaults = with_both_families(config.default_address_pools, &cx.host.id);
        let metadata = cx.registry.only::<Metadata>()?;
        let driver = DefaultIpam::open(metadata, defaults).await?;
        cx.provide::<Ipam>("default", Arc::new(driver))?;
        Ok(Init::Ready)
    }
}

/// Configured pools replace the built-in ones of their family only.
fn with_both_families(mut pools: Vec<DefaultPool>, host_id: &str) -> Vec<DefaultPool> {
    let has =
        |pools: &[DefaultPool], v6| pools.iter().any(|p| v6 == matches!(p.base, IpNet::V6(_)));
    if !has(&pools, false) {
        pools.extend(default_v4());
    }
    if !has(&pools, true) {
        pools.push(default_v6(host_id));
    }
    pools
}

/// The default address manager.
pub(crate) struct DefaultIpam {
    metadata: Arc<dyn MetadataStore>,
    pools: Mutex<Pools>,
}

impl DefaultIpam {
    pub(crate) async fn open(
        metadata: Arc<dyn MetadataStore>,
        defaults: Vec<DefaultPool>,
    ) -> Result<Self> {
        let mut pools = Pools::new(defaults);
        for (key, value) in metadata.scan(&Ctx::background(), TABLE, "").await? {
            let record: Record = serde_json::from_slice(&value)
                .map_err(|e| Error::internal(format!("cannot read address pool {key}"), e))?;
            pools.restore(key, record);
        }
        Ok(Self { metadata, pools: Mutex::new(pools) })
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl IpamDriver for DefaultIpam {
    async fn request_pool(
        &self,
        cx: &Ctx,
        key: &str,
        want: Option<IpNet>,
        range: Option<IpNet>,
        v6: bool,
        options: &Labels,
    ) -> Result<Pool> {
        check_key(key)?;
        if let Some(option) = options.keys().next() {
            return Err(Error::invalid(format!(
                "the default ipam driver has no option {option:.80}"
            )));
        }
        let known = self.pools().get(key).is_some();
        let routed = if want.is_none() && !known { host_subnets().await? } else { Vec::new() };
        let on_host = |net: &IpNet| routed.iter().any(|other| overlap(other, net));
        let record = self.pools().request(key, want, range, v6, on_host)?;
        if !known {
            let put = Change::put_json(TABLE, key, &record)?;
            if let Err(error) = self.metadata.commit(cx, vec![put]).await {
                self.pools().release(key);
                return Err(error);
            }
        }
        Ok(Pool { id: key.to_owned(), subnet: record.subnet })
    }

    async fn release_pool(&self, cx: &Ctx, id: &str) -> Result<()> {
        if self.pools().get(id).is_none() {
            return Ok(());
        }
        // First the disk: a pool that comes back after a crash is better than one given twice.
        self.metadata.commit(cx, vec![Change::delete(TABLE, id)]).await?;
        self.pools().release(id);
        Ok(())
    }

    async fn request_address(
        &self,
        _: &Ctx,
        key: &str,
        pool: &str,
        want: Option<IpAddr>,
    ) -> Result<IpAddr> {
        check_key(key)?;
        self.pools().address(pool, key, want)
    }

    async fn release_address(&self, _: &Ctx, pool: &str, address: IpAddr) -> Result<()> {
        self.pools().give_back(pool, address);
        Ok(())
    }
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > KEY_LIMIT {
        return Err(Error::invalid("invalid key of an address pool or address"));
    }
    Ok(())
}

/// The subnets that the host routes somewhere already, the default route left out.
async fn host_subnets() -> Result<Vec<IpNet>> {
    const MAIN_TABLE: u8 = 254;
    tokio::task::spawn_blocking(|| {
        let routes = Route::open().and_then(|mut route| route.routes())?;
        let nets = routes.iter().filter(|r| r.table == MAIN_TABLE && r.prefix > 0);
        Ok::<_, gantry_sys::netlink::Error>(
            nets.filter_map(|r| IpNet::new(r.to, r.prefix).ok()).collect(),
        )
    })
    .await?
    .map_err(|e| Error::internal("cannot find a free subnet", e))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

    #[async_trait]
    impl MetadataStore for Memory {
        async fn get(&self, _: &Ctx, _: &'static str, key: &str) -> Result<Option<Vec<u8>>> {
            Ok(self.0.lock().unwrap().get(key).cloned())
        }

        async fn scan(&self, _: &Ctx, _: &'static str, _: &str) -> Result<Vec<(String, Vec<u8>)>> {
            Ok(self.0.lock().unwrap().clone().into_iter().collect())
        }

        async fn commit(&self, _: &Ctx, changes: Vec<Change>) -> Result<()> {
            let mut map = self.0.lock().unwrap();
            for change in changes {
                match change {
                    Change::Put { key, value, .. } => drop(map.insert(key, value)),
                    Change::Delete { key, .. } => drop(map.remove(&key)),
                    Change::Expect { .. } => {}
                }
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn pools_outlive_the_daemon_and_addresses_are_asked_for_again() {
        let metadata = Arc::new(Memory::default());
        let cx = Ctx::background();
        let want = Some("10.77.0.0/16".parse().unwrap());
        let open = || DefaultIpam::open(metadata.clone(), default_v4());
        let ipam = open().await.unwrap();
        let pool = ipam.request_pool(&cx, "n", want, None, false, &Labels::new()).await.unwrap();
        let address = ipam.request_address(&cx, "c", &pool.id, None).await.unwrap();

        let again = open().await.unwrap();
        let same = again.request_pool(&cx, "n", None, None, false, &Labels::new()).await.unwrap();
        assert_eq!(same, pool);
        assert_eq!(again.request_address(&cx, "c", "n", Some(address)).await.unwrap(), address);
        again.release_pool(&cx, "n").await.unwrap();
        again.release_pool(&cx, "n").await.unwrap();
        assert!(open().await.unwrap().pools().get("n").is_none());
    }

    #[test]
    fn configured_pools_are_checked() {
        let view = |value: serde_json::Value| {
            let mut map = serde_json::Map::new();
            map.insert("default-address-pools".into(), value);
            check_config(&ConfigView::new(map))
        };
        assert!(view(serde_json::json!([{"base": "10.0.0.0/8", "size": 24}])).is_empty());
        assert_eq!(view(serde_json::json!([{"base": "10.0.0.0/8", "size": 4}])).len(), 1);
        assert_eq!(view(serde_json::json!([{"base": "10.0.0.0/8", "size": 32}])).len(), 1);
        assert_eq!(view(serde_json::json!([{"base": "nonsense", "size": 24}])).len(), 1);
        assert_eq!(view(serde_json::json!([{"base": "10.0.0.0/8", "sise": 24}])).len(), 1);
        assert!(check_config(&ConfigView::default()).is_empty());
    }

    #[test]
    fn one_family_configured_leaves_the_other() {
        let own = DefaultPool { base: "10.0.0.0/8".parse().unwrap(), size: 24 };
        let pools = with_both_families(vec![own], "host");
        assert_eq!(pools.len(), 2);
        assert_eq!(pools[0], own);
    }
}
