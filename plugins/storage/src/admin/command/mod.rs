//! `gantryd storage …`: a client of `/x/layers/…`.

mod args;
mod show;

use std::process::ExitCode;

use gantry_sdk::command::{Command, CommandContext};
use gantry_sdk::{Error, Method, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::{Dropped, InstanceReport, Message, Selection};
use args::Asked;
use show::Screen;

/// What this plugin adds to the program.
pub(crate) const COMMANDS: &[Command] = &[Command {
    name: "storage",
    about: "List, migrate, verify and drop what storage instances hold",
    run,
}];

fn run(cx: &mut CommandContext) -> ExitCode {
    let (asked, json) = match args::parse(&cx.args) {
        Ok(asked) => asked,
        Err(usage) => {
            let out = if usage.code == 0 { &mut cx.out } else { &mut cx.err };
            let _ = write!(out, "{}", usage.text); // nobody may be reading
            return ExitCode::from(usage.code);
        }
    };
    match carry_out(cx, &asked, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => cx.fail(&error),
    }
}

/// Whether everything went well.
fn carry_out(cx: &mut CommandContext, asked: &Asked, json: bool) -> Result<bool> {
    match asked {
        Asked::List { size } => {
            let path = if *size { "/x/layers/instances?size=1" } else { "/x/layers/instances" };
            let value = cx.client.get(path)?;
            if json {
                return print(cx, &value);
            }
            let reports: Vec<InstanceReport> = decode(value)?;
            show::table(&mut cx.out, &reports, *size)
                .map_err(|e| Error::io("write", "a table", e))?;
            Ok(true)
        }
        Asked::Migrate(request) => {
            let names_containers = matches!(request.containers, Selection::List(_));
            // Who names a container wants that one; of all that are stopped, some may not be.
            follow(cx, "/x/layers/migrate", request, json, names_containers)
        }
        Asked::Verify(request) => follow(cx, "/x/layers/verify", request, json, false),
        Asked::Drop(request) => {
            let body = encode(request)?;
            let value = cx.client.send(Method::Post, "/x/layers/drop", Some(&body))?.json()?;
            if json {
                return print(cx, &value);
            }
            let dropped: Dropped = decode(value)?;
            show::dropped(&mut cx.out, &dropped).map_err(|e| Error::io("write", "a line", e))?;
            Ok(true)
        }
    }
}

/// Shows a stream of messages as it comes.
fn follow(
    cx: &mut CommandContext,
    path: &str,
    request: &impl Serialize,
    json: bool,
    skipping_is_failing: bool,
) -> Result<bool> {
    let answer = cx.client.send(Method::Post, path, Some(&encode(request)?))?;
    let mut screen = Screen::new(cx.interactive && !json);
    let mut well = None;
    for message in answer.messages() {
        let message = message?;
        if json {
            print(cx, &message)?;
        }
        let message: Message = decode(message)?;
        if let Message::End { failed, skipped, error, .. } = &message {
            let is_skipped = skipping_is_failing && *skipped > 0;
            well = Some(*failed == 0 && error.is_none() && !is_skipped);
        }
        if !json {
            screen.show(&mut cx.out, &message).map_err(|e| Error::io("write", "a line", e))?;
        }
    }
    well.ok_or_else(|| {
        Error::unavailable(
            "the daemon went away; what is done stays, and the same command goes on from there",
        )
    })
}

fn print(cx: &mut CommandContext, value: &Value) -> Result<bool> {
    writeln!(cx.out, "{value}").map_err(|e| Error::io("write", "a line", e))?;
    Ok(true)
}

fn encode(request: &impl Serialize) -> Result<Value> {
    serde_json::to_value(request).map_err(|e| Error::internal("cannot encode the request", e))
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| {
        Error::unavailable("the daemon is of another version than this command").caused_by(e)
    })
}
