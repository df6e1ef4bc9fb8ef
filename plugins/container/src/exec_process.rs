//! The process of an exec: the container's own, changed as the client wishes.

use gantry_sdk::api::container::ExecCreateRequest;
use gantry_sdk::{Error, Result};
use oci_spec::runtime as oci;

use crate::engine::Engine;
use crate::launch::{self, JoinedPaths};
use crate::record::Record;
use crate::spec::{capability, command};

/// Builds the process and the seccomp rules it runs under. Blocking; `pid` is the container's first
/// process, whose root has the files with users and groups.
///
/// # Errors
///
/// `InvalidArgument` with the reference engine's texts.
pub(crate) fn build(
    engine: &Engine,
    record: &Record,
    wanted: &ExecCreateRequest,
    pid: i32,
) -> Result<(oci::Process, Option<oci::LinuxSeccomp>)> {
    let user = if wanted.user.is_empty() { &record.config.user } else { &wanted.user };
    let root = format!("/proc/{pid}/root");
    let root = std::fs::File::open(&root).map_err(|e| {
        Error::conflict(format!("container {} is not running", record.id)).caused_by(e)
    })?;
    let groups = record.host.group_add.as_deref().unwrap_or_default();
    let groups = if wanted.user.is_empty() { groups } else { &[] };
    let user = launch::resolve_user(user, groups, &root)?;

    let mut as_container = record.clone();
    as_container.mounts.clear(); // sources were checked when it started, and may be gone
    let mut joined = JoinedPaths::default();
    joined.pretend(&record.host)?;
    let built = launch::build(engine, &as_container, &user, &joined, &[])?;
    let mut process = built.spec.process().clone().unwrap_or_default();
    let seccomp = built.spec.linux().as_ref().and_then(|l| l.seccomp().clone());

    process.set_terminal(Some(wanted.tty));
    process.set_console_size(None);
    process.set_args(wanted.cmd.clone());
    process.set_env(Some(environment(record, wanted)));
    if !wanted.working_dir.is_empty() {
        process.set_cwd(wanted.working_dir.clone().into());
    }
    if wanted.privileged {
        let all: oci::Capabilities =
            capability::resolve(&[], &[], true, &engine.facts.capabilities)?.into_iter().collect();
        let mut granted = oci::LinuxCapabilities::default();
        granted
            .set_bounding(Some(all.clone()))
            .set_effective(Some(all.clone()))
            .set_permitted(Some(all))
            .set_inheritable(None)
            .set_ambient(None);
        process.set_capabilities(Some(granted));
    }
    // A privileged exec in a filtered container still has the container's filter dropped, as in the
    // reference engine.
    Ok((process, seccomp.filter(|_| !wanted.privileged)))
}

fn environment(record: &Record, wanted: &ExecCreateRequest) -> Vec<String> {
    let mut config = record.config.clone();
    config.tty = wanted.tty;
    command::override_environment(
        command::environment(&config),
        wanted.env.as_deref().unwrap_or_default(),
    )
}
