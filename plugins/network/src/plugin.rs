//! Registration, and what the daemon tells of its networks.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::info::{Info, InfoSource};
use gantry_sdk::kinds::ipam::Ipam;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::kinds::network::Network;
use gantry_sdk::kinds::networks::Networks;
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    Context, Ctx, Descriptor, Init, Need, Phase, Plugin, Provide, Registration, Result,
};
use serde_json::{Map, Value, json};

use crate::config::{Config, KEYS};
use crate::defaults::{self, Loaded};
use crate::handlers::{self, ROUTES};
use crate::store::Store;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Networks::NAME, "default"), Provide::new(Info::NAME, "network")],
    needs: &[Need::Kind(Metadata::NAME), Need::Kind(Ipam::NAME), Need::Kind(Network::NAME)],
    routes: ROUTES,
    config: KEYS,
    check_config: Config::check,
    ..Descriptor::new("network", Phase::Network)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(NetworkPlugin)) }

struct NetworkPlugin;

#[async_trait]
impl Plugin for NetworkPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let config: Config = cx.config.parse()?;
        let own = Ctx::background();
        let metadata = cx.registry.only::<Metadata>()?;
        let ipam = cx.registry.get::<Ipam>("default")?;
        let Loaded { records, outdated } = defaults::load(&own, &metadata, &ipam, &config).await?;
        let (registry, events) = (cx.registry.clone(), cx.events.clone());
        let store = Arc::new(Store::new(config, ipam, registry, events, records));
        for record in outdated {
            store.take_down(&own, &record).await;
        }
        make_in_background(cx, &store);
        cx.provide::<Networks>("default", store.clone())?;
        cx.provide::<Info>("network", Arc::new(Facts))?;
        cx.route("list", &store, handlers::list);
        cx.route("list-slash", &store, handlers::list);
        cx.route("inspect", &store, handlers::inspect);
        Ok(Init::Ready)
    }
}

/// Makes the networks while the daemon goes on starting; whoever needs one sooner waits for it.
fn make_in_background(cx: &Context, store: &Arc<Store>) {
    let store = store.clone();
    cx.tasks.spawn("networks of the host", async move {
        let own = Ctx::background();
        for entry in store.networks() {
            if let Err(error) = store.ensure_made(&own, entry).await {
                tracing::error!(error = error.chain(), "Containers cannot use this network now.");
            }
        }
    });
}

/// Rows of `/info`.
struct Facts;

#[async_trait]
impl InfoSource for Facts {
    async fn info(&self, _: &Ctx) -> Result<Map<String, Value>> {
        let is_one = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/net/{name}"))
                .is_ok_and(|text| text.trim() == "1")
        };
        let forwarding = is_one("ipv4/ip_forward");
        let mut rows = Map::new();
        rows.insert("IPv4Forwarding".into(), forwarding.into());
        rows.insert("BridgeNfIptables".into(), is_one("bridge/bridge-nf-call-iptables").into());
        rows.insert("BridgeNfIp6tables".into(), is_one("bridge/bridge-nf-call-ip6tables").into());
        rows.insert("FirewallBackend".into(), json!({"Driver": "nftables"}));
        if !forwarding {
            rows.insert("Warnings".into(), json!(["WARNING: IPv4 forwarding is disabled"]));
        }
        Ok(rows)
    }
}
