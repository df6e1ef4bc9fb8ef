//! Changes to an image's configuration, written as in a Dockerfile: `CMD`, `ENV`, `EXPOSE`, …
//!
//! Source: the Dockerfile reference; error texts as its users know them where they are known.

use gantry_api::common::Empty;
use gantry_api::container::HealthConfig;
use gantry_api::image::ImageConfig;
use gantry_sdk::{Error, Result};

mod words;

use words::{exec_form, expand, logical_lines, name_values, words};

/// Most instructions of one request.
const MAX_CHANGES: usize = 1000;
/// Most ports one range may name: all of them.
const MAX_PORT: u32 = 65535;

/// Applies `changes` in order.
///
/// # Errors
///
/// `InvalidArgument` with the instruction.
pub fn apply(config: &mut ImageConfig, changes: &[String]) -> Result<()> {
    let lines = logical_lines(&changes.join("\n"));
    if lines.len() > MAX_CHANGES {
        return Err(Error::invalid(format!("more than {MAX_CHANGES} changes")));
    }
    let mut state = State { config, has_cmd: false };
    for line in lines {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        state.one(&name.to_ascii_uppercase(), rest.trim())?;
    }
    Ok(())
}

struct State<'a> {
    config: &'a mut ImageConfig,
    /// Whether these changes set a command: then a later entrypoint does not reset it.
    has_cmd: bool,
}

impl State<'_> {
    fn one(&mut self, name: &str, rest: &str) -> Result<()> {
        let known = [
            "CMD",
            "ENTRYPOINT",
            "ENV",
            "EXPOSE",
            "HEALTHCHECK",
            "LABEL",
            "ONBUILD",
            "STOPSIGNAL",
            "USER",
            "VOLUME",
            "WORKDIR",
        ];
        if !known.contains(&name) {
            return Err(Error::invalid(format!("{name:.40} is not a valid change command")));
        }
        if rest.is_empty() && !matches!(name, "CMD" | "ENTRYPOINT") {
            return Err(Error::invalid(format!("{name} requires at least one argument")));
        }
        match name {
            "CMD" => {
                self.config.cmd = command(rest, &self.config.shell);
                self.has_cmd = true;
            }
            "ENTRYPOINT" => {
                self.config.entrypoint = command(rest, &self.config.shell);
                if !self.has_cmd {
                    self.config.cmd.clear();
                }
            }
            "ENV" => self.env(rest)?,
            "EXPOSE" => self.expose(rest)?,
            "HEALTHCHECK" => {
                self.config.healthcheck = Some(healthcheck(rest, &self.config.shell)?);
            }
            "LABEL" => {
                for (key, value) in name_values("LABEL", rest, &self.config.env)? {
                    self.config.labels.insert(key, value);
                }
            }
            "ONBUILD" => self.on_build(rest)?,
            "STOPSIGNAL" => self.config.stop_signal = stop_signal(&self.single(name, rest)?)?,
            "USER" => self.config.user = self.single(name, rest)?,
            "VOLUME" => self.volume(rest)?,
            _ => self.work_dir(rest)?,
        }
        Ok(())
    }

    /// The only argument, variables replaced.
    fn single(&self, name: &str, rest: &str) -> Result<String> {
        match words(rest).as_slice() {
            [one] => expand(one, &self.config.env),
            _ => Err(Error::invalid(format!("{name} requires exactly one argument"))),
        }
    }

    fn env(&mut self, rest: &str) -> Result<()> {
        for (key, value) in name_values("ENV", rest, &self.config.env)? {
            let line = format!("{key}={value}");
            let same = |known: &&mut String| known.split('=').next() == Some(&key);
            match self.config.env.iter_mut().find(same) {
                Some(known) => *known = line,
                None => self.config.env.push(line),
            }
        }
        Ok(())
    }

    fn expose(&mut self, rest: &str) -> Result<()> {
        for word in words(rest) {
            let text = expand(&word, &self.config.env)?;
            let invalid = || Error::invalid(format!("invalid containerPort: {text:.40}"));
            let (ports, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
            let protocol = protocol.to_ascii_lowercase();
            if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
                return Err(Error::invalid(format!("invalid proto: {protocol:.40}")));
            }
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n <= MAX_PORT);
            let (first, last) = number(first).zip(number(last)).ok_or_else(invalid)?;
            if first > last {
                return Err(invalid());
            }
            for port in first..=last {
                self.config.exposed_ports.insert(format!("{port}/{protocol}"), Empty {});
            }
        }
        Ok(())
    }

    fn on_build(&mut self, rest: &str) -> Result<()> {
        let trigger = words(rest).first().map(|w| w.to_ascii_uppercase()).unwrap_or_default();
        match trigger.as_str() {
            "ONBUILD" => {
                Err(Error::invalid("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"))
            }
            "MAINTAINER" | "FROM" => {
                Err(Error::invalid(format!("{trigger} isn't allowed as an ONBUILD trigger")))
            }
            _ => {
                self.config.on_build.push(rest.to_owned());
                Ok(())
            }
        }
    }

    fn volume(&mut self, rest: &str) -> Result<()> {
        for word in exec_form(rest).unwrap_or_else(|| words(rest)) {
            let path = expand(&word, &self.config.env)?;
            if path.trim().is_empty() {
                return Err(Error::invalid("VOLUME specified can not be an empty string"));
            }
            self.config.volumes.insert(path, Empty {});
        }
        Ok(())
    }

    fn work_dir(&mut self, rest: &str) -> Result<()> {
        let path = expand(rest, &self.config.env)?;
        let base = if path.starts_with('/') { "" } else { &self.config.working_dir };
        let mut parts: Vec<&str> = Vec::new();
        for part in base.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        self.config.working_dir = format!("/{}", parts.join("/"));
        Ok(())
    }
}

/// A list as it is, a line through the shell.
fn command(rest: &str, shell: &[String]) -> Vec<String> {
    if rest.is_empty() {
        return Vec::new();
    }
    exec_form(rest).unwrap_or_else(|| {
        let mut line = match shell {
            [] => vec!["/bin/sh".to_owned(), "-c".to_owned()],
            shell => shell.to_vec(),
        };
        line.push(rest.to_owned());
        line
    })
}

fn healthcheck(rest: &str, shell: &[String]) -> Result<HealthConfig> {
    let mut health = HealthConfig::default();
    let mut rest = rest;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, behind) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        rest = behind.trim_start();
        match name {
            "interval" => health.interval = pause(name, value)?,
            "timeout" => health.timeout = pause(name, value)?,
            "start-period" => health.start_period = pause(name, value)?,
            "start-interval" => health.start_interval = pause(name, value)?,
            "retries" => {
                let invalid = || Error::invalid(format!("--retries cannot be {value:.40?}"));
                let retries = value.parse().ok().filter(|n: &i64| *n >= 0);
                health.retries = retries.ok_or_else(invalid)?;
            }
            _ => return Err(Error::invalid(format!("unknown flag: {name:.40}"))),
        }
    }
    let (kind, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let arguments = arguments.trim();
    health.test = Some(match kind.to_ascii_uppercase().as_str() {
        "NONE" if !arguments.is_empty() => {
            return Err(Error::invalid("HEALTHCHECK NONE takes no arguments"));
        }
        "NONE" => vec!["NONE".to_owned()],
        "CMD" if arguments.is_empty() => {
            return Err(Error::invalid("Missing command after HEALTHCHECK CMD"));
        }
        "CMD" => match exec_form(arguments) {
            Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
            // The shell of the image is found when the check runs.
            None if shell.is_empty() => vec!["CMD-SHELL".to_owned(), arguments.to_owned()],
            None => std::iter::once("CMD".to_owned()).chain(command(arguments, shell)).collect(),
        },
        other => {
            return Err(Error::invalid(format!(
                "Unknown type {other:.40?} in HEALTHCHECK (try CMD)"
            )));
        }
    });
    Ok(health)
}

/// Nanoseconds of a flag; 0 means the default.
fn pause(name: &str, value: &str) -> Result<i64> {
    let nanos = gantry_sdk::time::duration(value)
        .ok_or_else(|| Error::invalid(format!("invalid duration {value:.40?} of --{name}")))?;
    if nanos != 0 && nanos < 1_000_000 {
        return Err(Error::invalid(format!("Interval {name:?} cannot be less than 1ms")));
    }
    Ok(nanos)
}

/// Names of signals without `SIG`.
const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

fn stop_signal(text: &str) -> Result<String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (base, offset) = match name.split_once(['+', '-']) {
        Some((base @ ("RTMIN" | "RTMAX"), offset)) => (base, offset.parse::<u8>().ok()),
        _ => (name, Some(0)),
    };
    let number = text.parse::<u8>().is_ok_and(|n| (1..=64).contains(&n));
    if number || (SIGNALS.contains(&base) && offset.is_some_and(|n| n <= 15)) {
        Ok(text.to_owned())
    } else {
        Err(Error::invalid(format!("Invalid signal: {text:.40}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Result<ImageConfig> {
        let mut config = ImageConfig { cmd: vec!["old".into()], ..ImageConfig::default() };
        let changes: Vec<String> = changes.iter().map(|&c| c.to_owned()).collect();
        apply(&mut config, &changes).map(|()| config)
    }

    #[test]
    fn every_instruction_changes_its_field() {
        let config = applied(&[
            "ENV A=1 B=\"two words\" C=$A\nENV OLD style value",
            "ENTRYPOINT [\"/init\"]",
            "CMD echo hi",
            "EXPOSE 80 90-91/udp",
            "LABEL x.y=\"a b\" z=${B}",
            "USER 1000:$A",
            "VOLUME [\"/data\"]",
            "VOLUME /a /b",
            "WORKDIR /srv\nWORKDIR app/../x",
            "STOPSIGNAL SIGRTMIN+3",
            "ONBUILD RUN make",
            "HEALTHCHECK --interval=5s --retries=3 CMD curl -f \\\n  localhost",
        ])
        .unwrap();
        assert_eq!(config.env, ["A=1", "B=two words", "C=", "OLD=style value"]);
        assert_eq!(config.entrypoint, ["/init"]);
        assert_eq!(config.cmd, ["/bin/sh", "-c", "echo hi"]);
        let ports: Vec<_> = config.exposed_ports.keys().map(String::as_str).collect();
        assert_eq!(ports, ["80/tcp", "90/udp", "91/udp"]);
        assert_eq!(config.labels["x.y"], "a b");
        assert_eq!(config.labels["z"], "two words");
        assert_eq!(config.user, "1000:1");
        assert_eq!(config.volumes.len(), 3);
        assert_eq!(config.working_dir, "/srv/x");
        assert_eq!(config.stop_signal, "SIGRTMIN+3");
        assert_eq!(config.on_build, ["RUN make"]);
        let health = config.healthcheck.unwrap();
        assert_eq!(health.test.unwrap(), ["CMD-SHELL", "curl -f   localhost"]);
        assert_eq!((health.interval, health.retries), (5_000_000_000, 3));
    }

    #[test]
    fn an_entrypoint_resets_an_inherited_command_only() {
        assert!(applied(&["ENTRYPOINT /x"]).unwrap().cmd.is_empty());
        assert_eq!(applied(&["CMD [\"a\"]", "entrypoint /x"]).unwrap().cmd, ["a"]);
        assert!(applied(&["CMD []"]).unwrap().cmd.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("RUN x", "RUN is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV A", "ENV must have two arguments"),
            ("USER a b", "USER requires exactly one argument"),
            ("EXPOSE 70000", "invalid containerPort: 70000"),
            ("EXPOSE 1/icmp", "invalid proto: icmp"),
            ("STOPSIGNAL NOPE", "Invalid signal: NOPE"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
            ("LABEL a=\"x", "unexpected end of statement while looking for matching double-quote"),
        ];
        for (change, message) in cases {
            assert_eq!(applied(&[change]).unwrap_err().to_string(), message, "{change}");
        }
    }
}
