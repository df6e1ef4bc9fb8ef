//! Keeps the registry in step with the directories, and with which plugins answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::kinds::volume::Volume;
use gantry_sdk::registry::{Kind as _, Registry};
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{Ctx, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::client::{Fault, call};
use crate::discover::{Found, Print, scan};
use crate::seat::{Manifest, Seat};
use crate::settings::Settings;
use crate::volume;
use crate::watch::Watcher;

/// The table of the metadata database: what plugins said of themselves, by name.
pub(crate) const TABLE: &str = "socket-plugins";
/// How long a plugin may take to say what it is; one that was in service is missed sooner.
const ACTIVATION: Duration = Duration::from_secs(5);
const PROBE: Duration = Duration::from_secs(1);
/// Between two questions to a plugin that does not answer: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The most kinds of one plugin that are looked at.
const MAX_KINDS: usize = 32;

/// What is kept of a plugin over a restart of the daemon: it need not be asked before it is used.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    print: Print,
    manifest: Manifest,
}

/// A plugin whose file is there.
#[derive(Debug)]
struct Known {
    found: Found,
    /// None if its file names no usable address.
    seat: Option<Arc<Seat>>,
    stop: CancellationToken,
}

pub(crate) struct Keeper {
    settings: Settings,
    registry: Arc<Registry>,
    metadata: Arc<dyn MetadataStore>,
    watcher: Watcher,
    known: Mutex<BTreeMap<String, Known>>,
    /// Names that others provide, so that each is complained about once.
    taken: Mutex<BTreeSet<String>>,
}

impl Keeper {
    pub(crate) fn new(
        settings: Settings,
        registry: Arc<Registry>,
        metadata: Arc<dyn MetadataStore>,
    ) -> Self {
        let watcher = Watcher::new();
        let (known, taken) = (Mutex::default(), Mutex::default());
        Self { settings, registry, metadata, watcher, known, taken }
    }

    /// Finds what is there now, without dialling, and follows changes from then on.
    pub(crate) async fn start(self: &Arc<Self>, tasks: &Tasks) -> Result<()> {
        let mut remembered = BTreeMap::new();
        for (name, text) in self.metadata.scan(&Ctx::background(), TABLE, "").await? {
            if let Ok(kept) = serde_json::from_slice::<Remembered>(&text) {
                remembered.insert(name, kept);
            }
        }
        self.look(tasks, &remembered).await;
        let (keeper, tasks_of) = (self.clone(), tasks.clone());
        tasks.spawn("socket-plugins", async move {
            let follow = async {
                loop {
                    keeper.watcher.changed().await;
                    keeper.look(&tasks_of, &BTreeMap::new()).await;
                }
            };
            tokio::select! {
                () = follow => {}
                () = tasks_of.stopping().cancelled() => {}
            }
        });
        Ok(())
    }

    /// Compares the directories with what is known.
    async fn look(self: &Arc<Self>, tasks: &Tasks, remembered: &BTreeMap<String, Remembered>) {
        let keeper = self.clone();
        let scanned = tokio::task::spawn_blocking(move || {
            keeper.watcher.watch(&keeper.settings);
            scan(&keeper.settings)
        });
        let mut found = match scanned.await {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "Cannot look for plugins."),
        };
        let mut known = self.known.lock().await;
        let gone = known
            .iter()
            .filter(|(name, known)| found.get(*name) != Some(&known.found))
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>();
        for name in gone {
            if let Some(old) = known.remove(&name) {
                self.dismiss(&name, &old).await;
            }
        }
        found.retain(|name, _| !known.contains_key(name));
        for (name, found) in found {
            if self.is_taken(&name).await {
                continue;
            }
            let kept = remembered.get(&name).filter(|kept| kept.print == found.print);
            let new = self.admit(&name, found, kept.map(|kept| &kept.manifest), tasks);
            known.insert(name, new);
        }
    }

    async fn dismiss(&self, name: &str, old: &Known) {
        old.stop.cancel();
        match &old.seat {
            Some(seat) => seat.leave(),
            None => self.registry.withdraw(Volume::NAME, name),
        }
        tracing::info!(plugin = name, file = %old.found.print.path().display(), "A plugin left.");
        let forget = vec![Change::delete(TABLE, name)];
        if let Err(error) = self.metadata.commit(&Ctx::background(), forget).await {
            tracing::warn!(plugin = name, error = %error.chain(), "Cannot forget a plugin.");
        }
    }

    /// Whether something else has the name, as the drivers of this build have theirs.
    async fn is_taken(&self, name: &str) -> bool {
        let slots = self.registry.slots();
        let taken = slots.iter().any(|(kind, slot, _)| *kind == Volume::NAME && slot == name);
        let mut complained = self.taken.lock().await;
        if !taken {
            complained.remove(name);
        } else if complained.insert(name.to_owned()) {
            tracing::warn!(plugin = name, "A plugin is left out: its name is taken.");
        }
        taken
    }

    fn admit(
        self: &Arc<Self>,
        name: &str,
        found: Found,
        remembered: Option<&Manifest>,
        tasks: &Tasks,
    ) -> Known {
        let stop = tasks.stopping().child_token();
        let address = match &found.address {
            Ok(address) => address.clone(),
            Err(why) => {
                tracing::warn!(plugin = name, why, "A plugin has no usable address.");
                self.registry.mark_down(Volume::NAME, name, why.clone());
                return Known { found, seat: None, stop };
            }
        };
        let seat = Seat::new(name, address, self.registry.clone());
        match remembered.map(|manifest| seat.offer(manifest)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => drop(seat.down(&error.chain())),
            None => drop(seat.down("its plugin has not answered yet")),
        }
        let (keeper, kept, ended) = (self.clone(), seat.clone(), stop.clone());
        let print = found.print.clone();
        tasks.spawn("socket-plugin", async move {
            tokio::select! {
                () = keeper.keep(&kept, &print) => {}
                () = ended.cancelled() => {}
            }
        });
        Known { found, seat: Some(seat), stop }
    }

    /// Asks the plugin what it is until it says, and again whenever a call had no answer.
    async fn keep(&self, seat: &Seat, print: &Print) {
        let (mut limit, mut pause) = (ACTIVATION, FIRST_PAUSE);
        loop {
            match activate(seat, limit).await {
                Ok(manifest) => {
                    match seat.offer(&manifest) {
                        Ok(true) => {
                            tracing::info!(plugin = seat.name, ?manifest, "A plugin is ready.");
                            self.remember(seat, print, manifest).await;
                        }
                        Ok(false) => {}
                        Err(error) => drop(seat.down(&error.chain())),
                    }
                    seat.line.suspect.notified().await;
                    (limit, pause) = (PROBE, FIRST_PAUSE);
                }
                // It does one thing at a time, perhaps; that one has a deadline of its own.
                Err(_) if seat.is_working() => tokio::time::sleep(PROBE).await,
                Err(fault) => {
                    let why = gantry_sdk::Error::unavailable(format!(
                        "its plugin ({}) does not answer",
                        print.path().display()
                    ))
                    .caused_by(fault)
                    .chain();
                    if seat.down(&why) {
                        tracing::warn!(plugin = seat.name, why, "A plugin is down.");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    limit = ACTIVATION;
                }
            }
        }
    }

    async fn remember(&self, seat: &Seat, print: &Print, manifest: Manifest) {
        let kept = Remembered { print: print.clone(), manifest };
        let change = Change::put_json(TABLE, &seat.name, &kept);
        let done = match change {
            Ok(change) => self.metadata.commit(&Ctx::background(), vec![change]).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(plugin = seat.name, error = %error.chain(), "Cannot remember a plugin.");
        }
    }
}

async fn activate(seat: &Seat, limit: Duration) -> Result<Manifest, Fault> {
    #[derive(Deserialize)]
    struct Activated {
        #[serde(rename = "Implements")]
        implements: Option<Vec<String>>,
    }
    let answer = call::<(), Activated>(&seat.address, "Plugin.Activate", None, limit).await?;
    let kinds = answer.implements.unwrap_or_default();
    let mut manifest = Manifest::default();
    for kind in kinds.iter().take(MAX_KINDS) {
        if kind == "VolumeDriver" {
            manifest.volumes = Some(volume::scope(&seat.address, limit).await);
        } else {
            tracing::warn!(plugin = seat.name, kind, "A plugin has a kind that is not carried.");
        }
    }
    Ok(manifest)
}
