use super::*;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gantry_api::Filters;
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::id::ContainerId;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::kinds::volume::{Scope, VolumeDriver, VolumeInfo};
use gantry_sdk::kinds::volumes::{NewVolume, VolumeStore};
use gantry_sdk::mounts::{Grants, MountExecutor, MountFd, MountPlan, PathRef, Place, Step};
use gantry_sdk::registry::Registry;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels};

/// Records in memory, of any table.
#[derive(Default)]
struct Records(Mutex<BTreeMap<String, Vec<u8>>>);

#[async_trait]
impl MetadataStore for Records {
    async fn get(&self, _: &Ctx, _: &'static str, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    async fn scan(&self, _: &Ctx, _: &'static str, _: &str) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(self.0.lock().unwrap().clone().into_iter().collect())
    }

    async fn commit(&self, _: &Ctx, changes: Vec<Change>) -> Result<()> {
        let mut records = self.0.lock().unwrap();
        for change in changes {
            match change {
                Change::Put { key, value, .. } => drop(records.insert(key, value)),
                Change::Delete { key, .. } => drop(records.remove(&key)),
                Change::Expect { .. } => {}
            }
        }
        Ok(())
    }
}

/// A driver in memory. `hang` never answers a list; `host` makes volumes that are mounts.
#[derive(Default)]
struct Fake {
    volumes: Mutex<BTreeMap<String, Labels>>,
    dir: String,
    hang: bool,
    host: bool,
}

#[async_trait]
impl VolumeDriver for Fake {
    async fn create(&self, _: &Ctx, name: &str, options: &Labels) -> Result<()> {
        if name.len() < 2 {
            return Err(Error::invalid("volume name is too short"));
        }
        self.volumes.lock().unwrap().insert(name.to_owned(), options.clone());
        Ok(())
    }

    async fn remove(&self, _: &Ctx, name: &str) -> Result<()> {
        self.volumes.lock().unwrap().remove(name);
        Ok(())
    }

    async fn get(&self, _: &Ctx, name: &str) -> Result<VolumeInfo> {
        let known = self.volumes.lock().unwrap().contains_key(name);
        let info = VolumeInfo {
            name: name.to_owned(),
            mountpoint: self.dir.clone(),
            ..VolumeInfo::default()
        };
        known.then_some(info).ok_or_else(|| Error::not_found("volume not found"))
    }

    async fn list(&self, cx: &Ctx, after: Option<&str>, _: u32) -> Result<Vec<VolumeInfo>> {
        if self.hang {
            std::future::pending::<()>().await;
        }
        let names = self.volumes.lock().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut found = Vec::new();
        for name in names.iter().filter(|name| after.is_none_or(|after| name.as_str() > after)) {
            found.push(self.get(cx, name).await?);
        }
        Ok(found)
    }

    async fn publish(&self, cx: &Ctx, name: &str, _: &str) -> Result<MountPlan> {
        self.get(cx, name).await?;
        Ok(MountPlan::of(vec![if self.host {
            Step::Host {
                fs_type: "tmpfs".to_owned(),
                device: "tmpfs".to_owned(),
                options: String::new(),
            }
        } else {
            let source = Place::Path(PathRef::new("root", name));
            Step::Bind { source, read_only: false, recursive: false }
        }]))
    }

    async fn unpublish(&self, _: &Ctx, _: &str, _: &str) -> Result<()> {
        Ok(())
    }

    fn scope(&self) -> Scope {
        Scope::Local
    }
}

/// Hands out a descriptor of a directory, or with privilege a real tmpfs, for every plan.
#[derive(Default)]
struct Mounts(AtomicUsize);

#[async_trait]
impl MountExecutor for Mounts {
    fn check(&self, _: &MountPlan, _: &Grants) -> Result<()> {
        Ok(())
    }

    async fn mount(&self, _: &Ctx, plan: &MountPlan, _: &Grants) -> Result<MountFd> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let fd = match plan.steps.first() {
            Some(Step::Host { .. }) => {
                let context = gantry_sys::mount::FsContext::open("tmpfs").unwrap();
                context.create().unwrap();
                context.mount(gantry_sys::mount::MountAttrFlags::empty()).unwrap()
            }
            _ => std::fs::File::open("/").unwrap().into(),
        };
        Ok(MountFd::new(fd))
    }
}

struct World {
    registry: Arc<Registry>,
    records: Arc<Records>,
    mounts: Arc<Mounts>,
    events: EventBus,
    store: Arc<Store>,
}

impl World {
    async fn new(drivers: Vec<(&str, Fake)>) -> Self {
        let registry = Arc::new(Registry::default());
        for (name, driver) in drivers {
            registry.provide::<Volume>(name, Arc::new(driver), Grants::default(), false).unwrap();
        }
        let (records, mounts) = (Arc::new(Records::default()), Arc::new(Mounts::default()));
        let events = EventBus::default();
        let store =
            Store::open(registry.clone(), records.clone(), mounts.clone(), events.clone()).await;
        Self { registry, records, mounts, events, store: Arc::new(store.unwrap()) }
    }

    async fn local() -> Self {
        Self::new(vec![("local", Fake::default())]).await
    }

    /// Another daemon on the same records.
    async fn restarted(&self, registry: Arc<Registry>) -> Store {
        let (records, mounts) = (self.records.clone(), self.mounts.clone());
        Store::open(registry, records, mounts, self.events.clone()).await.unwrap()
    }

    fn events(&self) -> Vec<String> {
        let of = |event: &Arc<Event>| format!("{} {}", event.action, event.id);
        self.events.subscribe().0.iter().map(of).collect()
    }
}

fn cx() -> Ctx {
    Ctx::background()
}

fn named(name: &str) -> NewVolume {
    NewVolume { name: Some(name.to_owned()), ..NewVolume::default() }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

async fn names(store: &Store, filters: &str) -> Vec<String> {
    let filters = Filters::parse(filters).unwrap();
    let list = list::list(store, &cx(), &filters).await.unwrap();
    list.volumes.into_iter().map(|volume| volume.name).collect()
}

#[tokio::test]
async fn a_volume_is_made_once_held_and_removed() {
    let world = World::local().await;
    let store = &world.store;
    let new = NewVolume { labels: labels(&[("a", "b")]), ..named("data") };
    assert!(!store.create(&cx(), new).await.unwrap().anonymous);
    store.create(&cx(), named("data")).await.unwrap();
    let shown = store.inspect(&cx(), "data").await.unwrap();
    assert_eq!(shown.labels, Some(labels(&[("a", "b")])));
    assert_eq!((shown.options, shown.scope.as_str()), (None, "local"));
    assert!(shown.created_at.ends_with('Z'));

    store.hold(&cx(), "data", "c1").await.unwrap();
    store.hold(&cx(), "data", "c2").await.unwrap();
    for force in [false, true] {
        let error = store.delete(&cx(), "data", force).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(error.to_string(), "remove data: volume is in use - [c1, c2]");
    }
    store.release(&cx(), "data", "c1").await.unwrap();
    store.release(&cx(), "data", "c2").await.unwrap();
    store.release(&cx(), "data", "c2").await.unwrap();
    store.remove(&cx(), "data").await.unwrap();
    let error = store.remove(&cx(), "data").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "get data: no such volume")
    );
    store.delete(&cx(), "data", true).await.unwrap();
    assert!(store.hold(&cx(), "data", "c1").await.is_err());
    assert_eq!(world.events(), ["create data", "destroy data"]);
    assert!(world.records.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_anonymous_volume_has_a_long_name_and_a_label() {
    let world = World::local().await;
    let volume = world.store.create(&cx(), NewVolume::default()).await.unwrap();
    assert!(volume.anonymous && volume.name.len() == 64);
    let shown = world.store.inspect(&cx(), &volume.name).await.unwrap();
    assert!(shown.labels.unwrap().contains_key(record::ANONYMOUS));
}

#[tokio::test]
async fn names_belong_to_one_driver() {
    let world = World::new(vec![("local", Fake::default()), ("other", Fake::default())]).await;
    let store = &world.store;
    store.create(&cx(), named("v1")).await.unwrap();
    let other = |driver: &str| NewVolume { driver: Some(driver.to_owned()), ..named("v1") };
    let error = store.create(&cx(), other("other")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        "create v1: driver 'local' already has volume 'v1': volume name must be unique"
    );
    let new = NewVolume { driver: Some("nope".to_owned()), ..named("v2") };
    let error = store.create(&cx(), new).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("error looking up volume plugin nope"), "{error}");
    let error = store.create(&cx(), named("x")).await.unwrap_err();
    assert_eq!(error.to_string(), "create x: volume name is too short");
}

#[tokio::test]
async fn a_driver_that_is_silent_or_gone_costs_nothing() {
    let hanging = Fake { hang: true, ..Fake::default() };
    let world = World::new(vec![("local", Fake::default()), ("slow", hanging)]).await;
    let slow = NewVolume { driver: Some("slow".to_owned()), ..named("far") };
    world.store.create(&cx(), slow).await.unwrap();
    world.store.create(&cx(), named("near")).await.unwrap();
    let started = Instant::now();
    let list = list::list(&world.store, &cx(), &Filters::default()).await.unwrap();
    assert!(started.elapsed() < store::SOFT + Duration::from_secs(1));
    assert_eq!(list.volumes.len(), 2);
    assert!(list.warnings.unwrap()[0].starts_with("list slow: "));

    let store = world.restarted(Arc::new(Registry::default())).await;
    store.hold(&cx(), "far", "c1").await.unwrap();
    let error = store.inspect(&cx(), "far").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let list = list::list(&store, &cx(), &Filters::default()).await.unwrap();
    assert_eq!((list.volumes.len(), list.warnings.unwrap().len()), (2, 2));
    assert_eq!(world.records.0.lock().unwrap().len(), 2);
    store.delete(&cx(), "near", true).await.unwrap();
    assert_eq!(world.records.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_volume_that_only_its_driver_knows_is_adopted() {
    let world = World::local().await;
    let driver = world.registry.get::<Volume>("local").unwrap();
    driver.create(&cx(), "old", &Labels::new()).await.unwrap();
    assert_eq!(names(&world.store, "").await, ["old"]);
    assert_eq!(world.store.get(&cx(), "old").await.unwrap().driver, "local");
    assert_eq!(world.records.0.lock().unwrap().len(), 1);
    // The driver loses it: not found, and made again, but not while somebody refers to it.
    driver.remove(&cx(), "old").await.unwrap();
    let missing = world.store.get(&cx(), "old").await.unwrap_err();
    assert_eq!(missing.to_string(), "get old: no such volume");
    assert_eq!(world.records.0.lock().unwrap().len(), 1);
    world.store.hold(&cx(), "old", "c1").await.unwrap();
    let error = world.store.create(&cx(), named("old")).await.unwrap_err();
    assert!(error.to_string().contains("found references to volume 'old'"), "{error}");
    world.store.release(&cx(), "old", "c1").await.unwrap();
    world.store.create(&cx(), named("old")).await.unwrap();
}

#[tokio::test]
async fn filters_select() {
    let world = World::local().await;
    let store = &world.store;
    store.create(&cx(), NewVolume { labels: labels(&[("k", "v")]), ..named("aa1") }).await.unwrap();
    store.create(&cx(), named("ab2")).await.unwrap();
    store.hold(&cx(), "ab2", "c").await.unwrap();
    let cases: [(&str, &[&str]); 7] = [
        ("", &["aa1", "ab2"]),
        (r#"{"name":["b2"]}"#, &["ab2"]),
        (r#"{"label":["k=v"]}"#, &["aa1"]),
        (r#"{"dangling":["true"]}"#, &["aa1"]),
        (r#"{"dangling":["0"]}"#, &["ab2"]),
        (r#"{"driver":["local"]}"#, &["aa1", "ab2"]),
        (r#"{"driver":["x"]}"#, &[]),
    ];
    for (filters, expected) in cases {
        assert_eq!(names(store, filters).await, expected, "{filters}");
    }
    let odd = Filters::parse(r#"{"dangling":["maybe"]}"#).unwrap();
    assert_eq!(
        list::list(store, &cx(), &odd).await.unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[tokio::test]
async fn pruning_spares_names_users_options_and_others() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), vec![1; 10_000]).unwrap();
    let fake = || Fake { dir: dir.path().display().to_string(), ..Fake::default() };
    let world = World::new(vec![("local", fake()), ("other", fake())]).await;
    let store = &world.store;
    let anonymous = store.create(&cx(), NewVolume::default()).await.unwrap().name;
    let held = store.create(&cx(), NewVolume::default()).await.unwrap().name;
    store.hold(&cx(), &held, "c").await.unwrap();
    store.create(&cx(), named("named")).await.unwrap();
    let options = NewVolume { options: labels(&[("type", "nfs")]), ..named("share") };
    store.create(&cx(), options).await.unwrap();
    let other = NewVolume { driver: Some("other".to_owned()), ..named("far") };
    store.create(&cx(), other).await.unwrap();

    let run = async |minor: u16, filters: &str| {
        let filters = Filters::parse(filters).unwrap();
        prune::prune(store, &cx(), ApiVersion::v1(minor), filters).await
    };
    for bad in [r#"{"all":["x"]}"#, r#"{"all":["1","0"]}"#] {
        assert_eq!(run(42, bad).await.unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
    }
    let report = run(42, "").await.unwrap();
    assert_eq!(report.volumes_deleted, [anonymous]);
    assert!(report.space_reclaimed >= 10_000);
    assert!(run(41, r#"{"label":["no"]}"#).await.unwrap().volumes_deleted.is_empty());
    store.pruning.store(true, Ordering::SeqCst);
    assert_eq!(run(42, "").await.unwrap_err().kind(), ErrorKind::Conflict);
    store.pruning.store(false, Ordering::SeqCst);
    assert_eq!(run(41, "").await.unwrap().volumes_deleted, ["named"]);
    assert!(world.events().contains(&"prune ".to_owned()));

    use gantry_sdk::kinds::info::DiskUsageSource as _;
    let usage = prune::Usage(store.clone()).usage(&cx()).await.unwrap().volume_usage.unwrap();
    assert_eq!((usage.total_count, usage.active_count, usage.reclaimable), (1, 1, 0));
    assert!(usage.total_size >= 10_000);
}

#[tokio::test]
async fn publications_keep_a_volume_and_are_reported_for_containers() {
    let world = World::local().await;
    let store = &world.store;
    store.create(&cx(), named("data")).await.unwrap();
    let container = ContainerId::random();
    for user in [container.as_str(), container.as_str(), "copy-up"] {
        store.publish(&cx(), "data", user).await.unwrap();
    }
    assert_eq!(world.mounts.0.load(Ordering::SeqCst), 3);
    assert_eq!(store.remove(&cx(), "data").await.unwrap_err().kind(), ErrorKind::Conflict);
    for user in [container.as_str(), container.as_str(), "copy-up", "nobody"] {
        store.unpublish(&cx(), "data", user).await.unwrap();
    }
    store.remove(&cx(), "data").await.unwrap();
    store.unpublish(&cx(), "data", "nobody").await.unwrap();
    assert_eq!(world.events(), ["create data", "mount data", "unmount data", "destroy data"]);
    assert!(store.publish(&cx(), "data", "c").await.is_err());
}

/// Needs root.
#[tokio::test]
async fn users_of_a_mount_share_it_as_root() {
    if !is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let world = World::new(vec![("local", Fake { host: true, ..Fake::default() })]).await;
    let store = &world.store;
    store.create(&cx(), named("memory")).await.unwrap();
    let first = store.publish(&cx(), "memory", "c1").await.unwrap();
    std::fs::write(gantry_sys::path::proc_fd(&first).join("file"), "shared").unwrap();
    let second = match store.publish(&cx(), "memory", "c2").await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            eprintln!("SKIPPED: this kernel cannot clone detached mounts");
            return;
        }
        answer => answer.unwrap(),
    };
    let text = std::fs::read_to_string(gantry_sys::path::proc_fd(&second).join("file")).unwrap();
    assert_eq!(text, "shared");
    assert_eq!(world.mounts.0.load(Ordering::SeqCst), 1);
    store.unpublish(&cx(), "memory", "c1").await.unwrap();
    drop(first);
    store.publish(&cx(), "memory", "c3").await.unwrap();
    for user in ["c2", "c3"] {
        store.unpublish(&cx(), "memory", user).await.unwrap();
    }
    let fresh = store.publish(&cx(), "memory", "c4").await.unwrap();
    assert!(!gantry_sys::path::proc_fd(&fresh).join("file").exists());
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|about| {
        use std::os::unix::fs::MetadataExt;
        about.uid() == 0
    })
}
