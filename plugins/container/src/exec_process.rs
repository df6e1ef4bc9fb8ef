//! The process of an exec: the container's own, changed as the client wishes.

use std::path::Path;

use gantry_sdk::api::container::ExecCreateRequest;
use gantry_sdk::{Error, Result};
use oci_spec::runtime as oci;

use crate::engine::Engine;
use crate::launch;
use crate::record::Record;
use crate::spec;

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

    let settings = engine.settings();
    let seccomp = |profile: spec::SeccompProfile<'_>, capabilities: &[String]| {
        engine.seccomp.resolve(profile, capabilities)
    };
    let container = spec::Input {
        id: record.id.as_str(),
        config: &record.config,
        host: &record.host,
        user: &user,
        rootfs: Path::new("/"),
        mounts: &[],
        joined: spec::Joined::default(),
        view: &spec::SystemView,
        seccomp: &seccomp,
        facts: &engine.facts,
        defaults: &settings.defaults,
    };
    // The size travels beside the process: it is the client's, and may change before it starts.
    let process = spec::exec_process(&container, wanted, &user, None)?;
    Ok((process, spec::seccomp_of(&container)?))
}
