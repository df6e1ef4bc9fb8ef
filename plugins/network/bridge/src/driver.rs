//! The driver as others see it: ports held, links made, bytes passed on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use gantry_sdk::kinds::network::{
    EndpointSpec, Joined, NetNsFd, NetworkDriver, NetworkSpec, PortMapping,
};
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, Result};
use gantry_sys::netlink::IfName;

use crate::core::{Core, host_link};
use crate::ports::{Ports, Reservation};
use crate::proxy::Publication;
use crate::settings::Config;

/// When a link must be gone with its namespace; if it is not, somebody still uses that.
const LINK_GRACE: Duration = Duration::from_secs(2);

/// The bridge driver.
pub(crate) struct Bridge {
    core: Arc<Core>,
    ports: Ports,
    /// Whether we listen on published ports.
    proxy: bool,
    tasks: Tasks,
    published: Mutex<HashMap<String, Vec<Publication>>>,
}

impl Bridge {
    /// A driver for the calling thread's network namespace.
    pub(crate) fn open(config: Config, tasks: Tasks) -> Result<Self> {
        let proxy = config.userland_proxy;
        let core = Arc::new(Core::open(config)?);
        Ok(Self { core, ports: Ports::default(), proxy, tasks, published: Mutex::default() })
    }

    fn published(&self) -> MutexGuard<'_, HashMap<String, Vec<Publication>>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = self.core.clone();
        tokio::task::spawn_blocking(move || work(&core)).await?
    }

    async fn reserve(&self, wanted: &[PortMapping]) -> Result<Vec<Reservation>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let (ports, wanted, proxy) = (self.ports.clone(), wanted.to_vec(), self.proxy);
        let reserved = tokio::task::spawn_blocking(move || ports.reserve(&wanted, proxy));
        Ok(reserved.await??)
    }

    /// Starts to pass on what is `reserved`.
    fn start(&self, endpoint: &EndpointSpec, reserved: Vec<Reservation>) -> Result<()> {
        let mut started = Vec::with_capacity(reserved.len());
        for reservation in reserved {
            let target = self.proxy.then(|| proxy_target(endpoint, &reservation.mapping)).flatten();
            started.push(
                Publication::start(reservation, target, &self.tasks)
                    .map_err(|e| Error::internal("cannot serve a published port", e))?,
            );
        }
        self.published().insert(endpoint.id.clone(), started);
        Ok(())
    }

    async fn stop(&self, endpoint: &str) {
        let publications = self.published().remove(endpoint).unwrap_or_default();
        for publication in publications {
            publication.close().await;
        }
    }

    /// Deletes links that outlive their endpoints, in the background.
    fn sweep(&self, links: Vec<IfName>, after: Duration) {
        if links.is_empty() {
            return;
        }
        let (core, stop) = (self.core.clone(), self.tasks.stopping().clone());
        self.tasks.spawn("links left over", async move {
            if stop.run_until_cancelled(tokio::time::sleep(after)).await.is_none() {
                return;
            }
            let swept = tokio::task::spawn_blocking(move || {
                for link in links {
                    if let Err(error) = core.delete_link(&link) {
                        tracing::warn!(%link, error = error.chain(), "A link is left over.");
                    }
                }
            });
            let _ = swept.await;
        });
    }
}

/// Where the proxy leads: the container's address of the family asked for, else of the other.
fn proxy_target(endpoint: &EndpointSpec, port: &PortMapping) -> Option<IpAddr> {
    let addresses = || endpoint.addresses.iter().map(ipnet::IpNet::addr);
    let same = addresses().find(|a| a.is_ipv6() == port.host_ip.is_ipv6());
    same.or_else(|| addresses().next())
}

#[async_trait]
impl NetworkDriver for Bridge {
    async fn create(&self, _: &Ctx, network: &NetworkSpec) -> Result<()> {
        let network = network.clone();
        self.blocking(move |core| core.create(&network)).await
    }

    async fn delete(&self, _: &Ctx, network: &NetworkSpec) -> Result<()> {
        let network = network.clone();
        self.blocking(move |core| core.delete(&network)).await
    }

    async fn join(
        &self,
        _: &Ctx,
        network: &NetworkSpec,
        endpoint: &EndpointSpec,
        netns: NetNsFd,
    ) -> Result<Joined> {
        let link = host_link(endpoint)?;
        let reserved = self.reserve(&endpoint.ports).await?;
        let core = self.core.clone();
        let (wanted, network) = (endpoint.clone(), network.clone());
        let connect = move || {
            let ports = reserved.iter().map(|r| r.mapping.clone()).collect();
            let mut made = Made { core, endpoint: wanted, ports, link, reserved, kept: false };
            match made.core.join(&network, &made.endpoint, &made.ports, netns.as_fd()) {
                Ok(mac) => Ok((mac, made)),
                Err(error) => {
                    made.kept = true; // nothing is left of it
                    Err(error)
                }
            }
        };
        let (mac, mut made) = tokio::task::spawn_blocking(connect).await??;
        let reserved = std::mem::take(&mut made.reserved);
        self.start(endpoint, reserved)?;
        made.kept = true;
        let (ports, host_interface) = (made.ports.clone(), Some(made.link.to_string()));
        Ok(Joined { mac: Some(mac.0), ports, host_interface })
    }

    async fn leave(
        &self,
        _: &Ctx,
        _: &NetworkSpec,
        endpoint: &EndpointSpec,
        joined: &Joined,
    ) -> Result<()> {
        let (for_core, ports) = (endpoint.clone(), joined.ports.clone());
        // First the redirections: a port that others can bind must lead nowhere.
        let result = self.blocking(move |core| core.leave(&for_core, &ports)).await;
        self.stop(&endpoint.id).await;
        self.sweep(vec![host_link(endpoint)?], LINK_GRACE);
        result
    }

    async fn recover(
        &self,
        _: &Ctx,
        network: &NetworkSpec,
        live: &[(EndpointSpec, Joined)],
    ) -> Result<()> {
        let (spec, endpoints) = (network.clone(), live.to_vec());
        let left_over = self
            .blocking(move |core| {
                let live: Vec<_> = endpoints.iter().map(|(e, j)| (e, j.ports.as_slice())).collect();
                core.recover(&spec, &live)
            })
            .await?;
        self.sweep(left_over, Duration::ZERO);
        for (endpoint, joined) in live {
            if self.published().contains_key(&endpoint.id) {
                continue;
            }
            let mut reserved = Vec::new();
            for port in &joined.ports {
                match self.reserve(std::slice::from_ref(port)).await {
                    Ok(port) => reserved.extend(port),
                    // Taken while no daemon ran. The redirection works on; only loopback does not.
                    Err(error) => tracing::warn!(
                        container = endpoint.container,
                        error = error.chain(),
                        "A published port could not be taken over."
                    ),
                }
            }
            self.start(endpoint, reserved)?;
        }
        Ok(())
    }
}

/// A connection that nobody has taken yet. Dropped so, because serving its ports failed or because
/// the caller has given up waiting, it is undone: redirections before ports, as ever.
struct Made {
    core: Arc<Core>,
    endpoint: EndpointSpec,
    ports: Vec<PortMapping>,
    link: IfName,
    /// Given up last.
    reserved: Vec<Reservation>,
    kept: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let left = self.core.leave(&self.endpoint, &self.ports);
        if let Err(error) = left.and(self.core.delete_link(&self.link)) {
            let (container, error) = (&self.endpoint.container, error.chain());
            tracing::warn!(container, error, "A connection that was not wanted is left over.");
        }
    }
}
