//! `POST /containers/create` and `POST /containers/{id}/update`.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::container::{
    ContainerConfig, DeviceMapping, DeviceRequest, HostConfig, RestartPolicy, ThrottleDevice,
    Ulimit, WeightDevice,
};
use crate::json;
use crate::network::NetworkingConfig;

/// The body of `POST /containers/create`: a [`ContainerConfig`] with two more fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ContainerCreateRequest {
    /// None if the body has no field of it, or only defaults.
    #[serde(flatten)]
    pub config: Option<ContainerConfig>,
    /// What the container gets from the host.
    #[serde(rename = "HostConfig", skip_serializing_if = "Option::is_none")]
    pub host_config: Option<HostConfig>,
    /// How it joins networks.
    #[serde(rename = "NetworkingConfig", skip_serializing_if = "Option::is_none")]
    pub networking_config: Option<NetworkingConfig>,
}

/// The fields beside the configuration.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Beside {
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

impl<'de> Deserialize<'de> for ContainerCreateRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = Value::deserialize(deserializer)?;
        let config: ContainerConfig = json::from_value(&body).map_err(de::Error::custom)?;
        let Beside { host_config, networking_config } =
            json::from_value(&body).map_err(de::Error::custom)?;
        let config = (config != ContainerConfig::default()).then_some(config);
        Ok(Self { config, host_config, networking_config })
    }
}

/// The answer to `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerCreateResponse {
    /// Id of the new container.
    pub id: String,
    /// What was accepted but may surprise. `[]` when there is nothing.
    pub warnings: Vec<String>,
}

/// The body of `POST /containers/{id}/update`. Zero, empty and none leave a value as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerUpdateRequest {
    /// As [`HostConfig::cpu_shares`].
    pub cpu_shares: i64,
    /// As [`HostConfig::memory`].
    pub memory: i64,
    /// As [`HostConfig::nano_cpus`].
    pub nano_cpus: i64,
    /// Not changed by an update, as in the reference.
    pub cgroup_parent: String,
    /// As [`HostConfig::blkio_weight`].
    pub blkio_weight: u16,
    /// As [`HostConfig::blkio_weight_device`]; an empty list clears it (API 1.55).
    pub blkio_weight_device: Option<Vec<WeightDevice>>,
    /// As [`HostConfig::blkio_device_read_bps`] (API 1.55).
    pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
    /// As [`HostConfig::blkio_device_write_bps`] (API 1.55).
    pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
    /// As [`HostConfig::blkio_device_read_iops`] (API 1.55).
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
    /// As [`HostConfig::blkio_device_write_iops`] (API 1.55).
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    /// As [`HostConfig::cpu_period`].
    pub cpu_period: i64,
    /// As [`HostConfig::cpu_quota`].
    pub cpu_quota: i64,
    /// As [`HostConfig::cpu_realtime_period`].
    pub cpu_realtime_period: i64,
    /// As [`HostConfig::cpu_realtime_runtime`].
    pub cpu_realtime_runtime: i64,
    /// As [`HostConfig::cpuset_cpus`].
    pub cpuset_cpus: String,
    /// As [`HostConfig::cpuset_mems`].
    pub cpuset_mems: String,
    /// Not changed by an update, as in the reference.
    pub devices: Option<Vec<DeviceMapping>>,
    /// Not changed by an update, as in the reference.
    pub device_cgroup_rules: Option<Vec<String>>,
    /// Not changed by an update, as in the reference.
    pub device_requests: Option<Vec<DeviceRequest>>,
    /// As [`HostConfig::memory_reservation`].
    pub memory_reservation: i64,
    /// As [`HostConfig::memory_swap`].
    pub memory_swap: i64,
    /// Not changed by an update, as in the reference.
    pub memory_swappiness: Option<i64>,
    /// Not changed by an update, as in the reference.
    pub oom_kill_disable: Option<bool>,
    /// As [`HostConfig::pids_limit`]; zero and below mean unlimited.
    pub pids_limit: Option<i64>,
    /// Not changed by an update, as in the reference.
    pub ulimits: Option<Vec<Ulimit>>,
    /// As [`HostConfig::restart_policy`]; an empty name leaves it.
    pub restart_policy: RestartPolicy,
}

/// The answer to `POST /containers/{id}/update`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerUpdateResponse {
    /// `null` when there is nothing.
    pub warnings: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &str) -> Result<ContainerCreateRequest, String> {
        json::from_slice(body.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn both_halves_are_read_and_errors_name_the_field() {
        let request = decode(r#"{"image":"a","hostconfig":{"Memory":1},"Unknown":[]}"#).unwrap();
        assert_eq!(request.config.unwrap().image, "a");
        assert_eq!(request.host_config.unwrap().memory, 1);
        assert_eq!(decode("{}").unwrap(), ContainerCreateRequest::default());

        let cases = [
            (r#"{"HostConfig":{"Memory":"1g"}}"#, "field HostConfig.Memory: "),
            (
                r#"{"HostConfig":{"Mounts":[{"Type":"bind"},{"ReadOnly":1}]}}"#,
                "Mounts.1.ReadOnly: ",
            ),
            (r#"{"HostConfig":[]}"#, "field HostConfig: "),
            (r#"{"Env":{"A":"b"}}"#, "field Env: "),
            (r#"{"Cmd":[1]}"#, "field Cmd.0: "),
            (r#"{"NetworkingConfig":{"EndpointsConfig":{"n":3}}}"#, "EndpointsConfig.n: "),
        ];
        for (body, text) in cases {
            let error = decode(body).unwrap_err();
            assert!(error.starts_with("invalid JSON: ") && error.contains(text), "{error}");
            assert_eq!(error.matches("invalid JSON").count(), 1, "{error}");
        }
    }
}
