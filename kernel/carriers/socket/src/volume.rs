//! Volumes of a plugin that implements `VolumeDriver`.
//!
//! Source: Docker's volume plugin protocol; deadlines are those of the reference engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_sdk::kinds::volume::{Scope, VolumeDriver, VolumeInfo};
use gantry_sdk::mounts::{Grants, MountPlan, Step};
use gantry_sdk::{Ctx, Error, ErrorKind, Labels, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::client::{Fault, call};
use crate::discover::Address;

/// Making and mounting may wait for a device or a server.
const LONG: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(60);
/// Asking for the path of a volume that has none may not hold up what it is asked for.
const PATH: Duration = Duration::from_secs(2);
/// The plugin's own deadline is this much nearer than the caller's, who then learns why.
const MARGIN: Duration = Duration::from_millis(10);
/// What only reads and takes longer makes the keeper ask whether the plugin is there at all.
const PATIENCE: Duration = Duration::from_millis(250);

/// A volume driver in another process.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) name: String,
    pub(crate) address: Address,
    pub(crate) scope: Scope,
    /// What its calls and its keeper tell each other.
    pub(crate) line: Arc<Line>,
}

/// Between the calls of one plugin and whoever keeps it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Calls say that one had no answer, or waits long for one.
    pub(crate) suspect: Notify,
    /// The keeper says that the plugin is down: calls that only read need not wait any longer.
    pub(crate) down: Notify,
    /// Calls under way that change something. A plugin that does one thing at a time answers nobody
    /// meanwhile, and is not down.
    working: AtomicUsize,
}

impl Line {
    /// Whether the plugin may be busy with what it was asked for.
    pub(crate) fn is_working(&self) -> bool {
        self.working.load(Ordering::SeqCst) > 0
    }
}

/// Counts a call that changes something, until dropped.
struct Working<'a>(&'a Line);

impl<'a> Working<'a> {
    fn new(line: &'a Line) -> Self {
        line.working.fetch_add(1, Ordering::SeqCst);
        Self(line)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    name: &'a str,
    opts: &'a Labels,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Named<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Used<'a> {
    name: &'a str,
    #[serde(rename = "ID")]
    user: &'a str,
}

#[derive(Serialize)]
struct Nothing {}

/// An answer of which nothing is wanted.
#[derive(Deserialize)]
struct Done {}

#[derive(Deserialize)]
struct Got {
    #[serde(rename = "Volume")]
    volume: Option<Seen>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Volumes")]
    volumes: Option<Vec<Option<Seen>>>,
}

#[derive(Deserialize)]
struct Mounted {
    #[serde(rename = "Mountpoint", default)]
    mountpoint: String,
}

/// A volume as the plugin shows it; null and missing are the same.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Seen {
    name: Option<String>,
    mountpoint: Option<String>,
    created_at: Option<String>,
    status: Option<BTreeMap<String, serde_json::Value>>,
}

impl Seen {
    fn into_info(self, name: String) -> VolumeInfo {
        let text = |value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let status = self.status.unwrap_or_default().into_iter();
        VolumeInfo {
            name,
            created: self.created_at.unwrap_or_default(),
            mountpoint: self.mountpoint.unwrap_or_default(),
            status: status.map(|(key, value)| (key, text(value))).collect(),
        }
    }
}

/// What such drivers may put into their plans: what they mounted themselves.
pub(crate) fn grants() -> Grants {
    Grants { steps: ["premounted"].into(), ..Grants::default() }
}

/// The scope that a plugin claims; local if it does not say.
pub(crate) async fn scope(address: &Address, limit: Duration) -> Scope {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Capabilities")]
        capabilities: Capabilities,
    }
    #[derive(Deserialize)]
    struct Capabilities {
        #[serde(rename = "Scope", default)]
        scope: String,
    }
    let answer = call(address, "VolumeDriver.Capabilities", Some(&Nothing {}), limit).await;
    match answer {
        Ok(Answer { capabilities: Capabilities { scope } }) if scope == "global" => Scope::Global,
        _ => Scope::Local,
    }
}

impl Driver {
    /// A call that changes something: it has all the time of its limit.
    async fn tell<A: Serialize + Sync, R: DeserializeOwned>(
        &self,
        cx: &Ctx,
        method: &str,
        arguments: &A,
        limit: Duration,
    ) -> std::result::Result<R, Fault> {
        let _working = Working::new(&self.line);
        let answer = self.call(cx, method, arguments, limit).await;
        self.judge(&answer);
        answer
    }

    /// A call that only reads: it ends early if the plugin turns out to answer nobody.
    async fn ask<A: Serialize + Sync, R: DeserializeOwned>(
        &self,
        cx: &Ctx,
        method: &str,
        arguments: &A,
        limit: Duration,
    ) -> std::result::Result<R, Fault> {
        let down = self.line.down.notified();
        let mut call = std::pin::pin!(self.call(cx, method, arguments, limit));
        let answer = match tokio::time::timeout(PATIENCE, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                self.line.suspect.notify_one();
                tokio::select! {
                    biased;
                    answer = call => answer,
                    () = down => return Err(Fault::Down),
                }
            }
        };
        self.judge(&answer);
        answer
    }

    fn judge<R>(&self, answer: &std::result::Result<R, Fault>) {
        if answer.as_ref().is_err_and(|fault| !fault.is_answer()) {
            self.line.suspect.notify_one();
        }
    }

    async fn call<A: Serialize + Sync, R: DeserializeOwned>(
        &self,
        cx: &Ctx,
        method: &str,
        arguments: &A,
        limit: Duration,
    ) -> std::result::Result<R, Fault> {
        let left = cx
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()).saturating_sub(MARGIN));
        let limit = left.map_or(limit, |left| left.min(limit));
        call(&self.address, &format!("VolumeDriver.{method}"), Some(arguments), limit).await
    }

    fn context(&self, method: &str) -> String {
        format!("volume driver {}: VolumeDriver.{method}", self.name)
    }

    /// The volume as the plugin shows it; none if it knows none of that name. The protocol has no
    /// error for that, so any refusal says so.
    async fn look(&self, cx: &Ctx, name: &str) -> Result<Option<VolumeInfo>> {
        match self.ask::<_, Got>(cx, "Get", &Named { name }, SHORT).await {
            Ok(got) => Ok(got.volume.map(|seen| seen.into_info(name.to_owned()))),
            Err(Fault::Refused(_)) => Ok(None),
            Err(fault) => Err(fault.into_error(&self.context("Get"), ErrorKind::NotFound)),
        }
    }
}

#[async_trait]
impl VolumeDriver for Driver {
    async fn create(&self, cx: &Ctx, name: &str, options: &Labels) -> Result<()> {
        // One that it has is as good as one that it makes; plugins differ in what they say to it.
        if matches!(self.look(cx, name).await, Ok(Some(_))) {
            return Ok(());
        }
        let wanted = Create { name, opts: options };
        let made = self.tell::<_, Done>(cx, "Create", &wanted, LONG).await;
        made.map(drop)
            .map_err(|fault| fault.into_error(&self.context("Create"), ErrorKind::InvalidArgument))
    }

    async fn remove(&self, cx: &Ctx, name: &str) -> Result<()> {
        match self.tell::<_, Done>(cx, "Remove", &Named { name }, SHORT).await {
            Ok(Done {}) => Ok(()),
            Err(fault) => {
                let refused = matches!(fault, Fault::Refused(_));
                if refused && matches!(self.look(cx, name).await, Ok(None)) {
                    return Ok(());
                }
                Err(fault.into_error(&self.context("Remove"), ErrorKind::Conflict))
            }
        }
    }

    async fn get(&self, cx: &Ctx, name: &str) -> Result<VolumeInfo> {
        let found = self.look(cx, name).await?;
        let mut info = found.ok_or_else(|| Error::not_found(format!("no such volume: {name}")))?;
        if info.mountpoint.is_empty() {
            // A plugin may have no path for what is not mounted; that is no failure.
            let path = self.ask::<_, Mounted>(cx, "Path", &Named { name }, PATH).await;
            info.mountpoint = path.map(|path| path.mountpoint).unwrap_or_default();
        }
        Ok(info)
    }

    async fn list(&self, cx: &Ctx, after: Option<&str>, limit: u32) -> Result<Vec<VolumeInfo>> {
        let listed = self.ask::<_, Listed>(cx, "List", &Nothing {}, SHORT).await;
        let listed =
            listed.map_err(|fault| fault.into_error(&self.context("List"), ErrorKind::Conflict))?;
        let all: BTreeMap<String, Seen> = listed
            .volumes
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|mut seen| Some((seen.name.take()?, seen)))
            .filter(|(name, _)| !name.is_empty() && after.is_none_or(|after| name.as_str() > after))
            .collect();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(all.into_iter().take(limit).map(|(name, seen)| seen.into_info(name)).collect())
    }

    async fn publish(&self, cx: &Ctx, name: &str, user: &str) -> Result<MountPlan> {
        let mounted = self.tell::<_, Mounted>(cx, "Mount", &Used { name, user }, LONG).await;
        let mounted = mounted
            .map_err(|fault| fault.into_error(&self.context("Mount"), ErrorKind::Conflict))?;
        if mounted.mountpoint.is_empty() {
            let what = format!("{}: the answer names no mountpoint", self.context("Mount"));
            return Err(Error::new(ErrorKind::Internal, what));
        }
        Ok(MountPlan::of(vec![Step::Premounted { host_path: mounted.mountpoint.into() }]))
    }

    async fn unpublish(&self, cx: &Ctx, name: &str, user: &str) -> Result<()> {
        match self.tell::<_, Done>(cx, "Unmount", &Used { name, user }, SHORT).await {
            Ok(Done {}) => Ok(()),
            Err(Fault::Refused(why)) => {
                // It may have forgotten the user over a restart of its own.
                tracing::debug!(volume = name, driver = self.name, why, "Unmount was refused.");
                Ok(())
            }
            Err(fault) => Err(fault.into_error(&self.context("Unmount"), ErrorKind::Conflict)),
        }
    }

    fn scope(&self) -> Scope {
        self.scope
    }
}
