//! Another process in a running container.

use gantry_sdk::api::ExecCreateRequest;
use gantry_sdk::{Error, Result};
use oci_spec::runtime as oci;

use super::{Input, SecurityOptions, User, build, capability, command};

/// The process of an exec, in the container that `container` describes: the same confinement, with
/// its own command, user, directory and variables. Its console has the size `size` (height, width;
/// zero for the kernel's default). `user` is resolved from the request's user, or the container's if
/// that is empty.
///
/// A privileged exec has all capabilities and no AppArmor profile; it keeps the container's seccomp
/// filter, as with the reference engine.
///
/// # Errors
///
/// `InvalidArgument`: no command, a directory that is not absolute, a bad variable.
pub fn exec_process(
    container: &Input<'_>,
    request: &ExecCreateRequest,
    user: &User,
    size: Option<[u64; 2]>,
) -> Result<oci::Process> {
    check_exec(request)?;
    let mut config = container.config.clone();
    config.tty = request.tty;
    config.entrypoint = None;
    config.cmd.clone_from(&request.cmd);
    if !request.working_dir.is_empty() {
        config.working_dir.clone_from(&request.working_dir);
    }
    command::settle_working_dir(&mut config)?;
    let env = command::override_environment(
        command::environment(&config),
        request.env.as_deref().unwrap_or_default(),
    );
    let mut host = container.host.clone();
    host.privileged |= request.privileged;
    host.console_size = size.unwrap_or_default();

    let capabilities = capability::resolve(
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        host.privileged,
        &container.facts.capabilities,
    )?;
    let input = Input { config: &config, host: &host, user, ..*container };
    let mut process = build::process_of(&input, capabilities)?;
    process.set_env(Some(env));
    Ok(process)
}

/// The seccomp rules of the container that `container` describes, which hold for its execs too.
///
/// # Errors
///
/// Those of resolving the profile.
pub fn seccomp_of(container: &Input<'_>) -> Result<Option<oci::LinuxSeccomp>> {
    let host = container.host;
    let security = SecurityOptions::parse(
        host.security_opt.as_deref().unwrap_or_default(),
        container.defaults.no_new_privileges,
    )?;
    let capabilities = capability::resolve(
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        host.privileged,
        &container.facts.capabilities,
    )?;
    build::seccomp(container, &security, &capabilities)
}

/// Whether an exec request makes sense.
///
/// # Errors
///
/// `InvalidArgument`: no command, or a bad variable.
pub fn check_exec(request: &ExecCreateRequest) -> Result<()> {
    if request.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("No exec command specified"));
    }
    let texts = [&request.cmd, &request.env];
    if texts.into_iter().flatten().flatten().any(|text| text.contains('\0')) {
        return Err(Error::invalid("command and environment must not contain zero bytes"));
    }
    command::check_environment(request.env.as_deref().unwrap_or_default())
}
