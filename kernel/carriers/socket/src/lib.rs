//! Plugins in other processes that speak Docker's plugin protocol, version 1, over a socket.
//!
//! A plugin is found by name: a socket in `/run/docker/plugins`, or a file that holds an address in
//! `/etc/docker/plugins` or `/usr/lib/docker/plugins`. It is asked once, in the background, what it
//! implements; from then on it is a driver like any other, behind the SDK's traits. This build
//! carries the kind `VolumeDriver`.
//!
//! # Map
//!
//! - [`settings`]: which directories
//! - `discover`: names and addresses in them; reads, never dials
//! - `watch`: noticing changes of them
//! - `client`: one call: deadline, bounded answer, what kind of failure it was
//! - `volume`: the SDK's volume driver on top of such calls
//! - `keeper`: asks plugins what they are, offers them, takes them down, asks again
//! - `seat`: one plugin's place in the registry
//!
//! # Invariants
//!
//! 1. A request never dials a plugin that is not known to have answered, and never waits for a scan.
//! 2. Every call has a deadline and a bounded answer; an answer that came too late is not looked at.
//! 3. A plugin that does not answer is down with a reason until it answers again; asking it is work
//!    of the background.
//! 4. A name that another part of the daemon provides is never taken.
//! 5. What a plugin refuses is its caller's matter; only silence, garbage and closed connections are
//!    held against the plugin.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::kinds::volume::Volume;
use gantry_sdk::plugin::mistakes;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Context, Descriptor, Init, Need, Phase, Plugin, Registration, Result};

mod client;
mod discover;
mod keeper;
mod seat;
pub mod settings;
#[cfg(test)]
mod tests;
mod volume;
mod watch;

use keeper::Keeper;
use settings::Settings;

static DESCRIPTOR: Descriptor = Descriptor {
    // After the drivers of this build, whose names are theirs.
    needs: &[Need::Kind(Metadata::NAME), Need::Optional(Volume::NAME)],
    check_section: |section| mistakes(Settings::parse(section)),
    required: false,
    ..Descriptor::new("carrier.socket", Phase::Volume)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(SocketCarrier)) }

struct SocketCarrier;

#[async_trait]
impl Plugin for SocketCarrier {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let settings = Settings::parse(&cx.own_config)?;
        let metadata = cx.registry.only::<Metadata>()?;
        let keeper = Arc::new(Keeper::new(settings, cx.registry.clone(), metadata));
        keeper.start(&cx.tasks).await?;
        Ok(Init::Ready)
    }
}
