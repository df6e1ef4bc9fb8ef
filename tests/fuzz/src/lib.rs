//! Hostile input for everything that parses what others wrote.
//!
//! A target is a test: a function that must give an answer for any bytes, and a corpus of real
//! inputs and of past finds in `corpus/<target>`. The corpus is tried as it is, then changed and
//! tried again until the time is over. What an input did is told by the target as a short text (the
//! error's message, say); inputs that did something new are kept and changed further, so the search
//! goes deeper without an instrumented build, on any toolchain.
//!
//! - `GANTRY_FUZZ_SECONDS`: time for each target, 1 unless told
//! - `GANTRY_FUZZ_SEED`: repeats a run
//!
//! A find is written to the temporary directory; it belongs into the corpus, with its fix.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

mod mutate;

pub use mutate::Random;

/// Longest input.
const LONGEST: usize = 64 << 10;
/// Inputs that are kept because they did something new.
const KEPT: usize = 4096;
/// Something that takes longer with an input of [`LONGEST`] bytes is a find too.
const SLOW: Duration = Duration::from_secs(20);

/// What is told of a run, after its end.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Inputs tried.
    pub tried: u64,
    /// Different things that they did.
    pub outcomes: usize,
}

/// Tries the corpus of `target`, and changes of it, with `check`, which tells what an input did.
/// `mend` may repair what random changes always break, such as checksums.
///
/// # Panics
///
/// If `check` does, or is slow: the message names the input.
pub fn run(target: &str, mend: impl Fn(&mut Vec<u8>), check: impl Fn(&[u8]) -> String) -> Report {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let time = Duration::from_secs(number("GANTRY_FUZZ_SECONDS").unwrap_or(1));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = number("GANTRY_FUZZ_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    let (mut random, start) = (Random::new(seed), Instant::now());
    let mut inputs = corpus(target);
    let mut seen = HashSet::new();
    for input in &inputs {
        seen.insert(attempt(target, seed, input, &check));
    }
    let mut tried = inputs.len() as u64;
    while start.elapsed() < time {
        let mut input = random.pick(&inputs).clone();
        for _ in 0..1 + random.below(4) {
            mutate::change(&mut input, &inputs, &mut random);
        }
        input.truncate(LONGEST);
        if random.below(8) != 0 {
            mend(&mut input);
        }
        if seen.insert(attempt(target, seed, &input, &check)) && inputs.len() < KEPT {
            inputs.push(input);
        }
        tried += 1;
    }
    let report = Report { tried, outcomes: seen.len() };
    println!("{target}: {tried} inputs, {} outcomes, seed {seed}", report.outcomes);
    report
}

/// Runs `check` once; a hash of what it tells.
fn attempt(target: &str, seed: u64, input: &[u8], check: &impl Fn(&[u8]) -> String) -> u64 {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| check(input)));
    let told = match outcome {
        Ok(told) if start.elapsed() < SLOW => told,
        _ => {
            let path = std::env::temp_dir().join(format!("gantry-fuzz-{target}-{seed}"));
            let saved = fs::write(&path, input);
            panic!(
                "{target} fails (or takes {:.0?}) with the input in {} ({saved:?}), {} bytes, \
                 seed {seed}",
                start.elapsed(),
                path.display(),
                input.len()
            );
        }
    };
    let mut hasher = DefaultHasher::new();
    // Numbers differ without meaning anything.
    told.replace(|c: char| c.is_ascii_digit(), "").hash(&mut hasher);
    hasher.finish()
}

/// The checked-in inputs of a target, by name; never none.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.iter().filter_map(|path| fs::read(path).ok()).collect();
    assert!(!inputs.is_empty(), "no corpus in {}", directory.display());
    inputs
}
