//! `gantryd import …`: a client of `/x/import/images`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Arg, ArgAction};
use gantry_sdk::command::{Command, CommandContext};
use gantry_sdk::{Error, Method, Result};

use crate::wire::{ImportRequest, Message, Remainder, State};

/// What this plugin adds to the program.
pub const COMMANDS: &[Command] =
    &[Command { name: "import", about: "Bring the images of another engine's data root", run }];

fn run(cx: &mut CommandContext) -> ExitCode {
    let (request, json) = match parse(&cx.args) {
        Ok(asked) => asked,
        Err(error) => {
            let out = if error.use_stderr() { &mut cx.err } else { &mut cx.out };
            let _ = write!(out, "{error}"); // nobody may be reading
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match follow(cx, &request, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => cx.fail(&error),
    }
}

fn clap() -> clap::Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
    };
    clap::Command::new("gantryd import")
        .bin_name("gantryd import")
        .about(
            "Brings the images of another engine's data root, which is only read. Stop that engine \
             first. Containers and volumes are counted and stay there. Flags that say where the \
             daemon is (-H, --config-file) go before the word \"import\".",
        )
        .arg(
            Arg::new("root")
                .required(true)
                .value_name("DATA ROOT")
                .help("/var/lib/docker, or /var/lib/containerd for its image store"),
        )
        .arg(
            Arg::new("namespace")
                .long("namespace")
                .value_name("NAME")
                .help("Namespace in a containerd image store [default: moby]"),
        )
        .arg(switch("dry-run", "List what would come, and bring nothing"))
        .arg(switch("json", "Print JSON, one document a line"))
}

fn parse(args: &[OsString]) -> std::result::Result<(ImportRequest, bool), clap::Error> {
    let program = std::iter::once(OsString::from("gantryd import"));
    let matches = clap().try_get_matches_from(program.chain(args.iter().cloned()))?;
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let root = text("root").unwrap_or_default();
    // The daemon may have another working directory.
    let root = std::path::absolute(&root).map_or(root, |path| path.display().to_string());
    let (namespace, dry_run) = (text("namespace"), matches.get_flag("dry-run"));
    Ok((ImportRequest { root, dry_run, namespace }, matches.get_flag("json")))
}

/// Shows the stream as it comes; whether everything went well.
fn follow(cx: &mut CommandContext, request: &ImportRequest, json: bool) -> Result<bool> {
    let body = serde_json::to_value(request)
        .map_err(|e| Error::internal("cannot encode the request", e))?;
    let answer = cx.client.send(Method::Post, "/x/import/images", Some(&body))?;
    let unprinted = |e| Error::io("write", "a line", e);
    let mut well = None;
    let mut drawn = false;
    for value in answer.messages() {
        let value = value?;
        if json {
            writeln!(cx.out, "{value}").map_err(unprinted)?;
        }
        let message: Message = serde_json::from_value(value).map_err(|e| {
            Error::unavailable("the daemon is of another version than this command").caused_by(e)
        })?;
        if let Message::End { failed, error, .. } = &message {
            well = Some(*failed == 0 && error.is_none());
        }
        if !json {
            show(&mut cx.out, &message, cx.interactive, &mut drawn).map_err(unprinted)?;
        }
    }
    well.ok_or_else(|| {
        Error::unavailable(
            "the daemon went away; the images that came stay, and the same command goes on",
        )
    })
}

const fn word(state: State) -> &'static str {
    match state {
        State::Planned => "would come",
        State::Working => "reading",
        State::Done => "imported",
        State::Present => "already here",
        State::Failed => "FAILED",
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}MB", bytes as f64 / 1e6)
}

/// Prints one message; `drawn` is whether the last line is to be drawn over.
fn show(
    out: &mut dyn Write,
    message: &Message,
    interactive: bool,
    drawn: &mut bool,
) -> io::Result<()> {
    let working = matches!(message, Message::Image { state: State::Working, .. });
    if working && !interactive {
        return Ok(());
    }
    if std::mem::take(drawn) {
        write!(out, "\r\x1b[K")?;
    }
    match message {
        Message::Image { id, names, state, current, total, why } => {
            let names = if names.is_empty() { "<none>".to_owned() } else { names.join(", ") };
            let short: String = id.trim_start_matches("sha256:").chars().take(12).collect();
            write!(out, "{short}  {names}  {}", word(*state))?;
            match state {
                State::Working => {
                    *drawn = true;
                    write!(out, " {} of about {}", megabytes(*current), megabytes(*total))?;
                    return out.flush();
                }
                State::Planned => write!(out, ", about {}", megabytes(*total))?,
                _ => {}
            }
            writeln!(out)?;
            why.iter().try_for_each(|line| writeln!(out, "    {line}"))
        }
        Message::End { done, present, failed, bytes, remainder, error } => {
            if let Some(error) = error {
                writeln!(out, "given up: {error}")?;
            }
            writeln!(
                out,
                "images: {done} done, {present} already here, {failed} failed; {} read",
                megabytes(*bytes)
            )?;
            remain(out, remainder)
        }
    }
}

fn remain(out: &mut dyn Write, remainder: &Remainder) -> io::Result<()> {
    let Remainder { containers, volumes, digests, notes } = remainder;
    writeln!(
        out,
        "not imported: {containers} containers, {volumes} volumes; they stay where they are"
    )?;
    if *digests > 0 {
        writeln!(
            out,
            "not imported: {digests} names by digest, whose manifests the old engine did not keep"
        )?;
    }
    notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_becomes_absolute() {
        clap().debug_assert();
        let args = ["--dry-run", "x"].map(OsString::from);
        let (request, json) = parse(&args).unwrap();
        assert!(request.root.starts_with('/') && request.root.ends_with("/x"));
        assert!(request.dry_run && !json);
        assert!(parse(&[]).unwrap_err().use_stderr());
    }

    #[test]
    fn the_end_says_what_stays() {
        let remainder = Remainder { containers: 2, volumes: 3, digests: 1, ..Remainder::default() };
        let end = Message::End {
            done: 1,
            present: 0,
            failed: 0,
            bytes: 1_500_000,
            remainder,
            error: None,
        };
        let mut out = Vec::new();
        show(&mut out, &end, false, &mut false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("images: 1 done, 0 already here, 0 failed; 1.5MB read\n"),
            "{text}"
        );
        assert!(text.contains("2 containers, 3 volumes") && text.contains("1 names by digest"));
    }
}
