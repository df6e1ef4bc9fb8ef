//! Processes with a deadline, and command lines as one writes them.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a command may take unless the caller says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a process left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code, or 128 + the signal that ended it, as shells count.
    pub status: i32,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// The command line, for messages.
    pub command: String,
}

impl Output {
    /// Standard output without surrounding white space.
    ///
    /// # Errors
    ///
    /// If the process did not exit with 0: the message has the command, the code and both streams.
    pub fn success(self) -> Result<String> {
        if self.status != 0 {
            bail!("{self}");
        }
        Ok(self.stdout.trim().to_owned())
    }

    /// Standard error of a process that was expected to fail.
    ///
    /// # Errors
    ///
    /// If it exited with 0.
    pub fn failure(self) -> Result<String> {
        if self.status == 0 {
            bail!("should have failed: {self}");
        }
        Ok(self.stderr.trim().to_owned())
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        if !self.stdout.is_empty() {
            write!(f, "\nstdout: {}", self.stdout.trim_end())?;
        }
        if !self.stderr.is_empty() {
            write!(f, "\nstderr: {}", self.stderr.trim_end())?;
        }
        Ok(())
    }
}

/// Runs `command` to its end with `input` on its standard input.
///
/// # Errors
///
/// If it cannot be started, or is not over after `deadline`: then it is killed.
pub fn run(mut command: Command, input: &[u8], deadline: Duration) -> Result<Output> {
    let shown = show(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;

    let stdin = child.stdin.take();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // A process that does not read its input is not an error here.
            let _ = stdin.write_all(&input);
        }
    });
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());

    let Some(status) = wait(&mut child, deadline)? else {
        child.kill().ok();
        child.wait().ok();
        // The readers are not joined: a grandchild may still hold the pipe.
        bail!("`{shown}` was not over after {} s", deadline.as_secs());
    };
    writer.join().ok();
    Ok(Output { status, stdout: finish(stdout), stderr: finish(stderr), command: shown })
}

/// Waits for `child`; `None` when `deadline` has passed first.
///
/// # Errors
///
/// What `waitpid(2)` reported.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<Option<i32>> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            let signal = status.signal().map(|s| 128 + s);
            return Ok(status.code().or(signal));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn collect<R: Read + Send + 'static>(source: Option<R>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut source) = source {
            let _ = source.read_to_end(&mut all);
        }
        all
    })
}

fn finish(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Splits a command line at spaces; single and double quotes keep words together, nothing else is
/// special.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => all.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    all
}

/// Something that can be written as a command line: `"ps -a"`, or words that hold anything.
pub trait Words {
    /// The words, in order.
    fn words(self) -> Vec<String>;
}

impl Words for &str {
    fn words(self) -> Vec<String> {
        words(self)
    }
}

impl Words for String {
    fn words(self) -> Vec<String> {
        words(&self)
    }
}

impl Words for &String {
    fn words(self) -> Vec<String> {
        words(self)
    }
}

impl<const N: usize> Words for [&str; N] {
    fn words(self) -> Vec<String> {
        self.iter().map(|w| (*w).to_owned()).collect()
    }
}

impl Words for &[String] {
    fn words(self) -> Vec<String> {
        self.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_split_like_in_a_shell() {
        let cases: [(&str, &[&str]); 5] = [
            ("", &[]),
            ("run --rm  busybox", &["run", "--rm", "busybox"]),
            ("sh -c 'exit 7'", &["sh", "-c", "exit 7"]),
            ("-e A='b c'd", &["-e", "A=b cd"]),
            ("x '' \"it's\"", &["x", "", "it's"]),
        ];
        for (line, expected) in cases {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn a_command_over_its_deadline_is_killed() {
        let mut sleep = Command::new("sleep");
        sleep.arg("30");
        let error = run(sleep, b"", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("not over"), "{error}");
    }

    #[test]
    fn input_output_and_signal_come_through() {
        let mut sh = Command::new("sh");
        sh.args(["-c", "cat; echo oops >&2; kill -9 $$"]);
        let output = run(sh, b"hello", DEADLINE).unwrap();
        assert_eq!((output.status, output.stdout.as_str()), (137, "hello"));
        assert_eq!(output.stderr, "oops\n");
    }
}
