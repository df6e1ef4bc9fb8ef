//! Running checks: one as a test, or all of them with a report.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::fixture::{Fixture, Said, cx};
use super::subject::Subject;

/// A check: panics if the driver breaks the contract.
pub type Check = for<'a> fn(&'a mut Fixture) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A check and its place in the list.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its number in the list, 1 to 60; several checks may share one.
    pub number: u32,
    /// What it needs: 0 calls alone, 1 mounts, 2 file systems and processes of its own.
    pub level: u8,
    /// What is so if it passes, with underscores.
    pub name: &'static str,
    /// The check.
    pub check: Check,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.name)
    }
}

impl Case {
    /// What is so if it passes, in words.
    #[must_use]
    pub fn title(&self) -> String {
        self.name.replace('_', " ")
    }
}

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The driver does it.
    Passed,
    /// It could not be made, or the driver does not claim to do it; why.
    Skipped(String),
    /// What the driver does instead.
    Failed(String),
}

/// A check that was made.
#[derive(Clone, Debug)]
pub struct Report {
    /// The check.
    pub case: Case,
    /// What became of it.
    pub outcome: Outcome,
    /// Figures, and what was left out.
    pub notes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Which checks to make.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Those whose title has this, or whose number is this; empty is all.
    pub filter: String,
    /// Those that need no more than this.
    pub level: u8,
}

impl Selection {
    fn has(&self, case: &Case) -> bool {
        let is_number = self.filter.parse() == Ok(case.number);
        let filter = self.filter.replace('_', " ");
        is_number || case.title().contains(&filter)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Whether the driver can be made at all.
///
/// # Errors
///
/// Why not, in words.
pub fn probe(subject: &Subject) -> Result<(), String> {
    runtime().block_on(async { subject.fixture().await.map(drop) })
}

/// Makes one check; panics if it fails.
fn make(subject: &Subject, case: &Case) -> Said {
    let runtime = runtime();
    let (root, said) = runtime.block_on(async {
        let fixture = subject.fixture().await;
        let mut fixture = fixture.unwrap_or_else(|e| panic!("the driver cannot be made: {e}"));
        fixture.driver.recover(&cx()).await.expect("recover");
        (case.check)(&mut fixture).await;
        (fixture.root.clone(), fixture.said())
    });
    // Work that nobody waits for any more, such as that of calls that were given up.
    runtime.shutdown_timeout(Duration::from_secs(10));
    let mounts = gantry_sys::mount::read_mountinfo().expect("mounts");
    let left = mounts.iter().find(|mount| mount.mount_point.starts_with(&root));
    assert!(left.is_none(), "a mount is left: {left:?}");
    said
}

/// Makes one check as a test, and prints why if it is skipped.
///
/// # Panics
///
/// If it fails.
pub fn test(subject: fn() -> Subject, name: &str) {
    let case = super::CASES.iter().find(|case| case.name == name).expect("a check of that name");
    if !rustix::process::geteuid().is_root() {
        eprintln!("check {}, {name}: skipped: needs root", case.number);
        return;
    }
    let said = make(&subject(), case);
    for note in said.notes {
        println!("check {}: {note}", case.number);
    }
    if let Some(why) = said.skipped {
        println!("check {}: skipped: {why}", case.number);
    }
}

/// Where the last panic was and what it said. The kit runs one check at a time.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

fn last_panic() -> Option<String> {
    LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Makes the selected checks one after the other and tells of each when it is done. What is not
/// selected by its level is told as skipped.
pub fn run(subject: &Subject, selection: &Selection, mut tell: impl FnMut(&Report)) -> Vec<Report> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.to_string());
    }));
    let is_root = rustix::process::geteuid().is_root();
    let mut reports = Vec::new();
    for case in super::CASES.iter().filter(|case| selection.has(case)) {
        let started = Instant::now();
        let (outcome, notes) = if case.level > selection.level {
            (Outcome::Skipped(format!("is of level {}", case.level)), Vec::new())
        } else if is_root {
            attempt(subject, case)
        } else {
            (Outcome::Skipped("needs root".to_owned()), Vec::new())
        };
        let report = Report { case: *case, outcome, notes, took: started.elapsed() };
        tell(&report);
        reports.push(report);
    }
    std::panic::set_hook(hook);
    reports
}

fn attempt(subject: &Subject, case: &Case) -> (Outcome, Vec<String>) {
    let (subject, case) = (subject.clone(), *case);
    last_panic();
    match std::thread::spawn(move || make(&subject, &case)).join() {
        Ok(Said { skipped: Some(why), notes }) => (Outcome::Skipped(why), notes),
        Ok(Said { skipped: None, notes }) => (Outcome::Passed, notes),
        Err(panic) => {
            let text = gantry_sdk::guard::panic_text(panic.as_ref()).to_owned();
            (Outcome::Failed(last_panic().unwrap_or(text)), Vec::new())
        }
    }
}
