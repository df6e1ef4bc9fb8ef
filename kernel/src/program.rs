//! The program around the kernel: arguments in, exit code out.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | stopped as asked, or nothing to do (`--help`, `--version`, a valid `--validate`) |
//! | 1 | arguments, configuration, listeners, or the data root |
//! | 3 | a required plugin is not in service |
//! | 128 + n | ended at once by signal n, asked three times |
//!
//! With a plugin's command (`gantryd storage …`) no daemon is started, and the code is the command's.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use gantry_sdk::Registration;
use gantry_sdk::command::{Client, Command, CommandContext};
use tokio_util::sync::CancellationToken;

use crate::config::host::{DEFAULT_SOCKET, HostAddr};
use crate::config::typed::KernelConfig;
use crate::config::{Config, Environment, Flags};
use crate::http::Limits;
use crate::lifecycle::daemon::{Daemon, Setup};
use crate::lifecycle::logging;
use crate::lifecycle::signals::{Request, Signals};
use crate::lifecycle::workbench::Bench;
use crate::listen::tls;
use crate::mounts::Executor;
use crate::plan::Plan;

/// Product version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Source revision, if the build was told.
pub const REVISION: &str = match option_env!("GANTRY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
/// The stack of a worker thread: address space, of which only what is used takes memory.
const WORKER_STACK: usize = 2 << 20;
/// Threads for blocking work at most; idle ones end after some seconds.
const BLOCKING_THREADS: usize = 128;

/// Runs the daemon made of `plugins` until it is told to end.
pub fn run<I, T>(args: I, plugins: Vec<&'static Registration>) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let started = Instant::now();
    // Kept for the life of the process, as clap wants it.
    let version: &str = format!("{VERSION}, build {REVISION}").leak();
    let commands = commands(&plugins);
    let flags = match Flags::parse_with(args, version, &commands) {
        Ok(flags) => flags,
        Err(usage) if usage.code == 0 => return say(&usage.text, 0),
        Err(usage) => return complain(&usage.text, usage.code),
    };
    let environment = Environment::of_process();
    if let Some((name, args)) = &flags.command {
        let found = commands.iter().find(|command| command.name == name);
        return found.map_or(ExitCode::FAILURE, |command| {
            run_command(*command, args.clone(), &flags, &environment, &plugins)
        });
    }
    let (config, plan) = match prepare(&flags, &environment, plugins) {
        Ok(prepared) => prepared,
        Err(mistakes) => return complain(&mistakes, 1),
    };
    if flags.validate {
        return say(&plan.describe(&config), 0);
    }
    let log = logging::init(&config.kernel);
    for notice in &config.notices {
        tracing::warn!(setting = notice, "A setting is without effect.");
    }
    // Files are made with the modes that the code asks for, whatever the service manager set.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Each container costs the daemon several descriptors.
    if let Err(error) = gantry_sys::process::raise_open_files() {
        tracing::warn!(%error, "Cannot raise the limit of open files.");
    }
    let version = (VERSION, REVISION);
    let (mounts, limits) = (Arc::new(Executor), Limits::default());
    let setup = Setup { flags, environment, config, plan, mounts, limits, version, started, log };
    match runtime() {
        Ok(runtime) => {
            let code = runtime.block_on(serve(setup));
            // Threads that are stuck in a call of the system do not keep the process.
            runtime.shutdown_background();
            ExitCode::from(code)
        }
        Err(error) => complain(&format!("cannot start the runtime: {error}\n"), 1),
    }
}

/// The commands of all plugins by name. Of two with one name the first; that there are two keeps the
/// daemon from starting.
fn commands(plugins: &[&'static Registration]) -> Vec<Command> {
    let mut commands: Vec<Command> =
        plugins.iter().flat_map(|plugin| plugin.descriptor.commands).copied().collect();
    commands.sort_by_key(|command| command.name);
    commands.dedup_by_key(|command| command.name);
    commands
}

/// Runs a plugin's command against the daemon that has this configuration.
fn run_command(
    command: Command,
    args: Vec<OsString>,
    flags: &Flags,
    environment: &Environment,
    plugins: &[&'static Registration],
) -> ExitCode {
    let descriptors: Vec<_> = plugins.iter().map(|plugin| plugin.descriptor).collect();
    let config = match Config::load(flags, environment, &descriptors) {
        Ok(config) => config,
        Err(mistakes) => return complain(&format!("{mistakes}\n"), 1),
    };
    let client = client_of(&config.kernel.hosts);
    let bench = Bench::new(plugins.to_vec(), config, (VERSION, REVISION), Executor);
    let mut context = CommandContext {
        args,
        client,
        workbench: Arc::new(bench),
        out: Box::new(std::io::stdout()),
        err: Box::new(std::io::stderr()),
        interactive: std::io::stdout().is_terminal(),
    };
    (command.run)(&mut context)
}

/// The way to a daemon that listens on `hosts`.
fn client_of(hosts: &[HostAddr]) -> Client {
    let unix = hosts.iter().find_map(|host| match host {
        HostAddr::Unix(path) => Some(path.clone()),
        _ => None,
    });
    match unix {
        Some(path) => Client::new(path),
        // The units that come with the daemon let the service manager listen there.
        None if hosts.iter().any(|host| matches!(host, HostAddr::Inherited(_))) => {
            Client::new(DEFAULT_SOCKET)
        }
        None => Client::nowhere(
            "the daemon is configured to listen on TCP only, and commands reach it by a unix \
             socket: add one to \"hosts\", or name it by -H unix://PATH before the command",
        ),
    }
}

/// Checks configuration and plugins; the mistakes of both in one text.
fn prepare(
    flags: &Flags,
    environment: &Environment,
    plugins: Vec<&'static Registration>,
) -> Result<(Config, Plan), String> {
    let descriptors: Vec<_> = plugins.iter().map(|plugin| plugin.descriptor).collect();
    let config = Config::load(flags, environment, &descriptors);
    let plan = Plan::resolve(plugins);
    match (config, plan) {
        (Ok(config), Ok(plan)) => match config.kernel.tls.as_ref().map(tls::acceptor) {
            Some(Err(error)) => Err(format!("{error}\n")),
            _ => Ok((config, plan)),
        },
        (config, plan) => {
            let texts = [config.err().map(|e| e.to_string()), plan.err().map(|e| e.to_string())];
            Err(texts.into_iter().flatten().map(|text| text + "\n").collect())
        }
    }
}

/// Few threads with small stacks: most work waits for the system.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 4))
        .thread_name("worker")
        .thread_stack_size(WORKER_STACK)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_io()
        .enable_time()
        .build()
}

async fn serve(setup: Setup) -> u8 {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "Cannot listen to signals.");
            return 1;
        }
    };
    let mut starting = std::pin::pin!(Daemon::start(setup));
    let daemon = loop {
        tokio::select! {
            result = &mut starting => match result {
                Ok(daemon) => break daemon,
                Err(error) => {
                    let code = error.exit_code();
                    tracing::error!(error = chain(&error), code, "The daemon did not start.");
                    return code;
                }
            },
            request = signals.next() => if let Request::Stop(number) = request {
                tracing::warn!(signal = number, "Stopped while starting.");
                return 128 + u8::try_from(number).unwrap_or_default();
            },
        }
    };
    if let Some(line) = how_to_connect(&daemon.config().kernel) {
        say(&line, 0);
    }
    attend(&daemon, &mut signals).await;
    let hurry = CancellationToken::new();
    tokio::select! {
        late = daemon.shut_down(&hurry) => u8::from(!late.is_empty()),
        code = signals.insist(&hurry) => code,
    }
}

/// The line to paste into a shell, for the first address; none if the service manager knows it alone.
fn how_to_connect(config: &KernelConfig) -> Option<String> {
    let host = config.hosts.iter().find(|host| !matches!(host, HostAddr::Inherited(_)))?;
    let tls = config.tls.is_some() && matches!(host, HostAddr::Tcp { .. });
    let verify = if tls { " DOCKER_TLS_VERIFY=1" } else { "" };
    Some(format!("export DOCKER_HOST={host}{verify}\n"))
}

/// Does what signals ask until one asks for the end.
async fn attend(daemon: &Daemon, signals: &mut Signals) {
    loop {
        match signals.next().await {
            Request::Stop(number) => {
                tracing::info!(signal = number, "Asked to stop.");
                return;
            }
            Request::Dump => daemon.dump(),
            Request::Reload => match daemon.reload().await {
                Ok(changes) => {
                    tracing::info!(now = ?changes.now, "Configuration reloaded.");
                    if !changes.after_restart.is_empty() {
                        let keys = &changes.after_restart;
                        tracing::warn!(?keys, "These settings take effect after a restart.");
                    }
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(error, "Configuration not reloaded; nothing has changed.");
                }
            },
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn say(text: &str, code: u8) -> ExitCode {
    let _ = write!(std::io::stdout(), "{text}"); // nobody may be reading
    ExitCode::from(code)
}

fn complain(text: &str, code: u8) -> ExitCode {
    let _ = write!(std::io::stderr(), "{text}"); // nobody may be reading
    ExitCode::from(code)
}
