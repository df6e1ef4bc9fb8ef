//! A group: its directories in all hierarchies, and what can be done to its processes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::plan::{Plan, Step, read_file, write_file};
use super::resources::Resources;
use super::{v1, v2};
use crate::error::{Error, Result};
use crate::path::split_relative;

/// How often a state is looked at while waiting; the kernel needs microseconds to milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Deeper nesting inside a container is left to the kernel's own error.
const DEPTH_MAX: usize = 256;

/// Which generation of control groups a directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// One of several hierarchies.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A group's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDir {
    /// The generation.
    pub version: Version,
    /// Controllers of the hierarchy; empty for a named one.
    pub controllers: Vec<String>,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The group's directory, somewhere below `mount`.
    pub dir: PathBuf,
}

/// A group, with the same path in every hierarchy of the machine.
///
/// The value says where a group is, not that it exists. It can be kept and used after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Group {
    /// One for each hierarchy, v2 last.
    pub dirs: Vec<GroupDir>,
}

impl v1::Dirs for Group {
    fn dir(&self, controller: &str) -> Option<&Path> {
        let has = |dir: &&GroupDir| {
            dir.version == Version::V1 && dir.controllers.iter().any(|it| it == controller)
        };
        self.dirs.iter().find(has).map(|dir| dir.dir.as_path())
    }
}

impl Group {
    /// The group `path`, relative to the root of each hierarchy: `docker/4f1c…`.
    ///
    /// # Errors
    ///
    /// `path` is the root, or holds `..`.
    pub fn new(layout: &Layout, path: &Path) -> Result<Self> {
        let names: PathBuf = split_relative(path)?.into_iter().collect();
        if names.as_os_str().is_empty() {
            return Err(Error::refused(
                "use control group",
                "/",
                "the root is not a group of ours",
            ));
        }
        let v1 = layout.v1.iter().map(|hierarchy| GroupDir {
            version: Version::V1,
            controllers: hierarchy.controllers.clone(),
            mount: hierarchy.mount.clone(),
            dir: hierarchy.mount.join(&names),
        });
        let v2 = layout.v2.iter().map(|unified| GroupDir {
            version: Version::V2,
            controllers: unified.controllers.clone(),
            mount: unified.mount.clone(),
            dir: unified.mount.join(&names),
        });
        Ok(Self { dirs: v1.chain(v2).collect() })
    }

    /// What creates the group with these limits.
    ///
    /// # Errors
    ///
    /// A limit that no controller of this machine can enforce, or that contradicts another.
    pub fn creation(&self, resources: &Resources) -> Result<Plan> {
        let mut steps = Vec::new();
        for dir in &self.dirs {
            dir.creation(&mut steps);
        }
        steps.extend(self.limits(resources)?);
        Ok(Plan { steps })
    }

    /// What changes the limits of the existing group to these; what is absent stays.
    pub fn update(&self, resources: &Resources) -> Result<Plan> {
        Ok(Plan { steps: self.limits(resources)? })
    }

    fn limits(&self, resources: &Resources) -> Result<Vec<Step>> {
        self.check_controllers(resources)?;
        let mut steps = v1::steps(self, resources)?;
        if let Some(unified) = self.unified() {
            let has = |controller: &str| unified.controllers.iter().any(|it| it == controller);
            let with_devices = v1::Dirs::dir(self, "devices").is_none();
            steps.extend(v2::steps(&unified.dir, &has, with_devices, resources)?);
        }
        Ok(steps)
    }

    /// Every limit that is asked for has somebody to enforce it.
    fn check_controllers(&self, resources: &Resources) -> Result<()> {
        let cpu = resources.cpu.as_ref();
        let wanted = [
            ("memory", "memory", resources.needs_memory()),
            ("cpu", "cpu", cpu.is_some_and(|cpu| cpu.needs_cpu())),
            ("cpuset", "cpuset", cpu.is_some_and(|cpu| cpu.needs_cpuset())),
            ("pids", "pids", resources.needs_pids()),
            ("blkio", "io", resources.needs_block_io()),
            ("hugetlb", "hugetlb", !resources.hugepage_limits.is_empty()),
        ];
        let on_v2 = |name: &str| {
            self.unified().is_some_and(|dir| dir.controllers.iter().any(|it| it == name))
        };
        for (v1_name, v2_name, wanted) in wanted {
            if wanted && v1::Dirs::dir(self, v1_name).is_none() && !on_v2(v2_name) {
                return Err(Error::new(
                    "limit",
                    v1_name,
                    io::Error::from(io::ErrorKind::Unsupported),
                )
                .with_detail("this machine has no such control-group controller"));
            }
        }
        if !resources.unified.is_empty() && self.unified().is_none() {
            return Err(Error::new(
                "set",
                "unified limits",
                io::Error::from(io::ErrorKind::Unsupported),
            )
            .with_detail("this machine has no cgroup v2 hierarchy"));
        }
        if !resources.devices.is_empty()
            && v1::Dirs::dir(self, "devices").is_none()
            && self.unified().is_none()
        {
            return Err(Error::new(
                "limit",
                "devices",
                io::Error::from(io::ErrorKind::Unsupported),
            ));
        }
        Ok(())
    }

    /// The group's directory in the v2 hierarchy: what `CLONE_INTO_CGROUP` takes on a v2 machine.
    pub fn unified(&self) -> Option<&GroupDir> {
        self.dirs.iter().find(|dir| dir.version == Version::V2)
    }

    /// The directory where this v1 controller is.
    pub fn v1_dir(&self, controller: &str) -> Option<&Path> {
        v1::Dirs::dir(self, controller)
    }

    /// The files into which a process writes `0` to join, one for each hierarchy.
    ///
    /// On v1 this is `tasks`, which moves one thread: quicker than `cgroup.procs`, and the same for a
    /// process that has but one.
    pub fn join_files(&self) -> Vec<PathBuf> {
        let file = |dir: &GroupDir| match dir.version {
            Version::V1 => dir.dir.join("tasks"),
            Version::V2 => dir.dir.join("cgroup.procs"),
        };
        self.dirs.iter().map(file).collect()
    }

    /// Moves a process, with all its threads, into the group.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.dirs.iter().try_for_each(|dir| {
            let file = dir.dir.join("cgroup.procs");
            write_file(&file, &pid.to_string()).map_err(|error| Error::at("join", &file, error))
        })
    }

    /// Whether the group is there in any hierarchy.
    pub fn exists(&self) -> bool {
        self.dirs.iter().any(|dir| dir.dir.exists())
    }

    /// All processes in the group and below it, as numbered in the caller's pid namespace.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        let Some(dir) = self.census_dir() else { return Ok(BTreeSet::new()) };
        let mut found = BTreeSet::new();
        for dir in nested(dir)? {
            let text = match crate::path::read_file_bounded(&dir.join("cgroup.procs"), 64 << 20) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                // Removed meanwhile; `ENODEV` is how the kernel says so for an open file.
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            // Processes of another pid namespace read as 0.
            let pids = text.lines().filter_map(|line| line.parse::<u32>().ok());
            found.extend(pids.filter(|pid| *pid != 0));
        }
        Ok(found)
    }

    /// The directory whose list of processes is believed.
    fn census_dir(&self) -> Option<&Path> {
        let v1 = ["pids", "freezer", "devices", "memory"].iter().find_map(|it| self.v1_dir(it));
        let unified = self.unified().map(|dir| dir.dir.as_path());
        let is_there = |dir: &Path| dir.exists();
        v1.filter(|dir| is_there(dir)).or(unified.filter(|dir| is_there(dir)))
    }

    /// Stops all processes of the group from running, or lets them go on. Returns once it is so.
    ///
    /// # Errors
    ///
    /// Of kind `TimedOut` after `patience`: then the old state is asked for again, and a process that
    /// sits in an uninterruptible wait is why.
    pub fn set_frozen(&self, frozen: bool, patience: Duration) -> Result<()> {
        let answer = self.try_set_frozen(frozen, patience);
        if frozen && answer.is_err() {
            // A half-frozen group helps nobody. The first error is the one that matters.
            let _ = self.request_freeze(false);
        }
        answer
    }

    fn try_set_frozen(&self, frozen: bool, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            // v1 must be asked again while new threads appear; v2 does not mind.
            self.request_freeze(frozen)?;
            if self.is_frozen()? == frozen {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let doing = if frozen { "freeze" } else { "thaw" };
                return Err(Error::at(doing, self.freezer()?.1, io::ErrorKind::TimedOut));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn freezer(&self) -> Result<(Version, &Path)> {
        let v1 = self.v1_dir("freezer").map(|dir| (Version::V1, dir));
        let v2 = self.unified().map(|dir| (Version::V2, dir.dir.as_path()));
        v1.or(v2).ok_or_else(|| {
            Error::new("freeze", "control group", io::Error::from(io::ErrorKind::Unsupported))
        })
    }

    fn request_freeze(&self, frozen: bool) -> Result<()> {
        let (file, value) = match (self.freezer()?, frozen) {
            ((Version::V1, dir), true) => (dir.join("freezer.state"), "FROZEN"),
            ((Version::V1, dir), false) => (dir.join("freezer.state"), "THAWED"),
            ((Version::V2, dir), true) => (dir.join("cgroup.freeze"), "1"),
            ((Version::V2, dir), false) => (dir.join("cgroup.freeze"), "0"),
        };
        write_file(&file, value).map_err(|error| Error::at("set", &file, error))
    }

    /// Whether all processes of the group are frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        match self.freezer()? {
            (Version::V1, dir) => Ok(read_file(&dir.join("freezer.state"))?.trim() == "FROZEN"),
            (Version::V2, dir) => {
                let events = read_file(&dir.join("cgroup.events"))?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            }
        }
    }

    /// Kills every process in the group and below, and waits until there is none.
    ///
    /// # Errors
    ///
    /// Of kind `TimedOut` after `patience`, naming how many are left.
    pub fn kill(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let words = format!("{} processes left", left.len());
                let object = self.census_dir().unwrap_or(Path::new("control group"));
                return Err(Error::at("kill", object, io::ErrorKind::TimedOut).with_detail(words));
            }
            if !self.kill_at_once() {
                left.iter().for_each(|pid| kill_one(*pid));
            }
            // A process frozen by v1 dies when it goes on.
            if self.v1_dir("freezer").is_some_and(Path::exists) {
                let _ = self.request_freeze(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// `cgroup.kill` (Linux 5.14) reaches every process before any can fork; v1 has no such thing.
    fn kill_at_once(&self) -> bool {
        let all_in = |dir: &GroupDir| {
            // On a hybrid machine somebody may have moved processes within v2 alone.
            self.v1_dir("pids").is_none() && write_file(&dir.dir.join("cgroup.kill"), "1").is_ok()
        };
        self.unified().is_some_and(all_in)
    }

    /// Removes the group, and the groups that its processes made inside; nothing there is success.
    ///
    /// The processes must be gone. A group stays busy for moments after its last process, so the
    /// kernel is asked again until `patience` is over.
    pub fn remove(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut first_error = None;
        for dir in &self.dirs {
            if let Err(error) = remove_dir(&dir.dir, deadline) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

impl GroupDir {
    fn creation(&self, steps: &mut Vec<Step>) {
        let below = self.dir.strip_prefix(&self.mount).unwrap_or(Path::new(""));
        let mut here = self.mount.clone();
        for name in below.components() {
            if self.version == Version::V2 && !self.controllers.is_empty() {
                steps.push(Step::Enable {
                    dir: here.clone(),
                    controllers: self.controllers.clone(),
                });
            }
            here.push(name);
            steps.push(Step::MakeDir(here.clone()));
            let is_cpuset = self.controllers.iter().any(|it| it == "cpuset");
            if self.version == Version::V1 && is_cpuset {
                steps.push(Step::InheritCpuset(here.clone()));
            }
        }
    }
}

fn kill_one(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // Gone already is as good. The number cannot have been reused for a stranger unless all of the
        // pid space was gone through since the list was read, which took less than a millisecond.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn is_gone(error: &Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.errno() == Some(libc::ENODEV)
}

/// The directory and all below it, parents first.
fn nested(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(here) = found.get(next).cloned() {
        next += 1;
        let entries = match fs::read_dir(&here) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            answer => answer.map_err(|error| Error::at("list", &here, error))?,
        };
        let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let children = entries.flatten().filter(is_dir).map(|entry| entry.path());
        let depth = here.components().count() - dir.components().count();
        if depth < DEPTH_MAX {
            found.extend(children);
        }
    }
    Ok(found)
}

fn remove_dir(dir: &Path, deadline: Instant) -> Result<()> {
    loop {
        let error = match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::ResourceBusy {
            return Err(Error::at("remove control group", dir, error));
        }
        // Busy because of groups inside, or of a process that is still on its way out.
        let inner = nested(dir)?;
        let mut progress = false;
        for inner in inner.iter().skip(1).rev() {
            progress |= fs::remove_dir(inner).is_ok();
        }
        if !progress {
            if Instant::now() >= deadline {
                return Err(Error::at("remove control group", dir, error));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
