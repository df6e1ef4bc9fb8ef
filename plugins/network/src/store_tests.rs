//! The store with a driver and an address manager that only remember. Namespaces are real: these
//! tests need root and skip loudly without.

use std::net::IpAddr;
use std::path::Path;

use gantry_sdk::ErrorKind;
use gantry_sdk::Labels;
use gantry_sdk::id::{ContainerId, NetworkId};
use gantry_sdk::kinds::ipam::Pool;
use gantry_sdk::kinds::network::{NetNsFd, NetworkSpec, PortMapping, Protocol};
use gantry_sdk::kinds::networks::SandboxNs;
use gantry_sdk::mounts::Grants;
use ipnet::IpNet;

use super::*;
use crate::record::Subnet;

#[derive(Default)]
struct Remembers {
    /// What was called, in order.
    calls: Mutex<Vec<String>>,
    /// Addresses in use.
    held: Mutex<Vec<IpAddr>>,
    /// What a join fails with.
    refuse: Mutex<Option<ErrorKind>>,
}

impl Remembers {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

#[async_trait]
impl NetworkDriver for Remembers {
    async fn create(&self, _: &Ctx, network: &NetworkSpec) -> Result<()> {
        self.note(format!("create {}", network.name));
        Ok(())
    }

    async fn delete(&self, _: &Ctx, network: &NetworkSpec) -> Result<()> {
        self.note(format!("delete {}", network.name));
        Ok(())
    }

    async fn join(
        &self,
        _: &Ctx,
        _: &NetworkSpec,
        endpoint: &EndpointSpec,
        _: NetNsFd,
    ) -> Result<Joined> {
        if let Some(kind) = *self.refuse.lock().unwrap() {
            return Err(Error::new(kind, "port is already allocated"));
        }
        self.note(format!("join {}", endpoint.addresses[0]));
        let mac = Some([2, 0x42, 0, 0, 0, 1]);
        Ok(Joined { mac, ports: endpoint.ports.clone(), host_interface: None })
    }

    async fn leave(
        &self,
        _: &Ctx,
        _: &NetworkSpec,
        endpoint: &EndpointSpec,
        _: &Joined,
    ) -> Result<()> {
        self.note(format!("leave {}", endpoint.addresses[0]));
        Ok(())
    }

    async fn recover(
        &self,
        _: &Ctx,
        network: &NetworkSpec,
        live: &[(EndpointSpec, Joined)],
    ) -> Result<()> {
        self.note(format!("recover {} with {}", network.name, live.len()));
        Ok(())
    }
}

#[async_trait]
impl IpamDriver for Remembers {
    async fn request_pool(
        &self,
        _: &Ctx,
        key: &str,
        want: Option<IpNet>,
        _: Option<IpNet>,
        _: bool,
        _: &Labels,
    ) -> Result<Pool> {
        Ok(Pool { id: key.to_owned(), subnet: want.unwrap_or("10.0.0.0/24".parse().unwrap()) })
    }

    async fn release_pool(&self, _: &Ctx, _: &str) -> Result<()> {
        Ok(())
    }

    async fn request_address(
        &self,
        _: &Ctx,
        _: &str,
        _: &str,
        want: Option<IpAddr>,
    ) -> Result<IpAddr> {
        let mut held = self.held.lock().unwrap();
        let free = (2..255).map(|n| IpAddr::from([10, 0, 0, n])).find(|a| !held.contains(a));
        let address = want.or(free).unwrap();
        held.push(address);
        Ok(address)
    }

    async fn release_address(&self, _: &Ctx, _: &str, address: IpAddr) -> Result<()> {
        self.held.lock().unwrap().retain(|a| *a != address);
        Ok(())
    }
}

fn record(name: &str, driver: &str, subnet: Option<&str>) -> Record {
    let subnet = subnet.map(|text| Subnet {
        subnet: text.parse().unwrap(),
        range: None,
        gateway: Some("10.0.0.1".parse().unwrap()),
    });
    Record {
        id: NetworkId::random(),
        name: name.into(),
        driver: driver.into(),
        created: String::new(),
        internal: false,
        labels: Labels::new(),
        options: Labels::new(),
        subnets: subnet.into_iter().collect(),
    }
}

fn store() -> (Store, Arc<Remembers>) {
    let world = Arc::new(Remembers::default());
    let registry = Registry::default();
    for driver in ["bridge", "host", "null"] {
        registry.provide::<Network>(driver, world.clone(), Grants::default(), false).unwrap();
    }
    let records = vec![
        record("bridge", "bridge", Some("10.0.0.0/24")),
        record("host", "host", None),
        record("none", "null", None),
    ];
    let (registry, events) = (Arc::new(registry), EventBus::default());
    (Store::new(Config::default(), world.clone(), registry, events, records), world)
}

fn spec(network: &str, files: &Path) -> SandboxSpec {
    SandboxSpec {
        container: ContainerId::random().to_string(),
        name: "web".into(),
        network: network.into(),
        hostname: "web".into(),
        files: files.to_owned(),
        ports: vec![PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_ip: "0.0.0.0".parse().unwrap(),
            host_port: 8080,
            host_port_end: 8080,
        }],
        ..SandboxSpec::default()
    }
}

fn is_root() -> bool {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// A directory that goes with the test.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        let path =
            std::env::temp_dir().join(format!("gantry-network-{}", NetworkId::random().short()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_sandbox_is_opened_shown_and_closed() {
    if !is_root() {
        return;
    }
    let (store, world) = store();
    let (cx, files) = (Ctx::background(), Scratch::new());
    let spec = spec("default", &files.0);
    let sandbox = store.open(&cx, &spec).await.unwrap();
    let place = &sandbox.status.networks["bridge"];
    assert_eq!(
        (place.ip.as_str(), place.prefix, place.gateway.as_str()),
        ("10.0.0.2", 24, "10.0.0.1")
    );
    assert_eq!(place.mac, "02:42:00:00:00:01");
    assert_eq!(sandbox.status.ports, spec.ports);
    assert!(matches!(sandbox.netns, SandboxNs::Ready(_)));
    assert!(files.read("hosts").ends_with("10.0.0.2\tweb\n"));
    assert_eq!(files.read("hostname"), "web\n");
    assert!(files.read("resolv.conf").contains("nameserver "));
    assert_eq!(world.take_calls(), ["create bridge", "join 10.0.0.2/24"]);

    let entry = store.find("bridge").unwrap();
    assert_eq!(store.members(&entry).len(), 1);
    assert!(store.is_used(&entry));
    let again = store.open(&cx, &spec).await.unwrap();
    assert_eq!(again.status.networks["bridge"].ip, "10.0.0.2");
    assert_eq!(world.take_calls(), ["leave 10.0.0.2/24", "join 10.0.0.2/24"], "one at a time");
    store.close(&cx, &spec.container).await.unwrap();
    store.close(&cx, &spec.container).await.unwrap();
    assert_eq!(world.take_calls(), ["leave 10.0.0.2/24"]);
    assert!(world.held.lock().unwrap().is_empty() && !store.is_used(&entry));
    let (past, _) = store.events.subscribe();
    let actions: Vec<_> = past.iter().map(|e| e.action.as_str()).collect();
    assert_eq!(actions, ["connect", "disconnect", "connect", "disconnect"]);
}

#[tokio::test]
async fn a_refused_join_leaves_no_address() {
    if !is_root() {
        return;
    }
    let (store, world) = store();
    let (cx, files) = (Ctx::background(), Scratch::new());
    *world.refuse.lock().unwrap() = Some(ErrorKind::Conflict);
    let error = store.open(&cx, &spec("bridge", &files.0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let text = error.chain();
    assert!(
        text.starts_with("driver failed programming external connectivity on endpoint web ("),
        "{text}"
    );
    assert!(text.ends_with("): port is already allocated"), "{text}");
    assert!(world.held.lock().unwrap().is_empty());
    assert!(store.sandboxes().is_empty());
    let gone = SandboxSpec { files: "/nonexistent".into(), ..spec("bridge", &files.0) };
    assert!(store.open(&cx, &gone).await.is_err());
    assert!(world.held.lock().unwrap().is_empty(), "files cannot be written");
}

#[tokio::test]
async fn host_and_none_have_no_endpoint() {
    if !is_root() {
        return;
    }
    let (store, world) = store();
    let (cx, files) = (Ctx::background(), Scratch::new());
    let host = store.open(&cx, &spec("host", &files.0)).await.unwrap();
    assert!(matches!(host.netns, SandboxNs::Host));
    assert!(host.status.ports.is_empty() && host.status.networks.contains_key("host"));
    let none = store.open(&cx, &spec("none", &files.0)).await.unwrap();
    assert!(matches!(none.netns, SandboxNs::Ready(_)));
    assert!(none.status.networks["none"].ip.is_empty());
    assert!(!files.read("hosts").contains("web"));
    assert_eq!(world.take_calls(), ["create host", "create none"]);
}

#[tokio::test]
async fn the_living_are_taken_over() {
    if !is_root() {
        return;
    }
    let (old, _) = store();
    let (cx, files) = (Ctx::background(), Scratch::new());
    let spec = spec("bridge", &files.0);
    let status = old.open(&cx, &spec).await.unwrap().status;
    let (new, world) = store();
    new.recover(&cx, &[(spec.clone(), status)]).await.unwrap();
    assert_eq!(world.take_calls(), ["create bridge", "recover bridge with 1"]);
    assert_eq!(*world.held.lock().unwrap(), [IpAddr::from([10, 0, 0, 2])]);
    new.close(&cx, &spec.container).await.unwrap();
    assert_eq!(world.take_calls(), ["leave 10.0.0.2/24"]);
    assert!(world.held.lock().unwrap().is_empty());
}

#[tokio::test]
async fn networks_are_found_as_clients_name_them() {
    let (store, _) = store();
    let cx = Ctx::background();
    let id = store.find("bridge").unwrap().record.id.to_string();
    for name in ["bridge", "default", "", &id, &id[..9]] {
        assert_eq!(
            store.resolve(&cx, name).await.unwrap(),
            (id.clone(), "bridge".into()),
            "{name}"
        );
    }
    let error = store.resolve(&cx, "nothing").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.chain().as_str()),
        (ErrorKind::NotFound, "network nothing not found")
    );
}

#[tokio::test]
async fn wishes_that_cannot_be_met_are_refused() {
    let (store, _) = store();
    let (cx, files) = (Ctx::background(), Scratch::new());
    let address =
        SandboxSpec { addresses: vec!["10.0.0.7".parse().unwrap()], ..spec("bridge", &files.0) };
    let mac = SandboxSpec { mac: Some("nonsense".into()), ..spec("bridge", &files.0) };
    for (what, spec, text) in [
        (
            "address",
            address,
            "user specified IP address is supported on user defined networks only",
        ),
        ("mac", mac, "invalid endpoint: invalid MAC address \"nonsense\""),
    ] {
        let error = store.open(&cx, &spec).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.chain().as_str()),
            (ErrorKind::InvalidArgument, text),
            "{what}"
        );
    }
}
