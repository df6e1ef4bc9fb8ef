//! The container store, as other plugins use it.

use std::time::Duration;

use crate::kind;

/// A container in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerBrief {
    /// Identity.
    pub id: String,
    /// Name without slash.
    pub name: String,
    /// `created`, `running`, `paused`, `restarting`, `exited`, `removing`, `dead`.
    pub status: &'static str,
    /// Named and anonymous volumes it refers to.
    pub volumes: Vec<String>,
}

kind! {
    /// All containers, from memory.
    pub trait ContainerStore: Containers = "containers" (1, 0), budget Some(Duration::from_secs(10)) => {
        /// Every container, oldest first.
        async fn briefs(&self, cx: &Ctx) -> Result<Vec<ContainerBrief>>;
    }
}
