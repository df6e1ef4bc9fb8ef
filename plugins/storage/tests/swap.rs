//! Migrating, verifying and dropping, on real drivers, with containers that are records in memory.
//! Needs root.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_layer_dirs::Layers;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::layer_users::{LayerUse, LayerUserSource, LayerUsers};
use gantry_sdk::kinds::layers::{Chain, ChainLayer, ContainerLayer, Hold, LayerStore};
use gantry_sdk::kinds::storage::{Storage, StorageDriver};
use gantry_sdk::mounts::{Grants, MountFd};
use gantry_sdk::registry::Registry;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};
use gantry_storage::wire::{DropRequest, Message, MigrateRequest, Selection, State, VerifyRequest};
use gantry_storage::{Admin, Parts, Reports, open_with_admin};
use gantry_testkit::archive::Tar;
use gantry_testkit::fakes::{Blobs, Metadata};
use gantry_testkit::mounts::Mounter;
use gantry_testkit::tree::{assert_same, snapshot};
use tokio_util::sync::CancellationToken;

fn cx() -> Ctx {
    Ctx::background()
}

/// Containers that are nothing but records.
#[derive(Default)]
struct Containers {
    uses: Mutex<BTreeMap<String, LayerUse>>,
    held: Mutex<BTreeMap<String, Weak<dyn std::any::Any + Send + Sync>>>,
    /// How often a move may still be written; then it fails, or the machine stops.
    refuse_moves: Mutex<bool>,
}

#[async_trait]
impl LayerUserSource for Containers {
    async fn users(&self, _: &Ctx) -> Result<Vec<LayerUse>> {
        Ok(self.uses.lock().unwrap().values().cloned().collect())
    }

    async fn hold(&self, _: &Ctx, container: &str) -> Result<Hold> {
        if self.uses.lock().unwrap()[container].running {
            return Err(Error::conflict("it runs"));
        }
        let hold: Hold = Arc::new(());
        self.held.lock().unwrap().insert(container.to_owned(), Arc::downgrade(&hold));
        Ok(hold)
    }

    async fn moved(&self, _: &Ctx, container: &str, layer: &ContainerLayer) -> Result<()> {
        if *self.refuse_moves.lock().unwrap() {
            return Err(Error::unavailable("the database is full"));
        }
        let held = self.held.lock().unwrap()[container].strong_count();
        assert_eq!(held, 1, "a container that moves is held");
        self.uses.lock().unwrap().get_mut(container).unwrap().layer = layer.clone();
        Ok(())
    }
}

/// A host that survives restarts of the store.
struct Host {
    dir: tempfile::TempDir,
    blobs: Arc<Blobs>,
    metadata: Arc<Metadata>,
    containers: Arc<Containers>,
    stop: CancellationToken,
}

struct Running {
    layers: Arc<dyn LayerStore>,
    admin: Arc<Admin>,
}

impl Host {
    fn new() -> Option<Self> {
        let is_root =
            std::fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t0\t");
        if !is_root {
            eprintln!("skipped: needs root");
            return None;
        }
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
            blobs: Arc::default(),
            metadata: Arc::default(),
            containers: Arc::default(),
            stop: CancellationToken::new(),
        })
    }

    fn root(&self, instance: &str) -> PathBuf {
        self.dir.path().join(instance)
    }

    async fn start(&self, default: &str) -> Running {
        let registry = Arc::new(Registry::default());
        let provide = |name: &str, driver: Arc<dyn StorageDriver>, steps| {
            let grants = Grants::on_root(self.root(name), steps);
            registry.provide::<Storage>(name, driver, grants, false).unwrap();
        };
        let dirs = |name| Arc::new(Layers::open(&self.root(name)).unwrap());
        for name in ["overlay2", "second"] {
            let overlay2 = gantry_storage_overlay2::Overlay2::new(dirs(name));
            provide(name, Arc::new(overlay2), gantry_storage_overlay2::STEPS);
        }
        let vfs = gantry_storage_vfs::Vfs::new(dirs("vfs"));
        provide("vfs", Arc::new(vfs), gantry_storage_vfs::STEPS);
        registry.mark_down("storage", "broken", "no such disk");
        registry
            .provide::<LayerUsers>("test", self.containers.clone(), Grants::default(), false)
            .unwrap();
        let (layers, admin) = open_with_admin(Parts {
            registry,
            mounts: Arc::new(Mounter),
            blobs: self.blobs.clone(),
            metadata: self.metadata.clone(),
            tasks: Tasks::new("test", &self.stop),
            default: default.to_owned(),
            rules: gantry_storage::Rules::default(),
        })
        .await
        .unwrap();
        admin.settle(None).await;
        Running { layers, admin }
    }

    fn layer(&self, tar: Tar) -> ChainLayer {
        let tar = tar.end();
        let diff_id = Blobs::default().put(tar.clone());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        ChainLayer { diff_id, blob: self.blobs.put(gzip.finish().unwrap()) }
    }

    fn chain(&self) -> Chain {
        let base = Tar::default()
            .dir("./")
            .dir("d")
            .file("d/a", "base")
            .file("d/gone", "")
            .hardlink("d/same", "d/a")
            .dir("replaced")
            .file("replaced/x", "")
            .symlink("link", "d/a");
        let top = Tar::default().dir("d").file("d/.wh.gone", "").file("d/b", "top").file("e/f", "");
        Chain(vec![self.layer(base), self.layer(top)])
    }

    /// A container with changes of every sort.
    async fn container(&self, running: &Running, id: &str, instance: &str) -> LayerUse {
        let chain = self.chain();
        let layer =
            running.layers.create(&cx(), id, &chain, Some(instance), &Labels::new()).await.unwrap();
        let mount = running.layers.mount(&cx(), &layer).await.unwrap();
        change(&path(&mount));
        let layer_use = LayerUse {
            container: id.to_owned(),
            name: format!("name-of-{id}"),
            image: "image".to_owned(),
            chain,
            layer,
            options: Labels::new(),
            running: false,
            started: None,
        };
        self.containers.uses.lock().unwrap().insert(id.to_owned(), layer_use.clone());
        layer_use
    }

    fn instance_of(&self, id: &str) -> String {
        self.containers.uses.lock().unwrap()[id].layer.instance.clone()
    }

    /// Whether `instance` has a layer of container `id`.
    async fn has(&self, running: &Running, id: &str, instance: &str) -> bool {
        let layer = ContainerLayer { key: id.to_owned(), instance: instance.to_owned() };
        running.layers.usage(&cx(), &layer).await.is_ok()
    }
}

fn path(mount: &MountFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_fd().as_raw_fd()))
}

fn change(top: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    std::fs::write(top.join("new"), "x".repeat(100_000)).unwrap();
    std::fs::write(top.join("d/a"), "changed").unwrap();
    std::fs::remove_file(top.join("d/b")).unwrap();
    std::fs::remove_dir_all(top.join("replaced")).unwrap();
    std::fs::create_dir(top.join("replaced")).unwrap();
    std::fs::write(top.join("replaced/y"), "").unwrap();
    std::fs::hard_link(top.join("new"), top.join("new too")).unwrap();
    std::fs::remove_file(top.join("link")).unwrap();
    symlink("nowhere", top.join("link")).unwrap();
    std::fs::set_permissions(top.join("e"), std::fs::Permissions::from_mode(0o1770)).unwrap();
    std::fs::set_permissions(top, std::fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::chown(top.join("e/f"), Some(1000), Some(1001)).unwrap();
    std::os::unix::fs::lchown(top.join("link"), Some(7), Some(8)).unwrap();
    let sparse = std::fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(1 << 26).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).ok();
}

fn request(to: &str) -> MigrateRequest {
    MigrateRequest {
        to: to.to_owned(),
        images: Selection::Word("none".to_owned()),
        containers: Selection::Word("stopped".to_owned()),
        dry_run: false,
        deep: true,
        purge: false,
        rate: None,
    }
}

/// All messages but those about work under way, and the end.
async fn migrate(running: &Running, request: MigrateRequest) -> (Vec<(String, State)>, Message) {
    let migration = running.admin.migration(&cx(), request).await.unwrap();
    let (reports, messages) = Reports::channel();
    tokio::join!(async move { migration.run(&reports).await }, collect(messages),).1
}

async fn collect(
    mut messages: tokio::sync::mpsc::Receiver<Message>,
) -> (Vec<(String, State)>, Message) {
    let mut results = Vec::new();
    while let Some(message) = messages.recv().await {
        match message {
            Message::Item { state: State::Working | State::Comparing, .. } => {}
            Message::Item { id, state, why, .. } => {
                if !why.is_empty() {
                    eprintln!("{id}: {state:?}: {why:?}");
                }
                results.push((id, state));
            }
            end => return (results, end),
        }
    }
    panic!("no end");
}

async fn verify(
    running: &Running,
    instance: &str,
    repair: bool,
) -> (Vec<(String, State)>, Message) {
    let request = VerifyRequest { instance: instance.to_owned(), deep: true, repair };
    let verification = running.admin.verification(request).unwrap();
    let (reports, messages) = Reports::channel();
    tokio::join!(async move { verification.run(&reports).await }, collect(messages),).1
}

async fn tree(running: &Running, host: &Host, id: &str) -> BTreeMap<String, String> {
    let layer = host.containers.uses.lock().unwrap()[id].layer.clone();
    let mount = running.layers.mount(&cx(), &layer).await.unwrap();
    let mut tree = snapshot(&path(&mount)).unwrap();
    tree.remove("./socket");
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn root_containers_go_round_and_nothing_changes() {
    let Some(host) = Host::new() else { return };
    let running = host.start("overlay2").await;
    host.container(&running, "c1", "overlay2").await;
    host.container(&running, "c2", "overlay2").await;
    let before = [tree(&running, &host, "c1").await, tree(&running, &host, "c2").await];
    let mut at = "overlay2";
    for to in ["vfs", "second", "overlay2"] {
        let running = host.start(to).await;
        let dry = MigrateRequest { dry_run: true, ..request(to) };
        let (results, _) = migrate(&running, dry).await;
        assert_eq!(results, [("c1", State::Planned), ("c2", State::Planned)].map(owned), "{to}");
        assert_eq!(host.instance_of("c1"), at);
        let (results, end) = migrate(&running, request(to)).await;
        assert_eq!(results, [("c1", State::Done), ("c2", State::Done)].map(owned), "{to}");
        assert!(matches!(end, Message::End { done: 2, failed: 0, error: None, .. }), "{end:?}");
        for (id, before) in ["c1", "c2"].into_iter().zip(&before) {
            assert_eq!(host.instance_of(id), to);
            assert_same(before, &tree(&running, &host, id).await, to);
            assert!(host.has(&running, id, at).await, "the old layer is kept until a start");
        }
        let (results, _) = migrate(&running, request(to)).await;
        assert_eq!(results, [("c1", State::Present), ("c2", State::Present)].map(owned));
        let (_, end) = verify(&running, to, false).await;
        assert!(matches!(end, Message::End { done: 2, failed: 0, skipped: 0, .. }), "{end:?}");
        at = to;
    }
    // Everything that was left on the way goes when the containers have been started.
    let running = host.start("overlay2").await;
    let started = SystemTime::now() + Duration::from_secs(1);
    host.containers.uses.lock().unwrap().get_mut("c1").unwrap().started = Some(started);
    running.admin.settle(Some("c1")).await;
    for instance in ["vfs", "second"] {
        assert!(!host.has(&running, "c1", instance).await);
        assert!(host.has(&running, "c2", instance).await);
    }
    let purge = MigrateRequest { purge: true, ..request("overlay2") };
    migrate(&running, purge).await;
    assert!(!host.has(&running, "c2", "vfs").await && !host.has(&running, "c2", "second").await);
    assert_same(&before[1], &tree(&running, &host, "c2").await, "after purging");
    assert_eq!(running.admin.report(&cx(), true).await.unwrap()[0].kept, 0);
}

fn owned((id, state): (&str, State)) -> (String, State) {
    (id.to_owned(), state)
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_cannot_move_stays_and_says_why() {
    let Some(host) = Host::new() else { return };
    let running = host.start("overlay2").await;
    for id in ["fails", "limited", "runs"] {
        host.container(&running, id, "overlay2").await;
    }
    {
        let mut uses = host.containers.uses.lock().unwrap();
        uses.get_mut("runs").unwrap().running = true;
        let options = Labels::from([("no such option".to_owned(), "1".to_owned())]);
        uses.get_mut("limited").unwrap().options = options;
    }
    let before = tree(&running, &host, "fails").await;
    *host.containers.refuse_moves.lock().unwrap() = true;
    let (results, end) = migrate(&running, request("vfs")).await;
    let expected =
        [("fails", State::Failed), ("limited", State::Skipped), ("runs", State::Skipped)];
    assert_eq!(results, expected.map(owned));
    assert!(matches!(end, Message::End { skipped: 2, failed: 1, error: None, .. }), "{end:?}");
    assert_eq!(host.instance_of("fails"), "overlay2");
    assert!(!host.has(&running, "fails", "vfs").await, "what was copied in vain is gone");
    assert_same(&before, &tree(&running, &host, "fails").await, "after a failure");

    let refused = |to: &str, containers: Selection| {
        let (admin, request) =
            (running.admin.clone(), MigrateRequest { containers, ..request(to) });
        async move { admin.migration(&cx(), request).await.map(drop).unwrap_err() }
    };
    let stopped = || Selection::Word("stopped".to_owned());
    assert_eq!(refused("nope", stopped()).await.kind(), ErrorKind::InvalidArgument);
    let down = refused("broken", stopped()).await;
    assert_eq!(down.kind(), ErrorKind::Unavailable);
    assert!(down.to_string().contains("no such disk"), "{down}");
    let unknown = refused("vfs", Selection::List(vec!["x".to_owned()])).await;
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let word = refused("vfs", Selection::Word("running".to_owned())).await;
    assert_eq!(word.kind(), ErrorKind::InvalidArgument);
    let first = running.admin.migration(&cx(), request("vfs")).await.unwrap();
    assert_eq!(refused("vfs", stopped()).await.kind(), ErrorKind::Conflict);
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_cancelled_migration_leaves_the_old_layer_in_charge() {
    let Some(host) = Host::new() else { return };
    let running = host.start("overlay2").await;
    host.container(&running, "c", "overlay2").await;
    let before = tree(&running, &host, "c").await;
    // 100 kB at this rate take longer than anybody waits.
    let slow = MigrateRequest { rate: Some(20_000), ..request("vfs") };
    let migration = running.admin.migration(&cx(), slow).await.unwrap();
    let cancel = migration.cancellation();
    let (reports, messages) = Reports::channel();
    let (_, (results, end), ()) =
        tokio::join!(async move { migration.run(&reports).await }, collect(messages), async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            cancel.cancel();
        });
    assert_eq!(results, [("c", State::Failed)].map(owned));
    assert!(matches!(end, Message::End { error: Some(_), .. }), "{end:?}");
    assert_eq!(host.instance_of("c"), "overlay2");
    assert!(!host.has(&running, "c", "vfs").await);
    assert_same(&before, &tree(&running, &host, "c").await, "after cancelling");
    let (results, _) = migrate(&running, request("vfs")).await;
    assert_eq!(results, [("c", State::Done)].map(owned), "a second run goes on");
    assert_same(&before, &tree(&running, &host, "c").await, "after the second run");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_damage_is_found_and_dropped_unless_something_stands_on_it() {
    let Some(host) = Host::new() else { return };
    let running = host.start("overlay2").await;
    let chain = host.chain();
    for instance in ["overlay2", "vfs"] {
        running.layers.unpack(&cx(), &chain, Some(instance), None).await.unwrap();
        let (results, end) = verify(&running, instance, false).await;
        assert_eq!(results.len(), 2, "{results:?}");
        assert!(matches!(end, Message::End { done: 2, failed: 0, .. }), "{end:?}");
        for damage in damages() {
            damage(&content(&host.root(instance), "d/b"));
            let (_, end) = verify(&running, instance, false).await;
            assert!(matches!(end, Message::End { done: 1, failed: 1, .. }), "{end:?}");
            let layers = &running.layers;
            let options = Labels::new();
            let user = layers.create(&cx(), "c", &chain, Some(instance), &options).await.unwrap();
            let (_, end) = verify(&running, instance, true).await;
            assert!(matches!(end, Message::End { failed: 1, .. }), "a container uses it: {end:?}");
            layers.remove(&cx(), &user).await.unwrap();
            let (_, end) = verify(&running, instance, true).await;
            assert!(matches!(end, Message::End { done: 2, failed: 0, .. }), "{end:?}");
            running.layers.unpack(&cx(), &chain, Some(instance), None).await.unwrap();
            let (_, end) = verify(&running, instance, false).await;
            assert!(matches!(end, Message::End { done: 2, failed: 0, .. }), "{end:?}");
        }
    }
}

type Damage = fn(&Path);

/// What a disk, or somebody with a shell, does to a file.
fn damages() -> [Damage; 4] {
    use std::os::unix::fs::PermissionsExt;
    [
        |path| {
            let time = std::fs::metadata(path).unwrap().modified().unwrap();
            std::fs::write(path, "tap").unwrap();
            std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        },
        |path| std::fs::remove_file(path).unwrap(),
        |path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755)).unwrap(),
        |path| std::fs::write(path.with_file_name("foreign"), "").unwrap(),
    ]
}

/// Where the newest layer with `file` has it.
fn content(root: &Path, file: &str) -> PathBuf {
    let layers = std::fs::read_dir(root.join("l")).unwrap();
    let mut found: Vec<(u64, PathBuf)> = layers
        .filter_map(|entry| {
            let dir = entry.unwrap();
            let number = dir.file_name().to_str()?.parse().ok()?;
            let inner = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
            let path = inner.map(|inner| inner.join(file)).find(|path| path.exists())?;
            Some((number, path))
        })
        .collect();
    found.sort();
    found.pop().unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn root_an_instance_in_use_is_not_dropped_and_never_a_containers_layer() {
    let Some(host) = Host::new() else { return };
    let running = host.start("overlay2").await;
    let mut free = host.chain();
    free.0.push(host.layer(Tar::default().file("free", "")));
    running.layers.unpack(&cx(), &free, None, None).await.unwrap();
    host.container(&running, "c", "overlay2").await;
    let drop_all = |force| {
        let request = DropRequest { instance: "overlay2".to_owned(), force };
        let admin = running.admin.clone();
        async move { admin.drop_layers(&cx(), &request).await }
    };
    let error = drop_all(false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("container name-of-c (stopped)"), "{error}");
    let dropped = drop_all(true).await.unwrap();
    assert_eq!((dropped.layers, dropped.left), (1, 2));
    tree(&running, &host, "c").await;

    migrate(&running, request("vfs")).await;
    let error = drop_all(false).await.unwrap_err();
    assert!(error.to_string().contains("the old layer of container c"), "{error}");
    let reports = running.admin.report(&cx(), true).await.unwrap();
    let names: Vec<_> = reports.iter().map(|report| report.name.as_str()).collect();
    assert_eq!(names, ["overlay2", "broken", "second", "vfs"]);
    assert_eq!((reports[0].kept, reports[0].containers, reports[0].layers), (1, 0, 2));
    assert_eq!(reports[1].down.as_deref(), Some("no such disk"));
    assert_eq!((reports[3].containers, reports[3].layers), (1, 2));
    assert!(reports[3].written.unwrap() > 100_000);
    migrate(&running, MigrateRequest { purge: true, ..request("vfs") }).await;
    let dropped = drop_all(false).await.unwrap();
    assert_eq!((dropped.layers, dropped.left), (2, 0));
    tree(&running, &host, "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_start_after_a_crash_puts_moves_right() {
    let Some(host) = Host::new() else { return };
    let running = host.start("overlay2").await;
    for id in ["flipped", "half", "removed"] {
        host.container(&running, id, "overlay2").await;
    }
    let before = tree(&running, &host, "half").await;
    // As if the daemon were killed: the intents are written, the copies are there or half there.
    for id in ["flipped", "half", "removed"] {
        let intent = serde_json::json!({
            "container": id, "key": id, "from": "overlay2", "to": "vfs",
            "stage": "copying", "at": SystemTime::now(),
        });
        let put = gantry_sdk::kinds::metadata::Change::put_json(
            "layer-moves",
            format!("{id}/overlay2"),
            &intent,
        );
        use gantry_sdk::kinds::metadata::MetadataStore;
        host.metadata.commit(&cx(), vec![put.unwrap()]).await.unwrap();
        let chain = host.chain();
        running.layers.create(&cx(), id, &chain, Some("vfs"), &Labels::new()).await.unwrap();
    }
    drop(running);
    {
        let mut uses = host.containers.uses.lock().unwrap();
        uses.get_mut("flipped").unwrap().layer.instance = "vfs".to_owned();
        uses.remove("removed");
    }
    let running = host.start("overlay2").await;
    assert!(host.has(&running, "flipped", "vfs").await);
    assert!(host.has(&running, "flipped", "overlay2").await, "kept until it is started");
    assert!(!host.has(&running, "half", "vfs").await, "the copy counts for nothing");
    assert_same(&before, &tree(&running, &host, "half").await, "the original");
    for instance in ["vfs", "overlay2"] {
        assert!(!host.has(&running, "removed", instance).await);
    }
    running.admin.settle(None).await;
    assert_eq!(running.admin.report(&cx(), false).await.unwrap()[0].kept, 1);
    let _: Option<Digest> = host.chain().id();
}
