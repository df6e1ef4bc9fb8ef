//! What a group uses, and how often it ran out of memory.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};

use super::group::Group;
use super::plan::{read_file, write_file};
use crate::error::{Error, Result};

/// What a group and everything below it uses. `None` where no controller counts it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes and threads.
    pub pids: Option<PidsStats>,
    /// Block devices.
    pub block_io: Option<BlockIoStats>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All of it.
    pub usage: u64,
    /// Outside the kernel.
    pub user: u64,
    /// Inside the kernel.
    pub system: u64,
    /// For each processor; v1 only, else empty.
    pub per_cpu: Vec<u64>,
    /// Periods with a quota that have passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time spent waiting because of that.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, page cache included.
    pub usage: u64,
    /// The most that was in use; 0 where the kernel does not say.
    pub max_usage: u64,
    /// The limit, or `None`.
    pub limit: Option<u64>,
    /// How often the limit was hit (v1 `failcnt`, v2 `max` event).
    pub hits: u64,
    /// In use in swap, where counted.
    pub swap: Option<u64>,
    /// `memory.stat`, with the kernel's names, which differ between v1 and v2.
    pub detail: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// The limit, or `None`.
    pub limit: Option<u64>,
}

/// Counters of block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIoStats {
    /// Bytes, by device and operation.
    pub bytes: Vec<BlockIoEntry>,
    /// Operations, by device and operation.
    pub operations: Vec<BlockIoEntry>,
}

/// One counter of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIoEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// `read`, `write`, `discard`; on v1 also `sync`, `async`, `total`.
    pub operation: String,
    /// The count.
    pub value: u64,
}

/// How often memory ran out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomCounts {
    /// Processes killed for it.
    pub kills: u64,
    /// Times the limit could not be met; on v1 the kernel does not count them, and this is 0.
    pub events: u64,
    /// v1 with the killer disabled: processes are waiting for memory right now.
    pub waiting: bool,
}

impl Group {
    /// Reads what the group uses. A file that is not there counts as nothing known.
    pub fn stats(&self) -> Result<Stats> {
        Ok(Stats {
            cpu: self.cpu_stats()?,
            memory: self.memory_stats()?,
            pids: self.pids_stats()?,
            block_io: self.block_io_stats()?,
        })
    }

    /// Reads how often memory ran out; `None` without a memory controller.
    pub fn oom_counts(&self) -> Result<Option<OomCounts>> {
        if let Some(dir) = self.v1_dir("memory") {
            return Ok(optional(&dir.join("memory.oom_control"))?.map(|text| oom_v1(&text)));
        }
        let events = self.v2_file("memory", "memory.events")?;
        Ok(events.map(|text| oom_v2(&text)))
    }

    /// A descriptor that becomes readable when memory has run out in the group, or the group goes;
    /// `None` without a memory controller. What has happened is then read from [`Group::oom_counts`].
    ///
    /// After each wake-up, [`drain_oom_watch`] makes it wait for the next.
    pub fn oom_watch(&self) -> Result<Option<OwnedFd>> {
        if let Some(dir) = self.v1_dir("memory") {
            return watch_v1(dir).map(Some);
        }
        let has = |it: &&super::GroupDir| it.controllers.iter().any(|it| it == "memory");
        self.unified().filter(has).map(|unified| watch_v2(&unified.dir)).transpose()
    }

    fn v2_file(&self, controller: &str, file: &str) -> Result<Option<String>> {
        let has = |it: &&super::GroupDir| it.controllers.iter().any(|it| it == controller);
        match self.unified().filter(has) {
            Some(unified) => optional(&unified.dir.join(file)),
            None => Ok(None),
        }
    }

    fn cpu_stats(&self) -> Result<Option<CpuStats>> {
        let Some(accounting) = self.v1_dir("cpuacct") else {
            // `cpu.stat` is there without the controller, but its limits part is not.
            let text = match self.unified() {
                Some(unified) => optional(&unified.dir.join("cpu.stat"))?,
                None => None,
            };
            return Ok(text.map(|text| cpu_v2(&text)));
        };
        let Some(usage) = optional(&accounting.join("cpuacct.usage"))? else { return Ok(None) };
        let read =
            |name| Ok::<_, crate::Error>(optional(&accounting.join(name))?.unwrap_or_default());
        let per_cpu = read("cpuacct.usage_percpu")?;
        let throttling = match self.v1_dir("cpu") {
            Some(dir) => keyed(&optional(&dir.join("cpu.stat"))?.unwrap_or_default()),
            None => BTreeMap::new(),
        };
        Ok(Some(CpuStats {
            usage: number(&usage),
            user: number(&read("cpuacct.usage_user")?),
            system: number(&read("cpuacct.usage_sys")?),
            per_cpu: per_cpu.split_whitespace().map(number).collect(),
            periods: value(&throttling, "nr_periods"),
            throttled_periods: value(&throttling, "nr_throttled"),
            throttled: value(&throttling, "throttled_time"),
        }))
    }

    fn memory_stats(&self) -> Result<Option<MemoryStats>> {
        if let Some(dir) = self.v1_dir("memory") {
            return memory_v1(dir);
        }
        let Some(usage) = self.v2_file("memory", "memory.current")? else { return Ok(None) };
        let read = |name| Ok::<_, crate::Error>(self.v2_file("memory", name)?.unwrap_or_default());
        let events = keyed(&read("memory.events")?);
        Ok(Some(MemoryStats {
            usage: number(&usage),
            max_usage: number(&read("memory.peak")?),
            limit: limit(&read("memory.max")?),
            hits: value(&events, "max"),
            swap: self.v2_file("memory", "memory.swap.current")?.map(|text| number(&text)),
            detail: keyed(&read("memory.stat")?),
        }))
    }

    fn pids_stats(&self) -> Result<Option<PidsStats>> {
        let (current, max) = match self.v1_dir("pids") {
            Some(dir) => (optional(&dir.join("pids.current"))?, optional(&dir.join("pids.max"))?),
            None => (self.v2_file("pids", "pids.current")?, self.v2_file("pids", "pids.max")?),
        };
        let limit = limit(&max.unwrap_or_default());
        Ok(current.map(|current| PidsStats { current: number(&current), limit }))
    }

    fn block_io_stats(&self) -> Result<Option<BlockIoStats>> {
        let Some(dir) = self.v1_dir("blkio") else {
            return Ok(self.v2_file("io", "io.stat")?.map(|text| io_v2(&text)));
        };
        // BFQ has its own counters; the general ones count what throttling sees, which is all.
        let read = |name: &str| {
            let text = optional(&dir.join(format!("blkio.throttle.{name}_recursive")))?;
            Ok::<_, crate::Error>(text.map(|text| io_v1(&text)))
        };
        let Some(bytes) = read("io_service_bytes")? else { return Ok(None) };
        let operations = read("io_serviced")?.unwrap_or_default();
        Ok(Some(BlockIoStats { bytes, operations }))
    }
}

/// Takes what has piled up in a descriptor of [`Group::oom_watch`], without waiting.
pub fn drain_oom_watch(watch: &OwnedFd) {
    let mut buffer = [0; 4096];
    // One read takes the whole count of an eventfd; events of an inotify descriptor merge while alike.
    while matches!(rustix::io::read(watch, &mut buffer), Ok(1..)) {}
}

/// v1 writes to an eventfd that is named, with the file it is about, in `cgroup.event_control`.
fn watch_v1(dir: &Path) -> Result<OwnedFd> {
    let control = dir.join("cgroup.event_control");
    let failed = |error: std::io::Error| Error::at("watch", &control, error);
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let event = rustix::event::eventfd(0, flags).map_err(|errno| failed(errno.into()))?;
    let subject = std::fs::File::open(dir.join("memory.oom_control")).map_err(failed)?;
    let line = format!("{} {}", event.as_raw_fd(), subject.as_raw_fd());
    write_file(&control, &line).map_err(failed)?;
    Ok(event)
}

/// v2 counts as a change of the file whenever a counter in it grows.
fn watch_v2(dir: &Path) -> Result<OwnedFd> {
    let file = dir.join("memory.events");
    let failed = |errno: rustix::io::Errno| Error::at("watch", &file, errno);
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).map_err(failed)?;
    inotify::add_watch(&watch, &file, inotify::WatchFlags::MODIFY).map_err(failed)?;
    Ok(watch)
}

fn memory_v1(dir: &Path) -> Result<Option<MemoryStats>> {
    let Some(usage) = optional(&dir.join("memory.usage_in_bytes"))? else { return Ok(None) };
    let read = |name| Ok::<_, crate::Error>(optional(&dir.join(name))?.unwrap_or_default());
    let usage = number(&usage);
    let both = optional(&dir.join("memory.memsw.usage_in_bytes"))?;
    // "No limit" is the largest page-aligned number, whatever the page size.
    let limit = Some(number(&read("memory.limit_in_bytes")?)).filter(|it| *it < 1 << 62);
    Ok(Some(MemoryStats {
        usage,
        max_usage: number(&read("memory.max_usage_in_bytes")?),
        limit,
        hits: number(&read("memory.failcnt")?),
        swap: both.map(|both| number(&both).saturating_sub(usage)),
        detail: keyed(&read("memory.stat")?),
    }))
}

fn optional(file: &Path) -> Result<Option<String>> {
    match read_file(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number a file holds; 0 if it holds none, for some files are empty until first counted.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of `key value`.
fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn value(map: &BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}

fn cpu_v2(text: &str) -> CpuStats {
    let stat = keyed(text);
    let nanoseconds = |key| value(&stat, key).saturating_mul(1000);
    CpuStats {
        usage: nanoseconds("usage_usec"),
        user: nanoseconds("user_usec"),
        system: nanoseconds("system_usec"),
        per_cpu: Vec::new(),
        periods: value(&stat, "nr_periods"),
        throttled_periods: value(&stat, "nr_throttled"),
        throttled: nanoseconds("throttled_usec"),
    }
}

/// Lines of `8:0 Read 4096`, and a sum at the end.
fn io_v1(text: &str) -> Vec<BlockIoEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let operation = fields.next()?.to_ascii_lowercase();
        let value = fields.next()?.parse().ok()?;
        Some(BlockIoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            operation,
            value,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_v2(text: &str) -> BlockIoStats {
    let mut stats = BlockIoStats::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some((major, minor)) = fields.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let (list, operation) = match key {
                "rbytes" => (&mut stats.bytes, "read"),
                "wbytes" => (&mut stats.bytes, "write"),
                "dbytes" => (&mut stats.bytes, "discard"),
                "rios" => (&mut stats.operations, "read"),
                "wios" => (&mut stats.operations, "write"),
                "dios" => (&mut stats.operations, "discard"),
                _ => continue,
            };
            let operation = operation.to_owned();
            list.push(BlockIoEntry { major, minor, operation, value: number(value) });
        }
    }
    stats
}

fn oom_v1(text: &str) -> OomCounts {
    let control = keyed(text);
    // `oom_kill` is there since Linux 4.13.
    let (kills, waiting) = (value(&control, "oom_kill"), value(&control, "under_oom") != 0);
    OomCounts { kills, events: 0, waiting }
}

fn oom_v2(text: &str) -> OomCounts {
    let events = keyed(text);
    OomCounts { kills: value(&events, "oom_kill"), events: value(&events, "oom"), waiting: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_generations_are_read() {
        let cpu =
            cpu_v2("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 7\nthrottled_usec 9\n");
        assert_eq!((cpu.usage, cpu.throttled_periods, cpu.throttled), (5000, 7, 9000));

        let io = io_v1("8:0 Read 4096\n8:0 Total 4096\n254:1 Write 1\nTotal 4097\n");
        assert_eq!(io.len(), 3);
        assert_eq!((io[2].major, io[2].minor, io[2].operation.as_str()), (254, 1, "write"));

        let io = io_v2("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nbroken\n8:16 \n");
        assert_eq!((io.bytes.len(), io.operations.len()), (3, 3));
        assert_eq!(io.operations[1].value, 4);

        assert_eq!(oom_v1("oom_kill_disable 1\nunder_oom 1\noom_kill 3\n").kills, 3);
        assert!(oom_v1("oom_kill_disable 1\nunder_oom 1\noom_kill 3\n").waiting);
        let counts = oom_v2("low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\n");
        assert_eq!((counts.events, counts.kills), (2, 1));
        assert_eq!(limit("max\n"), None);
    }
}
