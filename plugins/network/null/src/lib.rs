//! The null network driver: a namespace with nothing but its loopback.
//!
//! There is nothing to make and nothing to connect. The driver exists so that the network of its
//! kind is one like any other; the network store decides what namespace a container gets.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::network::{
    EndpointSpec, Joined, NetNsFd, Network, NetworkDriver, NetworkSpec,
};
use gantry_sdk::registry::Kind;
use gantry_sdk::{
    Context, Ctx, Descriptor, Error, Init, Phase, Plugin, Provide, Registration, Result,
};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Network::NAME, "null")],
    ..Descriptor::new("network.null", Phase::Network)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(DriverPlugin)) }

struct DriverPlugin;

#[async_trait]
impl Plugin for DriverPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        cx.provide::<Network>("null", Arc::new(Driver))?;
        Ok(Init::Ready)
    }
}

struct Driver;

#[async_trait]
impl NetworkDriver for Driver {
    async fn create(&self, _: &Ctx, network: &NetworkSpec) -> Result<()> {
        match network.subnets.first() {
            Some((subnet, _)) => Err(Error::invalid(format!(
                "network {} cannot have subnet {subnet}: the null driver has no addresses",
                network.name
            ))),
            None => Ok(()),
        }
    }

    async fn delete(&self, _: &Ctx, _: &NetworkSpec) -> Result<()> {
        Ok(())
    }

    async fn join(
        &self,
        _: &Ctx,
        network: &NetworkSpec,
        endpoint: &EndpointSpec,
        _: NetNsFd,
    ) -> Result<Joined> {
        if endpoint.ports.is_empty() && endpoint.addresses.is_empty() {
            return Ok(Joined::default());
        }
        Err(Error::invalid(format!(
            "network {} has neither addresses nor published ports",
            network.name
        )))
    }

    async fn leave(&self, _: &Ctx, _: &NetworkSpec, _: &EndpointSpec, _: &Joined) -> Result<()> {
        Ok(())
    }

    async fn recover(&self, _: &Ctx, _: &NetworkSpec, _: &[(EndpointSpec, Joined)]) -> Result<()> {
        Ok(())
    }
}
