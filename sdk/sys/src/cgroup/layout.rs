//! Which hierarchies there are, and which controller lives where.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mount::{MountInfo, read_mountinfo};
use crate::path::read_file_bounded;

/// A page per file is the kernel's limit for both that are read here.
const FILE_MAX: usize = 64 << 10;

/// Options of a v1 mount that are not controllers.
const NOT_CONTROLLERS: [&str; 8] =
    ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "all", "none"];

/// A mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Its controllers, sorted; empty for a named hierarchy.
    pub controllers: Vec<String>,
    /// The name of a hierarchy without controllers, such as `systemd`.
    pub name: Option<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// This process's group in it, relative to `mount`.
    pub own: PathBuf,
}

/// The mounted v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unified {
    /// Controllers it offers, sorted; those in use by v1 are not among them.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// This process's group in it, relative to `mount`.
    pub own: PathBuf,
}

/// All hierarchies of the machine.
///
/// Each controller is on v1 or on v2, never on both; a *hybrid* machine has some here and some there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// The v1 hierarchies, by mount point.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub v2: Option<Unified>,
}

impl Layout {
    /// Reads the layout that this thread sees.
    pub fn read() -> Result<Self> {
        let mounts = read_mountinfo()?;
        let own = read_text(Path::new("/proc/self/cgroup"))?;
        let controllers = match unified_mount(&mounts) {
            Some(mount) => read_text(&mount.mount_point.join("cgroup.controllers"))?,
            None => String::new(),
        };
        Self::detect(&mounts, &own, &controllers)
    }

    /// Works the layout out: from the mounts, the content of `/proc/self/cgroup`, and that of
    /// `cgroup.controllers` at the v2 mount (empty if there is none).
    ///
    /// # Errors
    ///
    /// No hierarchy is mounted at all.
    pub fn detect(mounts: &[MountInfo], own: &str, v2_controllers: &str) -> Result<Self> {
        let memberships: Vec<Membership<'_>> = own.lines().filter_map(membership).collect();
        let mut v1: Vec<Hierarchy> = Vec::new();
        for mount in mounts.iter().filter(|mount| mount.fs_type == "cgroup") {
            let hierarchy = hierarchy(mount, &memberships);
            let same = |other: &Hierarchy| {
                other.controllers == hierarchy.controllers && other.name == hierarchy.name
            };
            // Mounted twice: the first is the one everybody uses.
            if !v1.iter().any(same)
                && (hierarchy.name.is_some() || !hierarchy.controllers.is_empty())
            {
                v1.push(hierarchy);
            }
        }
        v1.sort_by(|a, b| a.mount.cmp(&b.mount));
        let v2 = unified_mount(mounts).map(|mount| {
            let own = memberships.iter().find(|own| own.is_v2()).map_or("/", |own| own.path);
            Unified {
                controllers: sorted(v2_controllers.split_whitespace()),
                mount: mount.mount_point.clone(),
                own: below_mount(own, mount),
            }
        });
        if v1.is_empty() && v2.is_none() {
            return Err(Error::refused("use", "control groups", "no hierarchy is mounted"));
        }
        Ok(Self { v1, v2 })
    }

    /// Whether there is v2 and no v1 controller beside it: what Docker's API calls version 2.
    pub fn is_unified(&self) -> bool {
        self.v2.is_some() && self.v1.iter().all(|hierarchy| hierarchy.controllers.is_empty())
    }

    /// The v1 hierarchy with this controller.
    pub fn v1_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|it| it == controller))
    }

    /// Whether the v2 hierarchy has this controller.
    pub fn v2_has(&self, controller: &str) -> bool {
        self.v2
            .as_ref()
            .is_some_and(|unified| unified.controllers.iter().any(|it| it == controller))
    }

    /// Whether this machine has the controller at all.
    pub fn has(&self, controller: &str) -> bool {
        self.v1_of(controller).is_some() || self.v2_has(controller)
    }
}

/// A line of `/proc/self/cgroup`: `id:controllers:path`.
struct Membership<'a> {
    id: &'a str,
    controllers: &'a str,
    path: &'a str,
}

impl Membership<'_> {
    fn is_v2(&self) -> bool {
        self.id == "0" && self.controllers.is_empty()
    }
}

fn membership(line: &str) -> Option<Membership<'_>> {
    let mut parts = line.splitn(3, ':');
    Some(Membership { id: parts.next()?, controllers: parts.next()?, path: parts.next()? })
}

fn unified_mount(mounts: &[MountInfo]) -> Option<&MountInfo> {
    let mut candidates = mounts.iter().filter(|mount| mount.fs_type == "cgroup2");
    // A container's `/sys/fs/cgroup` may be mounted elsewhere too; the well-known places win.
    let known = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    candidates
        .clone()
        .find(|mount| known.iter().any(|place| mount.mount_point == Path::new(place)))
        .or_else(|| candidates.next())
}

fn hierarchy(mount: &MountInfo, memberships: &[Membership<'_>]) -> Hierarchy {
    let options: Vec<&str> = mount.super_options.split(',').collect();
    let name = options.iter().find_map(|option| option.strip_prefix("name=")).map(str::to_owned);
    let is_controller = |option: &&str| {
        !option.contains('=') && !NOT_CONTROLLERS.contains(option) && !option.is_empty()
    };
    let controllers = sorted(options.iter().copied().filter(is_controller));
    let is_own = |own: &&Membership<'_>| match (&name, controllers.first()) {
        (Some(name), _) => {
            own.controllers.split(',').any(|it| it.strip_prefix("name=") == Some(name))
        }
        (None, Some(first)) => own.controllers.split(',').any(|it| it == first),
        (None, None) => false,
    };
    let own = memberships.iter().find(is_own).map_or("/", |own| own.path);
    Hierarchy { name, controllers, mount: mount.mount_point.clone(), own: below_mount(own, mount) }
}

/// A group's path as seen through a mount that may show a part of the hierarchy only.
fn below_mount(path: &str, mount: &MountInfo) -> PathBuf {
    let path = Path::new(path);
    let below = path.strip_prefix(&mount.root).or_else(|_| path.strip_prefix("/"));
    below.unwrap_or(Path::new("")).to_owned()
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

fn read_text(file: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&read_file_bounded(file, FILE_MAX)?).into_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::mount::parse_mountinfo;

    /// A machine that systemd runs in its default mode.
    pub(crate) fn pure_v2() -> Layout {
        detect(
            "29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 \
             rw,nsdelegate,memory_recursiveprot\n",
            "0::/system.slice/gantry.service\n",
            "cpuset cpu io memory hugetlb pids rdma misc\n",
        )
    }

    /// A machine of the years before, with systemd's own hierarchy beside.
    pub(crate) fn v1_with_pairs() -> Layout {
        detect(
            "30 25 0:25 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd\n\
             31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n\
             33 25 0:29 / /sys/fs/cgroup/cpuset rw shared:12 - cgroup cgroup rw,cpuset\n\
             34 25 0:30 / /sys/fs/cgroup/devices rw shared:13 - cgroup cgroup rw,devices\n\
             35 25 0:31 / /sys/fs/cgroup/freezer rw shared:14 - cgroup cgroup rw,freezer\n\
             36 25 0:32 / /sys/fs/cgroup/blkio rw shared:15 - cgroup cgroup rw,blkio\n\
             37 25 0:33 / /sys/fs/cgroup/pids rw shared:16 - cgroup cgroup rw,pids\n\
             38 25 0:33 / /run/again rw shared:16 - cgroup cgroup rw,pids\n",
            "8:name=systemd:/user.slice\n4:cpu,cpuacct:/a\n3:memory:/\n",
            "",
        )
    }

    /// This machine when this was written: each v1 controller by itself, hugetlb left to v2.
    pub(crate) fn hybrid() -> Layout {
        let mut mounts = String::from("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n");
        let all = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"];
        for (index, name) in all.iter().enumerate() {
            mounts.push_str(&format!(
                "{} 31 0:{} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n",
                32 + index,
                29 + index
            ));
        }
        mounts.push_str("40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n");
        mounts.push_str("41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
        detect(&mounts, "9:name=systemd:/\n4:memory:/api/5b\n1:cpu:/\n0::/\n", "hugetlb\n")
    }

    fn detect(mounts: &str, own: &str, controllers: &str) -> Layout {
        Layout::detect(&parse_mountinfo(mounts.as_bytes()).unwrap(), own, controllers).unwrap()
    }

    #[test]
    fn recorded_machines_are_recognised() {
        let v2 = pure_v2();
        assert!(v2.is_unified() && v2.v1.is_empty() && v2.v2_has("memory"));
        assert_eq!(v2.v2.unwrap().own, Path::new("system.slice/gantry.service"));

        let v1 = v1_with_pairs();
        assert!(!v1.is_unified() && v1.v2.is_none());
        assert_eq!(v1.v1.len(), 8, "the second mount of pids does not count");
        assert_eq!(v1.v1_of("cpuacct").unwrap().controllers, ["cpu", "cpuacct"]);
        assert_eq!(v1.v1_of("cpu").unwrap().own, Path::new("a"));
        assert_eq!(v1.v1_of("pids").unwrap().mount, Path::new("/sys/fs/cgroup/pids"));

        let hybrid = hybrid();
        assert!(!hybrid.is_unified());
        assert_eq!(hybrid.v1.len(), 9);
        assert!(hybrid.v2_has("hugetlb") && !hybrid.v2_has("memory") && hybrid.has("memory"));
        assert_eq!(hybrid.v1_of("memory").unwrap().own, Path::new("api/5b"));
        let named = hybrid.v1.iter().find(|it| it.name.is_some()).unwrap();
        assert_eq!((named.name.as_deref(), named.controllers.len()), (Some("systemd"), 0));
    }

    #[test]
    fn a_mount_that_shows_a_part_is_looked_through() {
        let layout = detect(
            "29 22 0:26 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            "5:memory:/docker/ab/inner\n",
            "",
        );
        assert_eq!(layout.v1[0].own, Path::new("inner"));
    }

    #[test]
    fn no_hierarchy_at_all_is_an_error() {
        assert!(Layout::detect(&[], "", "").is_err());
    }

    #[test]
    fn this_machine_has_a_layout() {
        let layout = Layout::read().unwrap();
        assert!(layout.has("pids"), "{layout:?}");
    }
}
