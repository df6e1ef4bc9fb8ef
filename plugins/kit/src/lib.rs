//! The conformance kit for storage drivers, as the command `gantryd kit storage` and for the tests of
//! drivers. It needs no daemon: the driver is started alone, on a directory that is thrown away.
//!
//! # Map
//!
//! - [`Archives`]: moves bytes to and from layers of every form
//! - `command`: arguments, and a driver from this build
//! - `show`: the report, for people and as JSON

mod archives;
mod command;
mod show;

use async_trait::async_trait;
use gantry_sdk::{Context, Descriptor, Init, Phase, Plugin, Registration, Result};

pub use archives::Archives;

static DESCRIPTOR: Descriptor = Descriptor {
    commands: command::COMMANDS,
    required: false,
    ..Descriptor::new("kit", Phase::Host)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(Kit)) }

/// In a daemon it has nothing to do.
struct Kit;

#[async_trait]
impl Plugin for Kit {
    async fn init(&self, _: &mut Context) -> Result<Init> {
        Ok(Init::Ready)
    }
}
