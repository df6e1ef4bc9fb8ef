//! What plugins contribute to `/info` and `/system/df`.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::kind;

kind! {
    /// Rows of `/info`.
    pub trait InfoSource: Info = "info" (1, 0), budget Some(Duration::from_secs(2)) => {
        /// Members of the answer, under their wire names. `Warnings` are joined, others replace.
        async fn info(&self, cx: &Ctx) -> Result<Map<String, Value>>;
    }
}

kind! {
    /// Sections of `/system/df`.
    pub trait DiskUsageSource: DiskUsage = "disk-usage" (1, 0), budget Some(Duration::from_secs(120)) => {
        /// The section of [`section`](Self::section), with its items; the others empty.
        async fn usage(&self, cx: &Ctx) -> Result<gantry_api::DiskUsage>;

        plain {
            /// The `type` that a client asks for: `image`, `container`, `volume`, `build-cache`.
            fn section(&self) -> &'static str;
        }
    }
}
