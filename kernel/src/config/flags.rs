//! The command line: every flag of the table in `options`, and the few that only steer this
//! program.
//!
//! Values stay text while clap parses, so that a malformed one is reported together with all other
//! mistakes instead of alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use gantry_sdk::command;
use serde_json::{Map, Value, json};

use super::Settings;
use super::options::{OPTIONS, Opt, Owner, Shape};
use super::problem::{Place, Problems};

/// The flags given, raw: values by flag name, in the order given.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    given: BTreeMap<&'static str, Vec<String>>,
    /// `--config-file`.
    pub config_file: Option<PathBuf>,
    /// `--validate`: check everything, print the plan, do nothing.
    pub validate: bool,
    /// A plugin's command and what follows it; none starts the daemon.
    pub command: Option<(String, Vec<OsString>)>,
}

/// Why the command line did not lead to a start: what to print, and the exit code.
///
/// `--help` and `--version` arrive here too, with code 0.
#[derive(Clone, Debug)]
pub struct Usage {
    /// What to print: on standard output for code 0, on standard error otherwise.
    pub text: String,
    /// 0 or 1.
    pub code: u8,
}

impl Flags {
    /// Parses the arguments after the program's name, of a program without commands.
    ///
    /// # Errors
    ///
    /// As [`parse_with`](Self::parse_with).
    pub fn parse<I, T>(args: I, version: &'static str) -> Result<Self, Usage>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        Self::parse_with(args, version, &[])
    }

    /// Parses the arguments after the program's name. The first one that is no flag must be one of
    /// `commands`; what follows it is the command's own.
    ///
    /// # Errors
    ///
    /// The text to print for `--help`, `--version` and what is neither flag nor command.
    pub fn parse_with<I, T>(
        args: I,
        version: &'static str,
        commands: &[command::Command],
    ) -> Result<Self, Usage>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let program = std::iter::once(OsString::from("gantryd"));
        let matches = program_with(version, commands)
            .try_get_matches_from(program.chain(args.into_iter().map(Into::into)))
            .map_err(|error| Usage {
                text: error.to_string(),
                code: u8::from(error.use_stderr()),
            })?;
        Ok(Self {
            given: OPTIONS
                .iter()
                .filter(|opt| !opt.flag.is_empty())
                .filter_map(|opt| Some((opt.flag, values(&matches, opt.flag)?)))
                .collect(),
            config_file: values(&matches, "config-file").and_then(|v| v.last().map(PathBuf::from)),
            validate: values(&matches, "validate")
                .and_then(|v| v.last().and_then(|text| switch(text)))
                .unwrap_or_default(),
            command: matches.subcommand().map(|(name, own)| {
                let rest = own.get_many::<OsString>(REST).into_iter().flatten();
                (name.to_owned(), rest.cloned().collect())
            }),
        })
    }

    /// The flags as settings under their keys in the file.
    pub(crate) fn settings(&self, problems: &mut Problems) -> Settings {
        let mut settings = Settings::new();
        for opt in OPTIONS {
            let Some(texts) = self.given.get(opt.flag) else { continue };
            let place = Place::Flag(opt.flag.to_owned());
            if let Some(value) = problems.check(&place, value(opt.shape, texts)) {
                settings.insert(opt.key.to_owned(), (value, place));
            }
        }
        settings
    }
}

fn values(matches: &ArgMatches, id: &str) -> Option<Vec<String>> {
    // `get_many` of an id that is not defined would panic; all ids come from the same table.
    matches.try_get_many::<String>(id).ok().flatten().map(|texts| texts.cloned().collect())
}

/// The id of what follows a command.
const REST: &str = "rest";

/// Everything after a command's name belongs to it, `--help` too.
fn subcommand(own: &command::Command) -> Command {
    Command::new(own.name).about(own.about).disable_help_flag(true).arg(
        Arg::new(REST)
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true)
            .value_parser(clap::value_parser!(OsString)),
    )
}

fn program_with(version: &'static str, commands: &[command::Command]) -> Command {
    let own = [
        text_arg("config-file", "Daemon configuration file").value_name("FILE"),
        switch_arg("validate", "Validate the configuration, print the plan and exit"),
    ];
    Command::new("gantryd")
        .about("A container engine of plugins behind the Docker Engine API.")
        .version(version)
        .disable_version_flag(true)
        .arg(
            Arg::new("version")
                .long("version")
                .short('v')
                .action(ArgAction::Version)
                .help("Print version information and exit"),
        )
        .args(own)
        .args(OPTIONS.iter().filter(|opt| !opt.flag.is_empty()).map(arg))
        .subcommands(commands.iter().map(subcommand))
        .disable_help_subcommand(true)
}

fn arg(opt: &'static Opt) -> Arg {
    let mut arg = match opt.shape {
        Shape::Switch => switch_arg(opt.flag, opt.help),
        _ => text_arg(opt.flag, opt.help).value_name(match opt.shape {
            Shape::Whole => "NUMBER",
            Shape::Size => "BYTES",
            Shape::Pairs => "KEY=VALUE",
            Shape::NestedPairs => "DRIVER=KEY=VALUE",
            Shape::Toggles => "NAME[=BOOL]",
            Shape::Runtimes => "NAME=PATH",
            Shape::Ulimits => "NAME=SOFT[:HARD]",
            Shape::Pools => "base=PREFIX,size=BITS",
            Shape::Fields => "FIELD=VALUE,…",
            _ => "VALUE",
        }),
    };
    if let Some(letter) = opt.short {
        arg = arg.short(letter);
    }
    arg.hide(opt.help.is_empty() || matches!(opt.owner, Owner::Refused(_)))
}

fn text_arg(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::Append)
        .num_args(1)
        .allow_hyphen_values(true)
}

/// `--flag`, `--flag=true`, `--flag=false`; never `--flag true`, as in the reference engine.
fn switch_arg(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::Append)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_name("BOOL")
        .hide_possible_values(true)
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub(crate) fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The texts of one flag as the value its key has in the file. Of several texts for a single value
/// the last one counts.
fn value(shape: Shape, texts: &[String]) -> Result<Value, String> {
    let last = texts.last().map_or("", String::as_str);
    match shape {
        Shape::Switch => switch(last)
            .map(Value::Bool)
            .ok_or_else(|| format!("invalid boolean {last:?}: use true or false")),
        Shape::Text | Shape::Size => Ok(Value::String(last.to_owned())),
        Shape::Whole => {
            last.parse::<i64>().map(Value::from).map_err(|_| format!("invalid number {last:?}"))
        }
        Shape::List => Ok(texts.iter().map(String::as_str).collect()),
        Shape::Pairs => collect(texts, |map, text| {
            let (key, value) = pair(text)?;
            map.insert(key.to_owned(), value.into());
            Ok(())
        }),
        Shape::NestedPairs => collect(texts, |map, text| {
            let (outer, rest) = pair(text)?;
            let (key, value) = pair(rest)?;
            let inner = map.entry(outer).or_insert_with(|| json!({}));
            if let Value::Object(inner) = inner {
                inner.insert(key.to_owned(), value.into());
            }
            Ok(())
        }),
        Shape::Toggles => collect(texts, |map, text| {
            let (name, on) = text.split_once('=').unwrap_or((text, "true"));
            let on = switch(on).ok_or_else(|| format!("invalid boolean in {text:?}"))?;
            map.insert(name.to_owned(), on.into());
            Ok(())
        }),
        Shape::Runtimes => collect(texts, runtime),
        Shape::Ulimits => collect(texts, ulimit),
        Shape::Pools => texts.iter().map(|text| pool(text)).collect::<Result<Value, _>>(),
        Shape::Fields => fields(last),
        Shape::Object => Err("can only be set in the file".to_owned()),
    }
}

fn collect(
    texts: &[String],
    mut add: impl FnMut(&mut Map<String, Value>, &str) -> Result<(), String>,
) -> Result<Value, String> {
    let mut map = Map::new();
    texts.iter().try_for_each(|text| add(&mut map, text))?;
    Ok(Value::Object(map))
}

fn pair(text: &str) -> Result<(&str, &str), String> {
    text.split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("invalid value {text:?}: must be key=value"))
}

fn runtime(map: &mut Map<String, Value>, text: &str) -> Result<(), String> {
    let (name, path) = pair(text)?;
    let name = name.trim().to_ascii_lowercase();
    if path.trim().is_empty() {
        return Err(format!("invalid runtime {text:?}: must be name=path"));
    }
    match map.insert(name.clone(), json!({ "path": path.trim() })) {
        Some(_) => Err(format!("runtime {name:?} is defined twice")),
        None => Ok(()),
    }
}

/// `name=soft[:hard]`; -1 is no limit. Source: the reference engine's `ulimit` option.
fn ulimit(map: &mut Map<String, Value>, text: &str) -> Result<(), String> {
    let invalid = || format!("invalid ulimit {text:?}: must be name=soft[:hard]");
    let (name, limits) = pair(text)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let soft: i64 = soft.parse().map_err(|_| invalid())?;
    let hard: i64 = hard.parse().map_err(|_| invalid())?;
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!("invalid ulimit {text:?}: the soft limit is above the hard limit"));
    }
    map.insert(name.to_owned(), json!({ "Name": name, "Soft": soft, "Hard": hard }));
    Ok(())
}

fn pool(text: &str) -> Result<Value, String> {
    let mut pool = Map::new();
    for field in text.split(',') {
        let (key, value) = pair(field)?;
        match key.to_ascii_lowercase().as_str() {
            "base" => pool.insert("base".to_owned(), value.into()),
            "size" => {
                let size: u8 = value.parse().map_err(|_| format!("invalid size in {text:?}"))?;
                pool.insert("size".to_owned(), size.into())
            }
            other => return Err(format!("unexpected key {other:?} in {text:?}")),
        };
    }
    if pool.len() == 2 {
        Ok(Value::Object(pool))
    } else {
        Err(format!("invalid pool {text:?}: must be base=prefix,size=bits"))
    }
}

fn fields(text: &str) -> Result<Value, String> {
    let mut map = Map::new();
    for field in text.split(',') {
        let (key, value) = pair(field)?;
        let value = switch(value).map_or_else(|| Value::from(value), Value::Bool);
        map.insert(key.to_owned(), value);
    }
    Ok(Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(args: &[&str]) -> (Settings, Problems) {
        let flags = Flags::parse(args.iter().copied(), "test").unwrap();
        let mut problems = Problems::default();
        let settings = flags.settings(&mut problems);
        (settings, problems)
    }

    fn value_of(args: &[&str], key: &str) -> Value {
        let (settings, problems) = settings(args);
        problems.into_result().unwrap();
        settings[key].0.clone()
    }

    const ECHO: command::Command = command::Command {
        name: "echo",
        about: "Says it again",
        run: |_| std::process::ExitCode::SUCCESS,
    };

    #[test]
    fn a_command_takes_what_follows_it() {
        let parse = |args: &[&str]| Flags::parse_with(args.iter().copied(), "v", &[ECHO]);
        let flags = parse(&["-H", "unix:///a", "--debug", "echo", "-x", "--help", "y"]).unwrap();
        let (name, rest) = flags.command.unwrap();
        assert_eq!((name.as_str(), rest), ("echo", ["-x", "--help", "y"].map(Into::into).to_vec()));
        assert_eq!(parse(&["-D"]).unwrap().command, None);
        assert_eq!(parse(&["help"]).unwrap_err().code, 1);
        assert_eq!(parse(&["ecko"]).unwrap_err().code, 1);
        assert_eq!(Flags::parse(["echo"], "v").unwrap_err().code, 1);
        assert!(parse(&["--help"]).unwrap_err().text.contains("Says it again"));
    }

    #[test]
    fn clap_accepts_the_table() {
        program_with("test", &[ECHO]).debug_assert();
    }

    #[test]
    fn flags_become_the_values_of_their_keys() {
        let cases: &[(&[&str], &str, Value)] = &[
            (&["-H", "unix:///a", "--host=tcp://b:1"], "hosts", json!(["unix:///a", "tcp://b:1"])),
            (&["-D"], "debug", json!(true)),
            (&["--debug=false"], "debug", json!(false)),
            (&["--iptables=0"], "iptables", json!(false)),
            (&["-l", "warn", "--log-level", "debug"], "log-level", json!("debug")),
            (&["--shutdown-timeout", "-1"], "shutdown-timeout", json!(-1)),
            (&["--log-opt", "max-size=1m"], "log-opts", json!({"max-size": "1m"})),
            (
                &["--default-network-opt=bridge=com.x=1500"],
                "default-network-opts",
                json!({"bridge": {"com.x": "1500"}}),
            ),
            (&["--feature=cdi=false"], "features", json!({"cdi": false})),
            (&["--add-runtime", "Kata=/k"], "runtimes", json!({"kata": {"path": "/k"}})),
            (
                &["--default-ulimit", "nofile=1:2"],
                "default-ulimits",
                json!({"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}}),
            ),
            (
                &["--default-address-pool", "base=10.0.0.0/8,size=24"],
                "default-address-pools",
                json!([{"base": "10.0.0.0/8", "size": 24}]),
            ),
            (&["--containerd", "/run/c.sock"], "containerd", json!("/run/c.sock")),
            (&["--containerd-plugins-namespace=x"], "containerd-plugin-namespace", json!("x")),
        ];
        for (args, key, expected) in cases {
            assert_eq!(value_of(args, key), *expected, "{args:?}");
        }
    }

    #[test]
    fn every_malformed_value_is_reported() {
        let (_, problems) = settings(&[
            "--mtu=x",
            "--icc=maybe",
            "--log-opt=nope",
            "--default-ulimit=nofile=3:2",
            "--default-address-pool=base=1",
        ]);
        assert_eq!(problems.into_result().unwrap_err().0.len(), 5);
    }

    #[test]
    fn what_is_no_flag_is_a_usage_error() {
        assert_eq!(Flags::parse(["--no-such"], "v").unwrap_err().code, 1);
        assert_eq!(Flags::parse(["--help"], "v").unwrap_err().code, 0);
        let version = Flags::parse(["-v"], "1.2.3, build abc").unwrap_err();
        assert!(version.text.contains("1.2.3, build abc"));
    }
}
