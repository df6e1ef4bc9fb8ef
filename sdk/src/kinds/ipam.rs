//! Address management.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Labels, kind};

/// A pool of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// For later calls.
    pub id: String,
    /// The subnet.
    pub subnet: IpNet,
}

kind! {
    /// Hands out subnets and addresses. Keys are caller-chosen: the same key gets the same answer.
    pub trait IpamDriver: Ipam = "ipam" (1, 0), budget Some(Duration::from_secs(10)) => {
        /// A subnet: `want` if given, otherwise the next free default pool of the family.
        ///
        /// # Errors
        ///
        /// `Conflict` if `want` overlaps a pool in use; `NoSpace` if no default pool is free.
        async fn request_pool(&self, cx: &Ctx, key: &str, want: Option<IpNet>, range: Option<IpNet>, v6: bool, options: &Labels) -> Result<Pool>;

        /// Gives a pool back; an unknown one is no error.
        async fn release_pool(&self, cx: &Ctx, id: &str) -> Result<()>;

        /// An address: `want` if given, otherwise the next free one.
        ///
        /// # Errors
        ///
        /// `Conflict` if `want` is taken; `NoSpace` if the pool is exhausted; `NotFound`: no pool.
        async fn request_address(&self, cx: &Ctx, key: &str, pool: &str, want: Option<IpAddr>) -> Result<IpAddr>;

        /// Gives an address back; a free one is no error.
        async fn release_address(&self, cx: &Ctx, pool: &str, address: IpAddr) -> Result<()>;
    }
}
