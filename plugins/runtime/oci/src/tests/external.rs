//! runc and crun under our shim.

use super::fixture::{Fixture, can_run, frames, within};
use gantry_sdk::kinds::runtime::{Attach, ExecLaunch, Recovered, Runtime, Stdio};
use gantry_sdk::{Ctx, ErrorKind};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Tests run side by side, and a name is a control group.
fn unique(name: &str, program: &str) -> String {
    format!("{name}-{}", program.rsplit('/').next().unwrap_or_default())
}

fn programs() -> Vec<&'static str> {
    let all = ["/usr/sbin/runc", "/usr/bin/crun"];
    let installed: Vec<&str> =
        all.into_iter().filter(|path| can_run() && Path::new(path).exists()).collect();
    if installed.is_empty() {
        eprintln!("SKIPPED: neither runc nor crun is installed");
    }
    installed
}

#[tokio::test]
async fn root_lives_with_an_external_runtime() {
    for program in programs() {
        let fixture = Fixture::with(Some(program));
        let id = unique("ext", program);
        let script = "read x; echo got $x; sleep 60";
        let stdio = Stdio { stdin: true, ..Stdio::default() };
        let mut launch = fixture.launch(&id, &fixture.spec(&id, &["sh", "-c", script]), stdio);
        // As `/var/run` is one.
        let link = launch.run_dir.with_extension("link");
        std::os::unix::fs::symlink(&launch.run_dir, &link).unwrap();
        launch.run_dir = link;
        let run_dir = launch.run_dir.clone();
        let (container, mut stream) = fixture.start(launch).await.unwrap();
        stream.write_all(b"this\n").unwrap();
        let mut frame = [0; 8 + 9];
        stream.read_exact(&mut frame).unwrap();
        assert!(frame.ends_with(b"got this\n"));

        let spec = fixture.spec(&id, &["sh", "-c", "tty; stty size; busybox hostname; exit 4"]);
        let (mut near, far) = UnixStream::pair().unwrap();
        let exec = container
            .exec(ExecLaunch {
                id: "e1".to_owned(),
                process: serde_json::from_value(spec["process"].clone()).unwrap(),
                seccomp: None,
                stdio: Stdio { tty: true, stdin: true, stdin_once: false, size: (0, 0) },
                attach: Some(Attach { stream: far, stdin: true, stdout: true, stderr: true }),
            })
            .await
            .unwrap();
        assert_eq!(within(exec.wait()).await.unwrap().code, 4, "{program}");
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        assert!(text.contains("/dev/pts/0") && text.contains("box"), "{program}: {text}");

        container.pause().await.unwrap();
        container.resume().await.unwrap();
        drop(container);
        let recovered = fixture.oci.recover(&Ctx::background(), &id, &run_dir).await.unwrap();
        let Recovered::Running(container) = recovered else { panic!("{program}: it runs") };
        container.signal(9, true).await.unwrap();
        assert_eq!(within(container.wait()).await.unwrap().code, 137, "{program}");
        container.delete().await.unwrap();
        drop(stream);
    }
}

#[tokio::test]
async fn root_is_told_why_an_external_runtime_refused() {
    for program in programs() {
        let fixture = Fixture::with(Some(program));
        let launch = fixture.launch("no", &fixture.spec("no", &["nope"]), Stdio::default());
        let error = fixture.start(launch).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{program}: {error}");
        assert!(error.to_string().contains("nope"), "{program}: {error}");
    }
}

#[tokio::test]
async fn root_has_a_terminal_and_an_init_with_an_external_runtime() {
    for program in programs() {
        let fixture = Fixture::with(Some(program));
        let stdio = Stdio { tty: true, stdin: true, stdin_once: false, size: (20, 70) };
        let spec = fixture.spec("tty", &["sh", "-c", "tty; cat /proc/1/cmdline; exit 8"]);
        let mut launch = fixture.launch("tty", &spec, stdio);
        launch.init = true;
        let (container, mut stream) = fixture.start(launch).await.unwrap();
        assert_eq!(within(container.wait()).await.unwrap().code, 8, "{program}");
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("/dev/pts/0") && text.contains("docker-init"), "{program}: {text}");
        container.delete().await.unwrap();
        let _ = frames;
    }
}
