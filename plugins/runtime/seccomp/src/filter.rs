//! Rules without conditions about the host: what the OCI runtime specification calls
//! `linux.seccomp`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::arch::Arch;

/// A resolved set of rules. Its JSON form is `linux.seccomp` of the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// What happens to a call that no rule matches.
    pub default_action: Action,
    /// The error number (or trace message) that goes with the default action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Modes beside the native one that calls may be made in.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<Arch>,
    /// Flags for the load; `None` leaves the choice to the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<Flag>>,
    /// Where notifications would go.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "String::is_empty")]
    pub listener_path: String,
    /// Opaque data for whoever gets the notifications.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "String::is_empty")]
    pub listener_metadata: String,
    /// The rules, in order.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<Syscall>,
}

/// One rule: the calls it is about, when, and what happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Syscall {
    /// The calls, by name.
    pub names: Vec<String>,
    /// What happens when the rule matches.
    pub action: Action,
    /// The error number (or trace message) that goes with the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions on the arguments; none matches always.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Arg>,
}

/// A condition on one argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arg {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// What it is compared with; the mask for [`Operator::MaskedEqual`].
    pub value: u64,
    /// What the masked argument is compared with.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "is_zero")]
    pub value_two: u64,
    /// How.
    pub op: Operator,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// How an argument is compared. The comparison is unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// `argument != value`
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// `argument < value`
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// `argument <= value`
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// `argument == value`
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// `argument >= value`
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `argument > value`
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == value_two`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Kill the thread (the historic name).
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    /// Kill the thread.
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// Kill the process.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// Send `SIGSYS`.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// Fail with an error number, `EPERM` unless the rule names one.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// Tell a tracer; without one the call fails with `ENOSYS`.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// Log, then allow.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// Allow.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// Ask a supervisor. Known, and refused when compiled.
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// A flag of seccomp(2) for the load of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Flag {
    /// Every thread gets the filter. A container has one thread when it is loaded.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    /// Log what is not allowed.
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    /// Leave speculative store bypass alone.
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
    /// A waiting notification can be killed.
    #[serde(rename = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")]
    WaitKillableRecv,
}

impl Filter {
    /// The bits for seccomp(2)'s `flags`. As with runc, a filter that names none gets
    /// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`, and `TSYNC` is left out: it changes nothing for the one
    /// thread that is about to become the container.
    #[must_use]
    pub fn load_flags(&self) -> u32 {
        const LOG: u32 = 1 << 1;
        const SPEC_ALLOW: u32 = 1 << 2;
        const WAIT_KILLABLE_RECV: u32 = 1 << 5;
        let Some(flags) = &self.flags else { return SPEC_ALLOW };
        flags.iter().fold(0, |bits, flag| {
            bits | match flag {
                Flag::Tsync => 0,
                Flag::Log => LOG,
                Flag::SpecAllow => SPEC_ALLOW,
                Flag::WaitKillableRecv => WAIT_KILLABLE_RECV,
            }
        })
    }
}

/// Reads `null` as the empty value: profiles written by the reference's tools have both.
pub(crate) fn or_null<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
