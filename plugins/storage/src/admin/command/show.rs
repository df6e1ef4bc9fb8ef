//! Messages for people: bars where lines can be drawn anew, plain lines elsewhere.

use std::io::{self, Write};

use crate::admin::wire::{Dropped, InstanceReport, Message, State, Subject};

/// Characters of a bar.
const BAR: usize = 24;

/// Decimal units, as `docker` prints sizes.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{count}B"),
        (_, value) if value < 9.995 => format!("{value:.2}{}", UNITS[unit]),
        (_, value) if value < 99.95 => format!("{value:.1}{}", UNITS[unit]),
        (_, value) => format!("{value:.0}{}", UNITS[unit]),
    }
}

/// The instances as a table.
pub(super) fn table(
    out: &mut dyn Write,
    reports: &[InstanceReport],
    sizes: bool,
) -> io::Result<()> {
    let mut head = vec!["INSTANCE", "LAYERS", "SIZE", "CONTAINERS"];
    if sizes {
        head.push("WRITTEN");
    }
    head.extend(["OLD LAYERS", "HEALTH"]);
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for report in reports {
        let mark = if report.default { " *" } else { "" };
        let mut row = vec![
            format!("{}{mark}", report.name),
            report.layers.to_string(),
            bytes(report.bytes),
            report.containers.to_string(),
        ];
        if sizes {
            row.push(report.written.map_or_else(|| "-".to_owned(), bytes));
        }
        row.push(report.kept.to_string());
        row.push(match &report.down {
            Some(why) => why.clone(),
            None if report.removing > 0 => format!("ready, removing {}", bytes(report.removing)),
            None => "ready".to_owned(),
        });
        rows.push(row);
    }
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("   ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// What a drop did.
pub(super) fn dropped(out: &mut dyn Write, dropped: &Dropped) -> io::Result<()> {
    let Dropped { layers, left, .. } = dropped;
    write!(out, "dropped {layers} layers, {}", bytes(dropped.bytes))?;
    if *left > 0 {
        write!(out, "; {left} are in use and stay")?;
    }
    writeln!(out)
}

/// Shows a stream of messages.
#[derive(Debug)]
pub(super) struct Screen {
    interactive: bool,
    /// Whether the last line is to be drawn over.
    drawn: bool,
    /// What the last line without a result was about.
    begun: Option<(Subject, String)>,
}

impl Screen {
    pub(super) const fn new(interactive: bool) -> Self {
        Self { interactive, drawn: false, begun: None }
    }

    pub(super) fn show(&mut self, out: &mut dyn Write, message: &Message) -> io::Result<()> {
        match message {
            Message::Item { subject, id, name, state, current, total, why } => {
                let label = format!("{} {name}", word(*subject));
                match state {
                    State::Working | State::Comparing if self.interactive => {
                        write!(out, "\r\x1b[K{label}  {}", progress(*state, *current, *total))?;
                        self.drawn = true;
                        out.flush()
                    }
                    State::Working | State::Comparing => {
                        let about = Some((*subject, id.clone()));
                        if self.begun == about {
                            return Ok(());
                        }
                        self.begun = about;
                        writeln!(out, "{label}: working")
                    }
                    result => {
                        self.clear(out)?;
                        let why: String = why.iter().map(|line| format!("\n    {line}")).collect();
                        writeln!(out, "{label}: {}{why}", result_word(*result))
                    }
                }
            }
            Message::End { done, present, skipped, failed, bytes: moved, error } => {
                self.clear(out)?;
                if let Some(error) = error {
                    writeln!(out, "given up: {error}")?;
                }
                let moved = bytes(*moved);
                writeln!(
                    out,
                    "{done} done, {present} already there, {skipped} skipped, {failed} failed; {moved} read"
                )
            }
        }
    }

    fn clear(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::take(&mut self.drawn) { write!(out, "\r\x1b[K") } else { Ok(()) }
    }
}

const fn word(subject: Subject) -> &'static str {
    match subject {
        Subject::Image => "image",
        Subject::Container => "container",
        Subject::Layer => "layer",
    }
}

const fn result_word(state: State) -> &'static str {
    match state {
        State::Planned => "would be done",
        State::Working => "working",
        State::Comparing => "comparing",
        State::Done => "done",
        State::Present => "already there",
        State::Skipped => "skipped",
        State::Failed => "FAILED",
        State::Repaired => "repaired",
    }
}

fn progress(state: State, current: u64, total: u64) -> String {
    if state == State::Comparing {
        return "comparing".to_owned();
    }
    if total == 0 {
        return bytes(current);
    }
    let share = (current as f64 / total as f64).clamp(0.0, 1.0);
    let full = (share * BAR as f64) as usize;
    let bar = format!("{}{}", "=".repeat(full), " ".repeat(BAR - full));
    format!("[{bar}] {} / {}", bytes(current), bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(state: State, current: u64, why: &[&str]) -> Message {
        Message::Item {
            subject: Subject::Image,
            id: "sha256:1".to_owned(),
            name: "busybox".to_owned(),
            state,
            current,
            total: 2_000_000,
            why: why.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    fn shown(interactive: bool, messages: &[Message]) -> String {
        let mut screen = Screen::new(interactive);
        let mut out = Vec::new();
        messages.iter().for_each(|message| screen.show(&mut out, message).unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_or_bars() {
        let end = Message::End {
            done: 1,
            present: 2,
            skipped: 0,
            failed: 1,
            bytes: 1_234_567,
            error: Some("no space".to_owned()),
        };
        let messages = [
            item(State::Working, 0, &[]),
            item(State::Working, 1_000_000, &[]),
            item(State::Failed, 0, &["/a: is missing"]),
            end,
        ];
        let plain = "image busybox: working\nimage busybox: FAILED\n    /a: is missing\n\
                     given up: no space\n\
                     1 done, 2 already there, 0 skipped, 1 failed; 1.23MB read\n";
        assert_eq!(shown(false, &messages), plain);
        let drawn = shown(true, &messages);
        assert!(drawn.contains("[============            ] 1.00MB / 2.00MB"), "{drawn}");
        assert!(drawn.contains("\r\x1b[Kimage busybox: FAILED"), "{drawn}");
    }

    #[test]
    fn a_table_of_instances() {
        let reports = [
            InstanceReport {
                name: "overlay2".to_owned(),
                default: true,
                layers: 3,
                bytes: 146_000_000,
                containers: 2,
                written: Some(10),
                ..InstanceReport::default()
            },
            InstanceReport {
                name: "fast".to_owned(),
                down: Some("no disk".to_owned()),
                kept: 1,
                ..InstanceReport::default()
            },
        ];
        let mut out = Vec::new();
        table(&mut out, &reports, true).unwrap();
        let expected = "\
INSTANCE     LAYERS   SIZE    CONTAINERS   WRITTEN   OLD LAYERS   HEALTH
overlay2 *   3        146MB   2            10B       0            ready
fast         0        0B      0            -         1            no disk
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn sizes_have_three_digits() {
        let cases = [(0, "0B"), (999, "999B"), (1_234, "1.23kB"), (12_345, "12.3kB")];
        let more = [(146_000_000, "146MB"), (999_999, "1.00MB"), (5_000_000_000, "5.00GB")];
        for (count, expected) in cases.into_iter().chain(more) {
            assert_eq!(bytes(count), expected);
        }
    }
}
