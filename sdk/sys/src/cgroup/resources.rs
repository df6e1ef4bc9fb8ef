//! Limits, shaped as `linux.resources` of the OCI runtime specification.
//!
//! The field names are the specification's, so its JSON can be read directly. A field that is not
//! here is an error when reading, never ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::devices::DeviceRule;

/// Limits of a group. What is `None` or empty is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Access to devices, in order; a later rule overrides an earlier one.
    pub devices: Vec<DeviceRule>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processor time and placement.
    pub cpu: Option<Cpu>,
    /// Number of processes and threads.
    pub pids: Option<Pids>,
    /// Block devices.
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    /// Huge pages, by size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of the v2 hierarchy, written as they are, last.
    pub unified: BTreeMap<String, String>,
}

/// Memory limits in bytes; -1 means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Memory {
    /// Hard limit.
    pub limit: Option<i64>,
    /// What is kept when memory is short (v1: soft limit; v2: `memory.low`).
    pub reservation: Option<i64>,
    /// Memory and swap together, so never less than `limit`.
    pub swap: Option<i64>,
    /// Kernel memory of TCP buffers. v1 only.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    /// 0 to 100. v1 only.
    pub swappiness: Option<u64>,
    /// Processes wait instead of being killed. v1 only.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
}

/// Processor limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cpu {
    /// Relative weight, 2 to 262144, where 1024 is usual; 0 leaves it.
    pub shares: Option<u64>,
    /// Microseconds of processor time per period; 0 or less means no limit.
    pub quota: Option<i64>,
    /// Microseconds that may be saved up for a burst.
    pub burst: Option<u64>,
    /// Length of the period in microseconds.
    pub period: Option<u64>,
    /// Microseconds of real-time scheduling per real-time period. v1 only.
    pub realtime_runtime: Option<i64>,
    /// Length of the real-time period in microseconds. v1 only.
    pub realtime_period: Option<u64>,
    /// Processors that may be used: `0-2,7`.
    pub cpus: String,
    /// Memory nodes that may be used.
    pub mems: String,
    /// 1 for a group that runs only when nothing else wants to.
    pub idle: Option<i64>,
}

impl Cpu {
    pub(super) fn needs_cpu(&self) -> bool {
        let time = [self.shares, self.burst, self.period, self.realtime_period];
        let amounts = [self.quota, self.realtime_runtime, self.idle];
        time.into_iter().any(|it| it.is_some_and(|it| it != 0))
            || amounts.into_iter().any(|it| it.is_some_and(|it| it != 0))
    }

    pub(super) fn needs_cpuset(&self) -> bool {
        !self.cpus.is_empty() || !self.mems.is_empty()
    }
}

/// Limit on processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pids {
    /// 0 or less means no limit.
    pub limit: i64,
}

/// Weights and ceilings for block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BlockIo {
    /// Weight, 10 to 1000; 0 leaves it.
    pub weight: Option<u16>,
    /// Weights for single devices.
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read per second.
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written per second.
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads per second.
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes per second.
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// The weight of one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Weight, 10 to 1000.
    pub weight: u16,
}

/// The ceiling of one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Bytes or operations per second; 0 means no ceiling.
    pub rate: u64,
}

/// Limit on huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HugepageLimit {
    /// Size as in the file names: `2MB`, `1GB`, `64KB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Resources from values, without naming every field.
    pub(crate) fn memory(limit: i64, swap: Option<i64>) -> Resources {
        let memory = Memory { limit: Some(limit), swap, ..Memory::default() };
        Resources { memory: Some(memory), ..Resources::default() }
    }
}
