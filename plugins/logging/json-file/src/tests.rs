use super::*;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

const BASE: u64 = 1_700_000_000;

struct Log {
    dir: tempfile::TempDir,
    driver: JsonFile,
    target: LogTarget,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let target = LogTarget {
            container: "c".repeat(64),
            dir: dir.path().to_owned(),
            ..LogTarget::default()
        };
        let tasks = Tasks::new("test", &CancellationToken::new());
        Self { dir, driver: JsonFile::new(tasks), target }
    }

    fn path(&self) -> PathBuf {
        path_of(&self.target)
    }

    fn write(&self, numbers: std::ops::Range<u64>) {
        append(&self.path(), &entries(numbers));
    }

    fn rotate(&self, gzip: bool) {
        for number in (1..9).rev() {
            for extension in ["", ".gz"] {
                let _ = std::fs::rename(
                    files::numbered(&self.path(), number, extension),
                    files::numbered(&self.path(), number + 1, extension),
                );
            }
        }
        let first = files::numbered(&self.path(), 1, "");
        std::fs::rename(self.path(), &first).unwrap();
        if gzip {
            let packed = std::fs::File::create(files::numbered(&self.path(), 1, ".gz")).unwrap();
            let mut encoder = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
            encoder.write_all(&std::fs::read(&first).unwrap()).unwrap();
            encoder.finish().unwrap();
            std::fs::remove_file(first).unwrap();
        }
    }

    async fn read(&self, wanted: ReadLogs) -> LogStream {
        self.driver.read(&Ctx::background(), &self.target, wanted).await.unwrap()
    }

    async fn numbers(&self, wanted: ReadLogs) -> Vec<u64> {
        let mut stream = self.read(wanted).await;
        let mut numbers = Vec::new();
        while let Some(line) = stream.recv().await {
            numbers.push(number(&line.unwrap()));
        }
        numbers
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

/// Line `n` was written `n` seconds after the base; odd ones to standard error.
fn entries(numbers: std::ops::Range<u64>) -> Vec<u8> {
    let mut text = String::new();
    for n in numbers {
        let at = jiff::Timestamp::from_second(i64::try_from(BASE + n).unwrap()).unwrap();
        let stream = if n % 2 == 1 { "stderr" } else { "stdout" };
        text += &format!("{{\"log\":\"{n}\\n\",\"stream\":\"{stream}\",\"time\":\"{at}\"}}\n");
    }
    text.into_bytes()
}

fn number(line: &LogLine) -> u64 {
    String::from_utf8(line.data.clone()).unwrap().trim().parse().unwrap()
}

fn at(n: u64) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(BASE + n))
}

fn all() -> ReadLogs {
    ReadLogs { since: None, until: None, tail: None, follow: None, stdout: true, stderr: true }
}

async fn next(stream: &mut LogStream) -> u64 {
    let line = tokio::time::timeout(Duration::from_secs(10), stream.recv()).await.unwrap();
    number(&line.unwrap().unwrap())
}

#[tokio::test]
async fn everything_is_read_across_rotated_and_compressed_files() {
    let log = Log::new();
    assert!(log.numbers(all()).await.is_empty(), "no file is an empty log");
    log.write(0..10);
    log.rotate(true);
    log.write(10..20);
    log.rotate(false);
    log.write(20..30);
    assert_eq!(log.numbers(all()).await, (0..30).collect::<Vec<_>>());
    for (tail, from) in [(0, 30), (3, 27), (10, 20), (15, 15), (25, 5), (30, 0), (99, 0)] {
        let wanted = ReadLogs { tail: Some(tail), ..all() };
        assert_eq!(log.numbers(wanted).await, (from..30).collect::<Vec<_>>(), "tail {tail}");
    }
    log.driver.remove(&Ctx::background(), &log.target).await.unwrap();
    assert_eq!(std::fs::read_dir(log.dir.path()).unwrap().count(), 0);
    log.driver.remove(&Ctx::background(), &log.target).await.unwrap();
}

#[tokio::test]
async fn times_and_streams_select() {
    let log = Log::new();
    log.write(0..10);
    let wanted = ReadLogs { since: at(3), until: at(6), ..all() };
    assert_eq!(log.numbers(wanted).await, [3, 4, 5, 6]);
    assert_eq!(log.numbers(ReadLogs { stdout: false, ..all() }).await, [1, 3, 5, 7, 9]);
    // As in the reference, the tail is taken before the stream is chosen.
    let wanted = ReadLogs { stderr: false, tail: Some(3), ..all() };
    assert_eq!(log.numbers(wanted).await, [8]);
}

#[tokio::test]
async fn damaged_and_unfinished_lines_are_passed_over() {
    let log = Log::new();
    log.write(0..2);
    append(&log.path(), b"\0\0\0{\"log\":\n");
    log.write(2..3);
    append(&log.path(), b"{\"log\":\"unfin");
    assert_eq!(log.numbers(all()).await, [0, 1, 2]);
}

#[tokio::test]
async fn an_overlong_line_is_dropped_and_the_next_is_read() {
    let log = Log::new();
    let mut text = b"{\"log\":\"".to_vec();
    text.resize(9 << 20, b'x');
    text.push(b'\n');
    append(&log.path(), &text);
    log.write(1..2);
    assert_eq!(log.numbers(all()).await, [1]);
}

#[tokio::test]
async fn a_follower_sees_lines_rotation_and_the_rest() {
    let log = Log::new();
    log.write(0..3);
    let stop = CancellationToken::new();
    let wanted = ReadLogs { follow: Some(stop.clone()), tail: Some(1), ..all() };
    let mut stream = log.read(wanted).await;
    assert_eq!(next(&mut stream).await, 2);
    let whole = entries(3..4);
    append(&log.path(), &whole[..20]);
    tokio::time::sleep(Duration::from_millis(30)).await;
    append(&log.path(), &whole[20..]);
    assert_eq!(next(&mut stream).await, 3);
    for (number, gzip) in [(4, false), (5, true)] {
        log.write(number..number + 1);
        log.rotate(gzip);
        log.write(number * 10..number * 10 + 1);
        assert_eq!(next(&mut stream).await, number);
        assert_eq!(next(&mut stream).await, number * 10);
    }
    log.write(60..62);
    stop.cancel();
    assert_eq!(next(&mut stream).await, 60);
    assert_eq!(next(&mut stream).await, 61);
    assert!(stream.recv().await.is_none());
}

#[tokio::test]
async fn a_follower_catches_up_over_several_rotations() {
    let log = Log::new();
    log.write(0..1);
    let follow = CancellationToken::new();
    let wanted = ReadLogs { follow: Some(follow.clone()), ..all() };
    let mut cursor = Cursor::open(log.path(), &wanted).unwrap();
    assert_eq!(cursor.step().unwrap().0.len(), 1);
    for number in 1..5 {
        log.write(number * 10..number * 10 + 2);
        log.rotate(number % 2 == 0);
    }
    log.write(90..91);
    let mut found = Vec::new();
    loop {
        let (lines, state) = cursor.step().unwrap();
        found.extend(lines.iter().map(number));
        if state == State::End {
            break;
        }
    }
    assert_eq!(found, [10, 11, 20, 21, 30, 31, 40, 41, 90]);
}

#[tokio::test]
async fn a_follower_survives_an_emptied_file_and_a_late_one() {
    let log = Log::new();
    let stop = CancellationToken::new();
    let mut stream = log.read(ReadLogs { follow: Some(stop.clone()), ..all() }).await;
    log.write(0..5);
    for expected in 0..5 {
        assert_eq!(next(&mut stream).await, expected);
    }
    std::fs::File::create(log.path()).unwrap();
    log.write(7..8);
    assert_eq!(next(&mut stream).await, 7);
    stop.cancel();
    assert!(stream.recv().await.is_none());
}

#[tokio::test]
async fn a_reader_ends_when_nobody_listens() {
    let log = Log::new();
    log.write(0..1);
    let stop = CancellationToken::new();
    let stream = log.read(ReadLogs { follow: Some(stop), ..all() }).await;
    assert!(log.driver.tasks.running().contains(&"log-read"));
    drop(stream);
    for _ in 0..100 {
        if !log.driver.tasks.running().contains(&"log-read") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the reader still runs");
}

#[tokio::test]
async fn the_sink_says_what_the_options_said() {
    let mut log = Log::new();
    log.target.options =
        [("max-size", "1k"), ("max-file", "2"), ("tag", "{{.FullID}}"), ("mode", "non-blocking")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
    let sink = log.driver.open(&Ctx::background(), &log.target).await.unwrap();
    let expected = LogSink::JsonFile {
        path: log.path(),
        max_size: 1000,
        max_files: 2,
        compress: false,
        attrs: Some(format!("{{\"tag\":\"{}\"}}", log.target.container)),
        ring: Some(1 << 20),
    };
    assert_eq!(sink, expected);
    assert!(log.driver.path(&Ctx::background(), &log.target).await.unwrap().ends_with("-json.log"));
}

#[tokio::test]
async fn throughput_is_printed() {
    let log = Log::new();
    let mut text = Vec::new();
    for _ in 0..200_000 {
        text.extend_from_slice(
            b"{\"log\":\"2023/11/14 10.0.0.1 GET /some/path/of/a/request?with=query 200 1234 \\\"agent/1.0\\\"\\n\",\"stream\":\"stdout\",\"time\":\"2023-11-14T22:13:20.123456789Z\"}\n",
        );
    }
    append(&log.path(), &text);
    let started = Instant::now();
    let mut stream = log.read(all()).await;
    let mut lines = 0;
    while stream.recv().await.is_some() {
        lines += 1;
    }
    let took = started.elapsed().as_secs_f64();
    assert_eq!(lines, 200_000);
    let megabytes = text.len() / 1_000_000;
    println!("read {megabytes} MB in {took:.3} s: {:.0} MB/s", text.len() as f64 / 1e6 / took);
    let started = Instant::now();
    let mut stream = log.read(ReadLogs { tail: Some(10), ..all() }).await;
    while stream.recv().await.is_some() {}
    println!("tail of 10: {:.2} ms", started.elapsed().as_secs_f64() * 1e3);
}
