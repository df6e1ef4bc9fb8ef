//! Streams: terminals, input, logs, clients that do not read.

use super::fixture::{Fixture, can_run, frames, within};
use gantry_sdk::kinds::logs::LogSink;
use gantry_sdk::kinds::runtime::{Attach, Stdio};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[tokio::test]
async fn root_has_a_terminal_with_a_size() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script =
        "tty; stty size; ls -l /dev/console /dev/pts; read line; stty size; echo got $line";
    let stdio = Stdio { tty: true, stdin: true, stdin_once: false, size: (24, 80) };
    let launch = fixture.launch("tty", &fixture.spec("tty", &["sh", "-c", script]), stdio);
    let (container, mut stream) = fixture.start(launch).await.unwrap();
    container.resize(40, 100).await.unwrap();
    stream.write_all(b"hello\n").unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 0);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert!(text.contains("40 100") && text.contains("got hello"), "{text}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_passes_input_on_and_ends_it_once() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let stdio = Stdio { stdin: true, stdin_once: true, ..Stdio::default() };
    let launch = fixture.launch("cat", &fixture.spec("cat", &["cat"]), stdio);
    let (container, mut stream) = fixture.start(launch).await.unwrap();
    let big = "0123456789abcdef".repeat(40_000);
    let text = big.clone();
    let mut writer = stream.try_clone().unwrap();
    let feeder = std::thread::spawn(move || {
        writer.write_all(text.as_bytes()).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let (out, _) = tokio::task::spawn_blocking(move || {
        let _ = stream.flush();
        frames(stream)
    })
    .await
    .unwrap();
    feeder.join().unwrap();
    assert_eq!(out.len(), big.len());
    assert_eq!(out, big);
    assert_eq!(within(container.wait()).await.unwrap().code, 0);
    container.delete().await.unwrap();
}

#[tokio::test]
async fn root_keeps_a_log_in_both_modes() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    for (id, ring) in [("direct", None), ("ring", Some(1 << 20))] {
        let path = fixture.dir.join(format!("{id}.log"));
        let script = "echo one; echo two >&2; busybox printf 'a<b'";
        let mut launch =
            fixture.launch(id, &fixture.spec(id, &["sh", "-c", script]), Stdio::default());
        launch.log = LogSink::JsonFile {
            path: path.clone(),
            max_size: 0,
            max_files: 1,
            compress: false,
            attrs: Some("{\"k\":\"v\"}".to_owned()),
            ring,
        };
        let (container, _stream) = fixture.start(launch).await.unwrap();
        within(container.wait()).await.unwrap();
        container.delete().await.unwrap();
        // The writing process of the second mode ends with the shim.
        let mut text = String::new();
        for _ in 0..100 {
            text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.lines().count() == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let has = |words: &str| assert!(text.contains(words), "{words} is missing in {id}: {text}");
        has("{\"log\":\"one\\n\",\"stream\":\"stdout\",\"attrs\":{\"k\":\"v\"},\"time\":\"20");
        has("{\"log\":\"two\\n\",\"stream\":\"stderr\"");
        has("{\"log\":\"a\\u003cb\",\"stream\":\"stdout\"");
    }
}

#[tokio::test]
async fn root_exits_though_a_client_does_not_read() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "busybox dd if=/dev/zero bs=1024 count=600 2>/dev/null; exit 4";
    let launch =
        fixture.launch("slow", &fixture.spec("slow", &["sh", "-c", script]), Stdio::default());
    let (container, stream) = fixture.start(launch).await.unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 4);
    container.delete().await.unwrap();
    // The container is gone, its output is not.
    let (out, _) = tokio::task::spawn_blocking(move || frames(stream)).await.unwrap();
    assert_eq!(out.len(), 600 * 1024);
}

#[tokio::test]
async fn root_serves_several_clients_and_late_ones() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let script = "read x; echo first $x; read y; echo second $y";
    let stdio = Stdio { stdin: true, ..Stdio::default() };
    let launch = fixture.launch("many", &fixture.spec("many", &["sh", "-c", script]), stdio);
    let (container, mut first) = fixture.start(launch).await.unwrap();
    first.write_all(b"a\n").unwrap();
    let mut frame = [0; 8 + 8];
    first.read_exact(&mut frame).unwrap();
    let (mut second, far) = UnixStream::pair().unwrap();
    container
        .attach(Attach { stream: far, stdin: true, stdout: true, stderr: true })
        .await
        .unwrap();
    // The first goes away; without stdin_once input stays open for the second.
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    second.write_all(b"b\n").unwrap();
    assert_eq!(within(container.wait()).await.unwrap().code, 0);
    assert_eq!(frames(second).0, "second b\n");
    container.delete().await.unwrap();
}
