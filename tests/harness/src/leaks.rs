//! What there was before, what is left after.
//!
//! A [`Snapshot`] is taken when the daemon is ready and has done nothing yet, and again after the
//! test's containers, volumes, networks and images were removed through the API. Whatever the
//! second has and the first had not is a leak.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command;
use crate::sandbox::Sandbox;

/// Descriptors more than at the start that are not called a leak: idle threads of pools keep some.
const SPARE_DESCRIPTORS: usize = 6;

/// What a daemon holds.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Mounts in the sandbox: root, mount point, type and source.
    pub mounts: Vec<String>,
    /// Network links.
    pub links: Vec<String>,
    /// Lines of the firewall's rules, without counters.
    pub rules: Vec<String>,
    /// Command lines of processes.
    pub processes: Vec<String>,
    /// cgroup directories below the daemon's parent.
    pub cgroups: Vec<String>,
    /// Files and directories in the data, exec and temporary directories.
    pub files: Vec<String>,
    /// What the daemon's descriptors point to.
    pub descriptors: Vec<String>,
}

/// Where to look.
#[derive(Debug)]
pub struct Places<'a> {
    /// The daemon's namespaces.
    pub sandbox: &'a Sandbox,
    /// Directories whose content belongs to the daemon.
    pub directories: &'a [PathBuf],
    /// The name of the cgroup directory that is the daemon's parent.
    pub cgroup_parent: &'a str,
    /// The daemon, as the machine numbers it; `None` when it is stopped.
    pub daemon: Option<u32>,
}

impl Snapshot {
    /// Looks now.
    ///
    /// # Errors
    ///
    /// If a place cannot be read.
    pub fn take(places: &Places<'_>) -> Result<Self> {
        Ok(Self {
            mounts: mounts(places.sandbox)?,
            links: links(places.sandbox)?,
            rules: rules(places.sandbox)?,
            processes: places.sandbox.processes()?.into_iter().map(|(_, line)| line).collect(),
            cgroups: cgroups(places.cgroup_parent)?,
            files: files(places.directories)?,
            descriptors: places.daemon.map(descriptors).transpose()?.unwrap_or_default(),
        })
    }

    /// What `self` has more than `before`, one line each; empty when nothing leaked.
    #[must_use]
    pub fn more_than(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let kinds = [
            ("mount", &self.mounts, &before.mounts),
            ("link", &self.links, &before.links),
            ("firewall rule", &self.rules, &before.rules),
            ("process", &self.processes, &before.processes),
            ("cgroup", &self.cgroups, &before.cgroups),
            ("file", &self.files, &before.files),
        ];
        for (kind, now, then) in kinds {
            found.extend(surplus(now, then).into_iter().map(|what| format!("{kind}: {what}")));
        }
        // Numbers in `socket:[123]` differ from run to run, so only the count is compared.
        if self.descriptors.len() > before.descriptors.len() + SPARE_DESCRIPTORS {
            found.push(format!(
                "descriptors: {} after, {} before: {}",
                self.descriptors.len(),
                before.descriptors.len(),
                surplus(&self.descriptors, &before.descriptors).join(", ")
            ));
        }
        found
    }
}

/// The lines of `now` without one equal line of `then` for each.
fn surplus(now: &[String], then: &[String]) -> Vec<String> {
    let mut then = then.to_vec();
    let mut more = Vec::new();
    for line in now {
        match then.iter().position(|old| old == line) {
            Some(index) => drop(then.swap_remove(index)),
            None => more.push(line.clone()),
        }
    }
    more
}

fn mounts(sandbox: &Sandbox) -> Result<Vec<String>> {
    let path = format!("/proc/{}/mountinfo", sandbox.init());
    let table = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(table.lines().map(mount_line).collect())
}

/// Root, mount point, type and source of a line of mountinfo. Source: proc_pid_mountinfo(5).
fn mount_line(line: &str) -> String {
    let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
    let mut left = left.split(' ').skip(3);
    let root = left.next().unwrap_or_default();
    let point = left.next().unwrap_or_default();
    let mut right = right.split(' ');
    let kind = right.next().unwrap_or_default();
    let source = right.next().unwrap_or_default();
    format!("{point} ({kind} {source} {root})")
}

fn links(sandbox: &Sandbox) -> Result<Vec<String>> {
    let all = sandbox.sh("ip -o link show")?;
    // `7: veth1@if6: <FLAGS> …`: the index and the flags change.
    let name = |line: &str| line.split(": ").nth(1).map(str::to_owned);
    Ok(all.lines().filter_map(name).collect())
}

fn rules(sandbox: &Sandbox) -> Result<Vec<String>> {
    let mut nft = sandbox.command("nft");
    nft.args(["--stateless", "list", "ruleset"]);
    let all = command::run(nft, b"", command::DEADLINE)?.success()?;
    Ok(all.lines().map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect())
}

/// Every directory below `parent` in every hierarchy, v1 and v2.
fn cgroups(parent: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for root in cgroup_roots(parent)? {
        let mut below = directories_below(&root)?;
        below.retain(|path| *path != root);
        all.extend(below.iter().map(|path| path.display().to_string()));
    }
    Ok(all)
}

fn cgroup_roots(parent: &str) -> Result<Vec<PathBuf>> {
    let base = Path::new("/sys/fs/cgroup");
    let mut roots = vec![base.join(parent)];
    for entry in base.read_dir().context("no cgroups")? {
        roots.push(entry?.path().join(parent));
    }
    // `cpu,cpuacct` and its aliases are links to one directory.
    let roots: BTreeSet<_> = roots.into_iter().filter_map(|r| r.canonicalize().ok()).collect();
    Ok(roots.into_iter().collect())
}

/// Removes the cgroup directories of the daemon's parent; processes in them keep them, silently.
///
/// # Errors
///
/// If the hierarchies cannot be listed.
pub fn remove_cgroups(parent: &str) -> Result<()> {
    for root in cgroup_roots(parent)? {
        let mut below = directories_below(&root)?;
        below.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for directory in below {
            std::fs::remove_dir(directory).ok();
        }
    }
    Ok(())
}

fn directories_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while next < found.len() {
        // A directory may vanish while we look.
        if let Ok(entries) = found[next].read_dir() {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        next += 1;
    }
    Ok(found)
}

fn files(directories: &[PathBuf]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for root in directories {
        for directory in directories_below(root)? {
            let Ok(entries) = directory.read_dir() else { continue };
            all.extend(entries.flatten().map(|e| e.path().display().to_string()));
        }
    }
    all.sort_unstable();
    Ok(all)
}

fn descriptors(pid: u32) -> Result<Vec<String>> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = directory.read_dir().context("the daemon is gone")?;
    let target = |path: PathBuf| std::fs::read_link(path).ok().map(|t| t.display().to_string());
    Ok(entries.flatten().filter_map(|e| target(e.path())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_its_place_not_by_its_number() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_line(line), "/mnt2 (ext3 /dev/root /mnt1)");
        assert_eq!(mount_line("1 2 0:5 / /x rw - tmpfs none rw"), "/x (tmpfs none /)");
    }

    #[test]
    fn equal_lines_are_counted() {
        let line = |s: &str| s.to_owned();
        let now = [line("a"), line("a"), line("b")];
        assert_eq!(surplus(&now, &[line("a"), line("c")]), ["a", "b"]);
        assert!(surplus(&now, &now).is_empty());
    }

    #[test]
    fn a_leak_of_each_kind_is_reported() {
        let before = Snapshot::default();
        let one = || vec!["x".to_owned()];
        let after = Snapshot {
            mounts: one(),
            links: one(),
            rules: one(),
            processes: one(),
            cgroups: one(),
            files: one(),
            descriptors: vec!["pipe".to_owned(); SPARE_DESCRIPTORS + 1],
        };
        assert_eq!(after.more_than(&before).len(), 7);
        assert!(before.more_than(&after).is_empty());
    }
}
