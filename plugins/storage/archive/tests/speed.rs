//! Figures, not assertions: unpacking compared with GNU tar on the same archive.
//!
//! `cargo test --release -p gantry-archive --test speed -- --ignored --nocapture`; the tree to
//! archive is `/usr/share` or the directory named by `GANTRY_SPEED_TREE`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_archive::{CreateOptions, ExtractOptions, create, extract};

fn open(path: &Path) -> std::fs::File {
    std::fs::File::open(path).unwrap()
}

fn timed(dir: &Path, run: impl Fn(&Path)) -> Duration {
    let target = dir.join("target");
    std::fs::create_dir(&target).unwrap();
    let start = Instant::now();
    run(&target);
    let elapsed = start.elapsed();
    std::fs::remove_dir_all(&target).unwrap();
    elapsed
}

#[test]
#[ignore = "prints figures; run by hand with --release"]
fn unpacking_beside_gnu_tar() {
    let tree = std::env::var_os("GANTRY_SPEED_TREE").unwrap_or_else(|| "/usr/share".into());
    let place = tempfile::tempdir().unwrap();
    let plain = place.path().join("layer.tar");
    let start = Instant::now();
    let out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&plain).unwrap());
    let created = create(open(Path::new(&tree)).as_fd(), out, &CreateOptions::default()).unwrap();
    let elapsed = start.elapsed();
    println!("{} members, {} MiB, written in {elapsed:.2?}", created.entries, created.bytes >> 20);
    for (tool, name) in [("gzip", "layer.tar.gz"), ("zstd", "layer.tar.zst")] {
        let command = format!("{tool} -q -c layer.tar > {name}");
        let status = Command::new("sh").arg("-c").arg(&command).current_dir(place.path()).status();
        if !status.unwrap().success() {
            println!("{tool} is missing");
        }
    }
    for name in ["layer.tar", "layer.tar.gz", "layer.tar.zst"] {
        let archive = place.path().join(name);
        if !archive.exists() {
            continue;
        }
        let [mut gnu, mut digest, mut ours] = [Duration::MAX; 3];
        // In turns, so that a busy machine is busy for all; the best counts.
        for _ in 0..5 {
            gnu = gnu.min(timed(place.path(), |target| {
                let mut tar = Command::new("tar");
                tar.arg("-xf").arg(&archive).arg("-C").arg(target).arg("--numeric-owner");
                assert!(tar.status().unwrap().success());
            }));
            ours = ours.min(timed(place.path(), |target| {
                let options = ExtractOptions::default();
                extract(open(&archive), open(target).as_fd(), &options).unwrap();
            }));
            digest = digest.min(timed(place.path(), |_| {
                Command::new("sha256sum").arg(&archive).output().unwrap();
            }));
        }
        println!(
            "{name}: tar {gnu:.2?} (and sha256sum {digest:.2?}), ours {ours:.2?} with digests"
        );
    }
}
