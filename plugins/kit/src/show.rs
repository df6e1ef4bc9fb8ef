//! The report, for people and as JSON.

use std::io::Write;

use gantry_testkit::storage::{Outcome, Report};
use serde_json::{Value, json};

/// Shows checks as they are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    quiet: bool,
}

impl Screen {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// One line for the check, and one for each note. Nobody may be reading.
    pub(crate) fn show(&mut self, out: &mut dyn Write, report: &Report) {
        if self.quiet {
            return;
        }
        let (word, why) = words(&report.outcome);
        let (number, title) = (report.case.number, report.case.title());
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let _ = writeln!(out, "{number:>2}  {word:<7}  {title}{why}");
        for note in &report.notes {
            let _ = writeln!(out, "             {note}");
        }
        let _ = out.flush();
    }

    /// The last line.
    pub(crate) fn sum(self, out: &mut dyn Write, reports: &[Report]) {
        let [passed, skipped, failed] = counts(reports);
        let took: f64 = reports.iter().map(|report| report.took.as_secs_f64()).sum();
        let _ = writeln!(out, "\n{passed} passed, {skipped} skipped, {failed} failed, {took:.1} s");
    }
}

fn words(outcome: &Outcome) -> (&'static str, &str) {
    match outcome {
        Outcome::Passed => ("passed", ""),
        Outcome::Skipped(why) => ("skipped", why),
        Outcome::Failed(what) => ("FAILED", what),
    }
}

fn counts(reports: &[Report]) -> [usize; 3] {
    ["passed", "skipped", "FAILED"]
        .map(|word| reports.iter().filter(|report| words(&report.outcome).0 == word).count())
}

/// The whole report.
pub(crate) fn as_json(driver: &str, reports: &[Report]) -> Value {
    let check = |report: &Report| {
        let (word, why) = words(&report.outcome);
        json!({
            "number": report.case.number,
            "name": report.case.title(),
            "level": report.case.level,
            "outcome": word.to_ascii_lowercase(),
            "why": why,
            "notes": report.notes,
            "milliseconds": u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
        })
    };
    let [passed, skipped, failed] = counts(reports);
    let checks: Vec<Value> = reports.iter().map(check).collect();
    json!({
        "driver": driver, "passed": passed, "skipped": skipped, "failed": failed, "checks": checks,
    })
}
