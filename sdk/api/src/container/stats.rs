//! `GET /containers/{id}/stats`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::is_default;

/// One reading of a container's resource use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStats {
    /// Id.
    #[serde(skip_serializing_if = "is_default")]
    pub id: String,
    /// Name, with a leading slash.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Operating system (API 1.52).
    #[serde(skip_serializing_if = "is_default")]
    pub os_type: String,
    /// When this was read.
    pub read: String,
    /// Processor.
    pub cpu_stats: CpuStats,
    /// Memory.
    pub memory_stats: MemoryStats,
    /// Network interfaces by name.
    #[serde(skip_serializing_if = "is_default")]
    pub networks: BTreeMap<String, NetworkStats>,
    /// Processes.
    pub pids_stats: PidsStats,
    /// Block I/O.
    pub blkio_stats: BlkioStats,
    /// Processes (Windows); 0 elsewhere.
    pub num_procs: u32,
    /// Storage (Windows); `{}` elsewhere.
    pub storage_stats: StorageStats,
    /// When the reading before this was made.
    pub preread: String,
    /// Processor at the reading before this.
    pub precpu_stats: CpuStats,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    /// Of the container.
    pub cpu_usage: CpuUsage,
    /// Of the whole host, nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub system_cpu_usage: u64,
    /// Processors in use.
    #[serde(skip_serializing_if = "is_default")]
    pub online_cpus: u32,
    /// Throttling by quota.
    pub throttling_data: ThrottlingData,
}

/// Processor time of the container, nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// All.
    pub total_usage: u64,
    /// By processor; cgroup v1 only.
    #[serde(skip_serializing_if = "is_default")]
    pub percpu_usage: Vec<u64>,
    /// In the kernel.
    pub usage_in_kernelmode: u64,
    /// In programs.
    pub usage_in_usermode: u64,
}

/// Throttling by CPU quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottlingData {
    /// Periods with work.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Nanoseconds spent waiting.
    pub throttled_time: u64,
}

/// Memory, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    /// In use.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// Most ever in use; cgroup v1 only.
    #[serde(skip_serializing_if = "is_default")]
    pub max_usage: u64,
    /// The lines of `memory.stat`.
    #[serde(skip_serializing_if = "is_default")]
    pub stats: BTreeMap<String, u64>,
    /// How often the limit was hit; cgroup v1 only.
    #[serde(skip_serializing_if = "is_default")]
    pub failcnt: u64,
    /// The limit; the host's memory without one.
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// One device and operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioStatEntry {
    /// Major device number.
    pub major: u64,
    /// Minor device number.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, … (lower case on cgroup v2).
    pub op: String,
    /// Count.
    pub value: u64,
}

/// Block I/O. Lists that the kernel does not give are `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioStats {
    /// Bytes.
    pub io_service_bytes_recursive: Option<Vec<BlkioStatEntry>>,
    /// Operations.
    pub io_serviced_recursive: Option<Vec<BlkioStatEntry>>,
    /// Operations queued.
    pub io_queue_recursive: Option<Vec<BlkioStatEntry>>,
    /// Nanoseconds in the device.
    pub io_service_time_recursive: Option<Vec<BlkioStatEntry>>,
    /// Nanoseconds in queues.
    pub io_wait_time_recursive: Option<Vec<BlkioStatEntry>>,
    /// Operations merged.
    pub io_merged_recursive: Option<Vec<BlkioStatEntry>>,
    /// Milliseconds of device time.
    pub io_time_recursive: Option<Vec<BlkioStatEntry>>,
    /// Sectors.
    pub sectors_recursive: Option<Vec<BlkioStatEntry>>,
}

/// Storage on Windows; empty on Linux.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageStats {
    /// Reads.
    #[serde(skip_serializing_if = "is_default")]
    pub read_count_normalized: u64,
    /// Bytes read.
    #[serde(skip_serializing_if = "is_default")]
    pub read_size_bytes: u64,
    /// Writes.
    #[serde(skip_serializing_if = "is_default")]
    pub write_count_normalized: u64,
    /// Bytes written.
    #[serde(skip_serializing_if = "is_default")]
    pub write_size_bytes: u64,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors on reception.
    pub rx_errors: u64,
    /// Packets dropped on reception.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors on sending.
    pub tx_errors: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

/// Processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsStats {
    /// Now.
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    /// At most; left out without a limit.
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}
