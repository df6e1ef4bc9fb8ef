//! What runs: image and user configuration merged, command line, environment, directory.

use gantry_sdk::api::{ContainerConfig, ImageConfig};
use gantry_sdk::{Error, Result};

use super::path::clean;

/// Where programs are looked for unless image or user say otherwise. Source: the reference engine.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fills in from the image what the user left open.
///
/// Lists of ports, labels and volumes are joined, environments by name; an entry point of the user's
/// switches the image's command off.
///
/// # Errors
///
/// `InvalidArgument`: neither of them says what to run.
pub fn merge_image(config: &mut ContainerConfig, image: &ImageConfig) -> Result<()> {
    inherit(&mut config.user, &image.user);
    inherit(&mut config.working_dir, &image.working_dir);
    inherit(&mut config.stop_signal, &image.stop_signal);

    if !image.exposed_ports.is_empty() {
        let ports = config.exposed_ports.get_or_insert_default();
        ports.extend(image.exposed_ports.iter().map(|(port, empty)| (port.clone(), *empty)));
    }
    if !image.volumes.is_empty() {
        let volumes = config.volumes.get_or_insert_default();
        volumes.extend(image.volumes.iter().map(|(path, empty)| (path.clone(), *empty)));
    }
    let labels = config.labels.get_or_insert_default();
    for (name, value) in &image.labels {
        labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    merge_environment(config, image);

    if is_empty(&config.entrypoint) {
        if is_empty(&config.cmd) && !image.cmd.is_empty() {
            config.cmd = Some(image.cmd.clone());
        }
        if config.entrypoint.is_none() && !image.entrypoint.is_empty() {
            config.entrypoint = Some(image.entrypoint.clone());
        }
    }
    merge_healthcheck(config, image);
    settle_command(config)
}

/// As [`merge_image`], for a container without an image.
///
/// # Errors
///
/// `InvalidArgument`: it does not say what to run.
pub fn settle_command(config: &mut ContainerConfig) -> Result<()> {
    // `--entrypoint ""` switches the image's entry point off.
    if config.entrypoint.as_deref().is_some_and(|list| matches!(list, [one] if one.is_empty())) {
        config.entrypoint = None;
    }
    if is_empty(&config.entrypoint) && is_empty(&config.cmd) {
        return Err(Error::invalid("no command specified"));
    }
    Ok(())
}

/// Program and arguments.
#[must_use]
pub fn command_line(config: &ContainerConfig) -> Vec<String> {
    let entrypoint = config.entrypoint.iter().flatten();
    entrypoint.chain(config.cmd.iter().flatten()).cloned().collect()
}

fn is_empty(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

fn inherit(own: &mut String, image: &str) {
    if own.is_empty() {
        image.clone_into(own);
    }
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

fn merge_environment(config: &mut ContainerConfig, image: &ImageConfig) {
    let own = config.env.get_or_insert_default();
    for variable in &image.env {
        if !own.iter().any(|known| name_of(known) == name_of(variable)) {
            own.push(variable.clone());
        }
    }
}

fn merge_healthcheck(config: &mut ContainerConfig, image: &ImageConfig) {
    let Some(from) = &image.healthcheck else { return };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(from.clone());
        return;
    };
    if is_empty(&own.test) {
        own.test.clone_from(&from.test);
    }
    let numbers = [
        (&mut own.interval, from.interval),
        (&mut own.timeout, from.timeout),
        (&mut own.start_period, from.start_period),
        (&mut own.start_interval, from.start_interval),
        (&mut own.retries, from.retries),
    ];
    for (own, from) in numbers {
        if *own == 0 {
            *own = from;
        }
    }
}

/// The environment of the first process: path, host name, terminal, then the configuration's.
///
/// A variable replaces one of the same name in its place; a name without `=` removes it.
#[must_use]
pub fn environment(config: &ContainerConfig) -> Vec<String> {
    let mut base = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={}", config.hostname)];
    if config.tty {
        base.push("TERM=xterm".into());
    }
    override_environment(base, config.env.as_deref().unwrap_or_default())
}

/// `base` changed by `changes`, as in [`environment`].
#[must_use]
pub fn override_environment(base: Vec<String>, changes: &[String]) -> Vec<String> {
    let known = base.len();
    let mut result: Vec<Option<String>> = base.into_iter().map(Some).collect();
    let names: Vec<String> =
        result.iter().flatten().map(|variable| name_of(variable).to_owned()).collect();
    for change in changes {
        let at = names[..known].iter().rposition(|name| name == name_of(change));
        match (at, change.contains('=')) {
            (Some(at), true) => result[at] = Some(change.clone()),
            (Some(at), false) => result[at] = None,
            (None, true) => result.push(Some(change.clone())),
            (None, false) => {}
        }
    }
    result.into_iter().flatten().collect()
}

/// Whether every variable has a name.
///
/// # Errors
///
/// `InvalidArgument`, with the first that has none.
pub fn check_environment(variables: &[String]) -> Result<()> {
    match variables.iter().find(|variable| variable.is_empty() || variable.starts_with('=')) {
        Some(bad) => Err(Error::invalid(format!("invalid environment variable: {bad}"))),
        None => Ok(()),
    }
}

/// Checks and cleans the working directory; empty stays empty.
///
/// # Errors
///
/// `InvalidArgument`: not an absolute path.
pub fn settle_working_dir(config: &mut ContainerConfig) -> Result<()> {
    if config.working_dir.is_empty() {
        return Ok(());
    }
    if !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    config.working_dir = clean(&config.working_dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn commands_and_entry_points() {
        type Row<'a> =
            (Option<&'a [&'a str]>, &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a str);
        // user's entry point, user's command, image's entry point, image's command, result
        let cases: [Row<'_>; 9] = [
            (None, &[], &[], &["sh"], "sh"),
            (None, &["ls"], &[], &["sh"], "ls"),
            (None, &[], &["/init"], &["sh"], "/init sh"),
            (None, &["ls"], &["/init"], &["sh"], "/init ls"),
            (Some(&["/own"]), &[], &["/init"], &["sh"], "/own"),
            (Some(&["/own"]), &["a", "b"], &["/init"], &["sh"], "/own a b"),
            (Some(&[""]), &["ls"], &["/init"], &["sh"], "ls"),
            (Some(&[]), &["ls"], &["/init"], &["sh"], "ls"),
            (Some(&[]), &[], &["/init"], &["sh"], "sh"),
        ];
        for (entrypoint, cmd, image_entrypoint, image_cmd, expected) in cases {
            let mut config = ContainerConfig {
                entrypoint: entrypoint.map(list),
                cmd: (!cmd.is_empty()).then(|| list(cmd)),
                ..ContainerConfig::default()
            };
            let image = ImageConfig {
                entrypoint: list(image_entrypoint),
                cmd: list(image_cmd),
                ..ImageConfig::default()
            };
            merge_image(&mut config, &image).unwrap();
            assert_eq!(command_line(&config).join(" "), expected);
        }
    }

    #[test]
    fn something_must_run() {
        let mut config = ContainerConfig::default();
        let error = merge_image(&mut config, &ImageConfig::default()).unwrap_err();
        assert_eq!(error.to_string(), "no command specified");
        config.entrypoint = Some(list(&[""]));
        let image = ImageConfig { cmd: list(&["sh"]), ..ImageConfig::default() };
        assert!(merge_image(&mut config, &image).is_err());
    }

    #[test]
    fn environments() {
        let config = |tty, env: &[&str]| ContainerConfig {
            hostname: "h".into(),
            tty,
            env: Some(list(env)),
            ..ContainerConfig::default()
        };
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(environment(&config(false, &[])), [path.as_str(), "HOSTNAME=h"]);
        assert_eq!(
            environment(&config(true, &["A=1", "PATH=/x", "B="])),
            ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "A=1", "B="]
        );
        assert_eq!(environment(&config(true, &["HOSTNAME", "TERM", "GONE"])), [path.as_str()]);
        assert_eq!(environment(&config(false, &["A=1", "A=2"]))[2..], ["A=1", "A=2"]);
    }

    #[test]
    fn the_user_wins_over_the_image() {
        let mut config = ContainerConfig {
            env: Some(list(&["A=user", "B"])),
            labels: Some([("l".to_owned(), "user".to_owned())].into()),
            user: "app".into(),
            ..ContainerConfig::default()
        };
        let image = ImageConfig {
            cmd: list(&["sh"]),
            env: list(&["A=image", "B=image", "C=image"]),
            labels: [("l", "image"), ("m", "image")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            user: "root".into(),
            working_dir: "/srv".into(),
            stop_signal: "SIGINT".into(),
            ..ImageConfig::default()
        };
        merge_image(&mut config, &image).unwrap();
        assert_eq!(config.env, Some(list(&["A=user", "B", "C=image"])));
        assert_eq!(config.user, "app");
        assert_eq!(config.working_dir, "/srv");
        assert_eq!(config.stop_signal, "SIGINT");
        let labels = config.labels.unwrap();
        assert_eq!((labels["l"].as_str(), labels["m"].as_str()), ("user", "image"));
    }

    #[test]
    fn working_directories() {
        let cases = [("", Ok("")), ("/a/../b//", Ok("/b")), ("srv", Err(()))];
        for (given, expected) in cases {
            let mut config =
                ContainerConfig { working_dir: given.into(), ..ContainerConfig::default() };
            let result = settle_working_dir(&mut config).map_err(|_| ());
            assert_eq!(result.map(|()| config.working_dir.as_str()), expected);
        }
    }
}
