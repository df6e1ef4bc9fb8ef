//! The `local` volume driver: directories of this machine, or whatever its operator wants mounted.
//!
//! # Map
//!
//! - [`options`]: `type`, `device`, `o`
//! - [`directory`]: volumes on disk
//!
//! # Invariants
//!
//! 1. A volume is on disk before a caller hears "created".
//! 2. A published volume is not removed.
//!
//! # Not here
//!
//! Mounting: a publication is a plan. Volumes with options are mounted anew by each plan; that users
//! of one share a mount is the store's business.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use gantry_sdk::kinds::volume::{Scope, Volume, VolumeDriver, VolumeInfo};
use gantry_sdk::mounts::{Grants, MountPlan, PathRef, Place, Step};
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{
    Context, Ctx, Descriptor, Error, Init, Labels, Phase, Plugin, Provide, Registration, Result,
};

pub mod directory;
pub mod options;

use directory::{DATA, Directory, check_name};
use options::Options;

/// What the driver's plans consist of.
const STEPS: &[&str] = &["bind", "host"];

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Volume::NAME, "local")],
    ..Descriptor::new("volume.local", Phase::Volume)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(LocalPlugin)) }

struct LocalPlugin;

#[async_trait]
impl Plugin for LocalPlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let root = cx.data_dir("volumes")?;
        let driver = Local::new(root.clone());
        let leftovers = driver.directory.clone();
        // May be long, and nobody waits for it.
        cx.tasks.spawn("volume-clean", async move {
            let _ = tokio::task::spawn_blocking(move || leftovers.clean()).await;
        });
        let grants = Grants::on_root(root, STEPS);
        cx.provide_driver::<Volume>("local", Arc::new(driver), grants)?;
        Ok(Init::Ready)
    }
}

/// The driver.
#[derive(Debug)]
pub struct Local {
    directory: Directory,
    users: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Local {
    /// Volumes beneath `root`, which exists.
    pub fn new(root: PathBuf) -> Self {
        Self { directory: Directory::new(root), users: Mutex::default() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = self.directory.clone();
        tokio::task::spawn_blocking(move || work(&directory)).await?
    }

    async fn find(&self, name: &str) -> Result<directory::Found> {
        let wanted = name.to_owned();
        let found = if check_name(name).is_ok() {
            self.blocking(move |directory| directory.find(&wanted)).await?
        } else {
            None
        };
        found.ok_or_else(|| Error::not_found("volume not found"))
    }

    fn users(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl VolumeDriver for Local {
    async fn create(&self, _: &Ctx, name: &str, options: &Labels) -> Result<()> {
        check_name(name)?;
        let (name, options) = (name.to_owned(), Options::parse(options)?);
        self.blocking(move |directory| directory.create(&name, &options)).await
    }

    async fn remove(&self, _: &Ctx, name: &str) -> Result<()> {
        if check_name(name).is_err() {
            return Ok(());
        }
        if let Some(users) = self.users().get(name) {
            let users = users.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::busy(format!("volume has active mounts - [{users}]")));
        }
        let name = name.to_owned();
        self.blocking(move |directory| directory.remove(&name)).await
    }

    async fn get(&self, _: &Ctx, name: &str) -> Result<VolumeInfo> {
        self.find(name).await.map(|found| found.info)
    }

    async fn list(&self, _: &Ctx, after: Option<&str>, limit: u32) -> Result<Vec<VolumeInfo>> {
        let after = after.map(str::to_owned);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.blocking(move |directory| directory.list(after.as_deref(), limit)).await
    }

    async fn publish(&self, _: &Ctx, name: &str, user: &str) -> Result<MountPlan> {
        let found = self.find(name).await?;
        let step = match found.options.filter(Options::needs_mount) {
            Some(options) => Step::Host {
                fs_type: options.mount_type,
                device: options.mount_device,
                options: options.mount_opts,
            },
            None => Step::Bind {
                source: Place::Path(PathRef::new("root", format!("{name}/{DATA}"))),
                read_only: false,
                recursive: false,
            },
        };
        self.users().entry(name.to_owned()).or_default().insert(user.to_owned());
        Ok(MountPlan::of(vec![step]))
    }

    async fn unpublish(&self, _: &Ctx, name: &str, user: &str) -> Result<()> {
        let mut all = self.users();
        if let Some(users) = all.get_mut(name) {
            users.remove(user);
            if users.is_empty() {
                all.remove(name);
            }
        }
        Ok(())
    }

    fn scope(&self) -> Scope {
        Scope::Local
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::ErrorKind;
    use std::os::unix::fs::PermissionsExt;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn driver() -> (tempfile::TempDir, Local) {
        let dir = tempfile::tempdir().unwrap();
        let driver = Local::new(dir.path().to_owned());
        (dir, driver)
    }

    #[tokio::test]
    async fn a_volume_lives_as_the_reference_lays_it_out() {
        let (dir, driver) = driver();
        let cx = Ctx::background();
        driver.create(&cx, "plain", &Labels::new()).await.unwrap();
        driver.create(&cx, "plain", &Labels::new()).await.unwrap();
        let data = dir.path().join("plain/_data");
        assert_eq!(data.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
        assert!(!dir.path().join("plain/opts.json").exists());
        let info = driver.get(&cx, "plain").await.unwrap();
        assert_eq!(info.mountpoint, data.display().to_string());
        assert!(info.created.ends_with('Z'), "{}", info.created);

        let options = labels(&[("type", "tmpfs"), ("device", "tmpfs")]);
        let other = driver.create(&cx, "plain", &options).await.unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Conflict);
        driver.create(&cx, "memory", &options).await.unwrap();
        driver.create(&cx, "memory", &options).await.unwrap();
        let other = driver.create(&cx, "memory", &Labels::new()).await.unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Conflict);

        std::fs::create_dir(dir.path().join("not-a-volume")).unwrap();
        let names = |list: Vec<VolumeInfo>| list.into_iter().map(|v| v.name).collect::<Vec<_>>();
        assert_eq!(names(driver.list(&cx, None, 9).await.unwrap()), ["memory", "plain"]);
        assert_eq!(names(driver.list(&cx, None, 1).await.unwrap()), ["memory"]);
        assert_eq!(names(driver.list(&cx, Some("memory"), 9).await.unwrap()), ["plain"]);

        std::fs::write(data.join("file"), "x").unwrap();
        driver.remove(&cx, "plain").await.unwrap();
        driver.remove(&cx, "plain").await.unwrap();
        assert_eq!(driver.get(&cx, "plain").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("plain").exists());
    }

    #[tokio::test]
    async fn names_that_are_no_directories_are_refused() {
        let (dir, driver) = driver();
        let cx = Ctx::background();
        for name in ["", "a", "../x", "a/b", ".hidden", &"x".repeat(256)] {
            let error = driver.create(&cx, name, &Labels::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}");
            assert_eq!(driver.get(&cx, name).await.unwrap_err().kind(), ErrorKind::NotFound);
            driver.remove(&cx, name).await.unwrap();
        }
        assert!(dir.path().exists());
    }

    #[tokio::test]
    async fn plans_follow_the_options_and_keep_the_volume() {
        let (_dir, driver) = driver();
        let cx = Ctx::background();
        driver.create(&cx, "plain", &Labels::new()).await.unwrap();
        let nfs = labels(&[("type", "nfs"), ("device", ":/x"), ("o", "addr=192.0.2.1")]);
        driver.create(&cx, "share", &nfs).await.unwrap();
        let plan = driver.publish(&cx, "plain", "c1").await.unwrap();
        let source = Place::Path(PathRef::new("root", "plain/_data"));
        assert_eq!(plan.steps, [Step::Bind { source, read_only: false, recursive: false }]);
        let plan = driver.publish(&cx, "share", "c1").await.unwrap();
        let expected = Step::Host {
            fs_type: "nfs".to_owned(),
            device: ":/x".to_owned(),
            options: "addr=192.0.2.1".to_owned(),
        };
        assert_eq!(plan.steps, [expected]);
        assert!(STEPS.contains(&"host") && plan.steps.iter().all(|s| STEPS.contains(&s.name())));

        let busy = driver.remove(&cx, "plain").await.unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy);
        assert!(busy.to_string().contains("[c1]"));
        driver.unpublish(&cx, "plain", "c1").await.unwrap();
        driver.unpublish(&cx, "plain", "c1").await.unwrap();
        driver.remove(&cx, "plain").await.unwrap();
        assert!(driver.publish(&cx, "plain", "c1").await.is_err());
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_go_and_are_never_volumes() {
        let (dir, driver) = driver();
        for name in [".new-1", ".trash-2", "kept"] {
            std::fs::create_dir_all(dir.path().join(name).join(DATA)).unwrap();
        }
        assert_eq!(driver.list(&Ctx::background(), None, 9).await.unwrap().len(), 1);
        driver.directory.clean();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
