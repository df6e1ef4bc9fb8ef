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

impl Resources {
    /// Whether anything is asked of the memory controller.
    pub(super) fn needs_memory(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| {
            let limits = [memory.limit, memory.reservation, memory.swap, memory.kernel_tcp];
            limits.into_iter().any(|it| it.is_some_and(|it| it > 0))
                || memory.swappiness.is_some()
                || memory.disable_oom_killer == Some(true)
        })
    }

    /// Whether anything is asked of the pids controller.
    pub(super) fn needs_pids(&self) -> bool {
        self.pids.as_ref().is_some_and(|pids| pids.limit > 0)
    }

    /// Whether anything is asked of the controller for block devices.
    pub(super) fn needs_block_io(&self) -> bool {
        self.block_io.as_ref().is_some_and(|io| {
            BlockIo { weight: None, ..io.clone() } != BlockIo::default()
                || io.weight.is_some_and(|weight| weight != 0)
        })
    }
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

    #[test]
    fn json_of_the_specification_is_read() {
        // What the reference engine writes for a container without limits, but for the devices.
        let text = r#"{"devices": [{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": -1}],
            "memory": {}, "cpu": {"shares": 0}, "pids": {"limit": 0}, "blockIO": {"weight": 0}}"#;
        let read: Resources = serde_json::from_str(text).unwrap();
        assert!(read.devices[0].is_everything() && !read.devices[0].allow);
        assert_eq!(read.devices[2].v1_line().unwrap(), "b 7:* rwm");
        assert!(!read.needs_memory() && !read.needs_pids() && !read.needs_block_io());
        assert!(!read.cpu.as_ref().unwrap().needs_cpu());

        let text = r#"{"memory": {"limit": 1, "swap": 2, "kernelTCP": 3, "disableOOMKiller": true},
            "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 5}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9}], "unified": {"memory.high": "1"}}"#;
        let read: Resources = serde_json::from_str(text).unwrap();
        assert!(read.needs_memory() && read.needs_block_io());
        let again: Resources =
            serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        assert_eq!(again, read);
        assert!(serde_json::from_str::<Resources>(r#"{"rdma": {}}"#).is_err());
        assert!(serde_json::from_str::<Resources>(r#"{"memory": {"limt": 1}}"#).is_err());
    }

    /// Resources from values, without naming every field.
    pub(crate) fn memory(limit: i64, swap: Option<i64>) -> Resources {
        let memory = Memory { limit: Some(limit), swap, ..Memory::default() };
        Resources { memory: Some(memory), ..Resources::default() }
    }
}
