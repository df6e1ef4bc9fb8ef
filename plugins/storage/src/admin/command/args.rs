//! The arguments of `gantryd storage`.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::admin::wire::{DropRequest, MigrateRequest, Selection, VerifyRequest};

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    List { size: bool },
    Migrate(MigrateRequest),
    Verify(VerifyRequest),
    Drop(DropRequest),
}

/// Why the arguments ask for nothing: what to print, and the exit code.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    pub(super) text: String,
    pub(super) code: u8,
}

/// What is asked for, and whether the answer is to be JSON.
pub(super) fn parse(args: &[OsString]) -> Result<(Asked, bool), Usage> {
    let program = std::iter::once(OsString::from("gantryd storage"));
    let matches = command()
        .try_get_matches_from(program.chain(args.iter().cloned()))
        .map_err(|error| Usage { text: error.to_string(), code: u8::from(error.use_stderr()) })?;
    let Some((name, own)) = matches.subcommand() else {
        return Err(Usage { text: command().render_help().to_string(), code: 1 });
    };
    let asked = match name {
        "ls" => Asked::List { size: own.get_flag("size") },
        "migrate" => Asked::Migrate(migrate(own).map_err(usage)?),
        "verify" => Asked::Verify(VerifyRequest {
            instance: text(own, "instance"),
            deep: own.get_flag("deep"),
            repair: own.get_flag("repair"),
        }),
        _ => Asked::Drop(DropRequest {
            instance: text(own, "instance"),
            force: own.get_flag("force"),
        }),
    };
    Ok((asked, own.get_flag("json")))
}

fn usage(text: String) -> Usage {
    Usage { text: format!("error: {text}\n"), code: 1 }
}

fn text(matches: &ArgMatches, name: &str) -> String {
    matches.get_one::<String>(name).cloned().unwrap_or_default()
}

fn migrate(own: &ArgMatches) -> Result<MigrateRequest, String> {
    let chosen = |name: &str, words: &[&str]| {
        let values: Option<Vec<String>> =
            own.get_many::<String>(name).map(|values| values.cloned().collect());
        values.map(|values| match values.as_slice() {
            [word] if words.contains(&word.as_str()) => Selection::Word(word.clone()),
            _ => Selection::List(values),
        })
    };
    let word = |word: &str| Selection::Word(word.to_owned());
    let images = chosen("images", &["all", "used", "none"]);
    let containers = chosen("containers", &["stopped", "none"]);
    let (images, containers) = match (images, containers) {
        // Everything that would otherwise still need the instance they are in.
        (None, None) => (word("used"), word("stopped")),
        (images, containers) => {
            (images.unwrap_or_else(|| word("none")), containers.unwrap_or_else(|| word("none")))
        }
    };
    Ok(MigrateRequest {
        to: text(own, "to"),
        images,
        containers,
        dry_run: own.get_flag("dry-run"),
        deep: own.get_flag("deep"),
        purge: own.get_flag("purge"),
        rate: own.get_one::<String>("rate").map(|text| rate(text)).transpose()?,
    })
}

/// `200MB/s`, `1.5GiB`, `100000`: bytes a second.
fn rate(text: &str) -> Result<u64, String> {
    let invalid = || format!("invalid rate {text:?}: write it like 200MB/s");
    let plain = text.trim();
    let plain = plain.strip_suffix("/s").unwrap_or(plain).trim();
    let split = plain.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(plain.len());
    let (number, unit) = plain.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let bytes = number * factor;
    if (1.0..1e15).contains(&bytes) { Ok(bytes as u64) } else { Err(invalid()) }
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn instance() -> Arg {
    Arg::new("instance").required(true).value_name("INSTANCE").help("A storage instance")
}

fn several(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).value_name(value).num_args(1..).action(ArgAction::Append)
}

fn command() -> Command {
    let json = || switch("json", "Print JSON, one document a line");
    let deep = || switch("deep", "Also compare the content of files");
    Command::new("gantryd storage")
        .bin_name("gantryd storage")
        .about(
            "Looks after storage instances. Flags that say where the daemon is (-H, --config-file) go \
             before the word \"storage\".",
        )
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("ls")
                .about("Instances with their layers, bytes, containers and health")
                .arg(switch("size", "Also count what containers wrote"))
                .arg(json()),
        )
        .subcommand(
            Command::new("migrate")
                .about("Unpacks images in another instance and moves stopped containers there")
                .arg(
                    Arg::new("to")
                        .long("to")
                        .required(true)
                        .value_name("INSTANCE")
                        .help("Where they go"),
                )
                .arg(several("images", "all|used|none|IMAGE", "Which images [default: used]"))
                .arg(several(
                    "containers",
                    "stopped|none|CONTAINER",
                    "Which containers [default: stopped]",
                ))
                .arg(switch("dry-run", "Say what would be done, and do nothing"))
                .arg(
                    Arg::new("rate")
                        .long("rate")
                        .value_name("RATE")
                        .help("Read at most so much a second, as in 200MB/s"),
                )
                .arg(deep())
                .arg(switch(
                    "purge",
                    "Remove the containers' old layers at once, not when they are started",
                ))
                .arg(json()),
        )
        .subcommand(
            Command::new("verify")
                .about("Compares what is unpacked with the blobs it came from")
                .arg(instance())
                .arg(deep())
                .arg(switch("repair", "Drop what is damaged, unless a container stands on it"))
                .arg(json()),
        )
        .subcommand(
            Command::new("drop")
                .about("Drops what is unpacked of images; containers' own layers stay")
                .arg(instance())
                .arg(switch("force", "Although containers refer to the instance"))
                .arg(json()),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<(Asked, bool), Usage> {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn clap_accepts_it() {
        command().debug_assert();
    }

    #[test]
    fn what_is_selected_depends_on_what_is_said() {
        let cases = [
            ("", ("used", "stopped")),
            ("--images all", ("all", "none")),
            ("--containers stopped", ("none", "stopped")),
        ];
        for (line, (images, containers)) in cases {
            let (Asked::Migrate(request), _) = asked(&format!("migrate --to x {line}")).unwrap()
            else {
                panic!("{line}")
            };
            assert_eq!(request.images, Selection::Word(images.to_owned()), "{line}");
            assert_eq!(request.containers, Selection::Word(containers.to_owned()), "{line}");
        }
        let line = "migrate --images a:1 b --rate 1.5MB/s --to x --deep --containers c --json";
        let (Asked::Migrate(request), json) = asked(line).unwrap() else { panic!() };
        let list =
            |names: &[&str]| Selection::List(names.iter().map(|n| (*n).to_owned()).collect());
        assert_eq!((request.images, request.containers), (list(&["a:1", "b"]), list(&["c"])));
        assert!(request.deep && !request.dry_run && json);
        assert_eq!(request.rate, Some(1_500_000));
    }

    #[test]
    fn rates_have_units() {
        let cases = [("200MB/s", 200_000_000), ("1GiB", 1 << 30), ("7", 7), ("2 k/s", 2_000)];
        for (text, expected) in cases {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "MB/s", "-1", "1e9", "5x", "1e99GB"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_and_help_have_their_codes() {
        assert_eq!(asked("--help").unwrap_err().code, 0);
        assert_eq!(asked("migrate --help").unwrap_err().code, 0);
        for line in
            ["", "nope", "migrate", "verify", "drop a b", "ls --no", "migrate --to x --rate q"]
        {
            assert_eq!(asked(line).unwrap_err().code, 1, "{line}");
        }
    }
}
