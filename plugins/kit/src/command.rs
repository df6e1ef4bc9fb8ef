//! `gantryd kit storage …`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Arg, ArgAction, value_parser};
use gantry_sdk::command::{Command, CommandContext, Workbench};
use gantry_sdk::kinds::storage::Storage;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{Error, Result};
use gantry_testkit::storage::{self, Made, MakeDriver, Outcome, Selection, Subject};

use crate::Archives;
use crate::show::{Screen, as_json};

/// What this plugin adds to the program.
pub(crate) const COMMANDS: &[Command] =
    &[Command { name: "kit", about: "Check whether a storage driver keeps its contract", run }];

/// The kinds of file systems that a driver is tried on that does not work on the scratch directory.
const FILE_SYSTEMS: &[&str] = &["btrfs", "xfs", "ext4"];

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    driver: String,
    root: PathBuf,
    filter: String,
    level: u8,
    json: bool,
}

fn arguments() -> clap::Command {
    let value =
        |name: &'static str, value, help| Arg::new(name).long(name).value_name(value).help(help);
    let storage = clap::Command::new("storage")
        .about("Tries a storage driver of this program: 60 checks, no daemon, nothing is left")
        .arg(value("driver", "NAME", "The driver, as in --storage-driver").required(true))
        .arg(
            value("root", "DIR", "Where to make directories and images, removed afterwards")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(value("filter", "TEXT", "Only checks with this in their name, or with this number"))
        .arg(
            value("level", "N", "0: calls, 1: mounts too, 2: file systems and killing too")
                .value_parser(value_parser!(u8).range(0..=2))
                .default_value("2"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("The report as JSON"));
    clap::Command::new("gantryd kit")
        .about("Checks whether a driver keeps its contract")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(storage)
}

fn parse(args: &[OsString]) -> std::result::Result<Asked, clap::Error> {
    let program = std::iter::once(OsString::from("gantryd kit"));
    let matches = arguments().try_get_matches_from(program.chain(args.iter().cloned()))?;
    let own = matches.subcommand().map(|(_, own)| own).unwrap_or(&matches);
    let text = |name: &str| own.get_one::<String>(name).cloned().unwrap_or_default();
    Ok(Asked {
        driver: text("driver"),
        root: own.get_one("root").cloned().unwrap_or_else(std::env::temp_dir),
        filter: text("filter"),
        level: own.get_one("level").copied().unwrap_or(2),
        json: own.get_flag("json"),
    })
}

fn run(cx: &mut CommandContext) -> ExitCode {
    let asked = match parse(&cx.args) {
        Ok(asked) => asked,
        Err(error) => {
            let is_mistake = error.use_stderr();
            let out = if is_mistake { &mut cx.err } else { &mut cx.out };
            let _ = write!(out, "{error}"); // nobody may be reading
            return ExitCode::from(u8::from(is_mistake));
        }
    };
    match carry_out(cx, &asked) {
        Ok(code) => code,
        Err(error) => cx.fail(&error),
    }
}

/// The driver of this build, made anew on each directory.
fn subject(bench: &Arc<dyn Workbench>, asked: &Asked) -> Subject {
    let (starter, instance) = (bench.clone(), asked.driver.clone());
    let make: MakeDriver = Arc::new(move |root| {
        let (bench, instance) = (starter.clone(), instance.clone());
        Box::pin(async move {
            let started = bench.start(Storage::NAME, &instance, &root).await?;
            let driver = started.registry.get::<Storage>(&instance)?;
            let grants = started.registry.grants::<Storage>(&instance).as_ref().clone();
            Ok(Made { driver, grants, keep: started.keep })
        })
    });
    let child = ["kit", "storage", "--driver", &asked.driver].map(OsString::from);
    Subject::made_by(make, Arc::new(Archives), bench.mounts())
        .in_directory(&asked.root)
        .with_child(child)
}

fn carry_out(cx: &mut CommandContext, asked: &Asked) -> Result<ExitCode> {
    let bench = cx.workbench.clone();
    let subject = subject(&bench, asked);
    if storage::is_child() {
        return Ok(storage::child(&subject));
    }
    if rustix::process::geteuid().is_root() {
        // Whatever the driver mounts is nobody else's.
        gantry_sys::mount::enter_private_namespace()
            .map_err(|e| Error::internal("cannot leave the mount namespace", e))?;
    }
    let subject = somewhere(subject)?;
    let selection = Selection { filter: asked.filter.clone(), level: asked.level };
    let mut screen = Screen::new(asked.json);
    let reports = storage::run(&subject, &selection, |report| screen.show(&mut cx.out, report));
    if reports.is_empty() {
        return Err(Error::invalid(format!("no check is called {:?}", asked.filter)));
    }
    if asked.json {
        let _ = writeln!(cx.out, "{}", as_json(&asked.driver, &reports)); // nobody may be reading
    } else {
        screen.sum(&mut cx.out, &reports);
    }
    let has_failed = reports.iter().any(|report| matches!(report.outcome, Outcome::Failed(_)));
    Ok(ExitCode::from(u8::from(has_failed)))
}

/// The driver where it works: on the scratch directory, else on a file system of its own.
fn somewhere(subject: Subject) -> Result<Subject> {
    let Err(first) = storage::probe(&subject) else { return Ok(subject) };
    let on = FILE_SYSTEMS.iter().map(|kind| subject.clone().only_on(kind));
    let found = on.into_iter().find(|subject| storage::probe(subject).is_ok());
    found.ok_or_else(|| Error::unavailable(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_mistakes_are_told() {
        let parse = |text: &str| parse(&text.split(' ').map(OsString::from).collect::<Vec<_>>());
        let asked = parse("storage --driver vfs --root /x --filter 51 --level 1 --json").unwrap();
        let root = PathBuf::from("/x");
        let (driver, filter) = ("vfs".to_owned(), "51".to_owned());
        assert_eq!(asked, Asked { driver, root, filter, level: 1, json: true });
        assert_eq!(parse("storage --driver vfs").unwrap().level, 2);
        for bad in ["storage", "storage --driver vfs --level 3", "volumes", "", "storage x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
