//! Registration.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::network::Network;
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    ConfigKey, Context, Descriptor, Init, Phase, Plugin, Provide, Registration, Result,
};

use crate::driver::Bridge;
use crate::settings::Config;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Network::NAME, "bridge")],
    config: &[
        ConfigKey::fixed("iptables"),
        ConfigKey::fixed("ip6tables"),
        ConfigKey::fixed("ip-forward"),
        ConfigKey::fixed("ip-forward-no-drop"),
        ConfigKey::fixed("userland-proxy"),
        ConfigKey::fixed("firewall-backend"),
    ],
    check_config: Config::check,
    ..Descriptor::new("network.bridge", Phase::Network)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(BridgePlugin)) }

struct BridgePlugin;

#[async_trait]
impl Plugin for BridgePlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let config: Config = cx.config.parse()?;
        if !config.userland_proxy {
            tracing::info!("Without userland-proxy, published ports do not answer on loopback.");
        }
        let driver = Bridge::open(config, cx.tasks.clone())?;
        cx.provide::<Network>("bridge", Arc::new(driver))?;
        Ok(Init::Ready)
    }
}
