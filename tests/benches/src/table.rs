//! What is printed.

use std::fmt::Write;
use std::time::Duration;

/// Times in the order they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
    }

    /// In milliseconds.
    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The smallest value that `percent` of all do not exceed; 0 when there are none.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(index).copied().unwrap_or_default()
    }
}

/// A line of the result.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    median: f64,
    /// The 95th percentile, for times.
    p95: Option<f64>,
    /// The floor, what it is, and the aim; a step of something larger has none.
    beside: Option<(f64, String, f64)>,
}

impl Row {
    pub(crate) fn times(
        what: &str,
        ours: Samples,
        floor: Samples,
        floor_is: &str,
        aim: f64,
    ) -> Self {
        Self {
            what: what.to_owned(),
            unit: "ms",
            median: ours.percentile(50),
            p95: Some(ours.percentile(95)),
            beside: Some((floor.percentile(50), floor_is.to_owned(), aim)),
        }
    }

    /// A part of the row above.
    pub(crate) fn step(what: &str, ours: Samples) -> Self {
        Self {
            what: format!("  of which {what}"),
            unit: "ms",
            median: ours.percentile(50),
            p95: Some(ours.percentile(95)),
            beside: None,
        }
    }

    pub(crate) fn memory(what: &str, ours: f64, floor: f64, floor_is: &str, aim: f64) -> Self {
        Self {
            what: what.to_owned(),
            unit: "MiB",
            median: ours,
            p95: None,
            beside: Some((floor, floor_is.to_owned(), aim)),
        }
    }
}

/// The rows as a table of plain text.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<40} {:>9} {:>9} {:>9} {:>7}  {:<7} floor is\n",
        "", "median", "p95", "floor", "aim", ""
    );
    for row in rows {
        let p95 = row.p95.map(|v| format!("{v:.2}")).unwrap_or_default();
        let what = format!("{} ({})", row.what, row.unit);
        // Writing to a string cannot fail.
        let _ = write!(text, "{what:<40} {:>9.2} {p95:>9}", row.median);
        if let Some((floor, floor_is, aim)) = &row.beside {
            let met = if row.median <= *aim { "met" } else { "missed" };
            let _ = write!(text, " {floor:>9.2} {aim:>7.1}  {met:<7} {floor_is}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), 0.0);
        for ms in [5, 1, 4, 2, 3] {
            samples.push(Duration::from_millis(ms));
        }
        for (percent, expected) in [(0, 1.0), (50, 3.0), (95, 5.0), (100, 5.0)] {
            assert!((samples.percentile(percent) - expected).abs() < 1e-9, "{percent}");
        }
    }
}
