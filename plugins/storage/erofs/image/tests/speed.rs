//! Figures, not assertions: writing an image compared with unpacking into a directory.
//!
//! `cargo test --release -p gantry-erofs --test speed -- --ignored --nocapture`; the tree to archive
//! is `/usr/share` or the directory named by `GANTRY_SPEED_TREE`, and everything is written to
//! `/dev/shm` or the directory named by `GANTRY_SPEED_PLACE`.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_archive::{CreateOptions, ExtractOptions, Whiteouts, create, extract};
use gantry_erofs::{ConvertOptions, convert};

#[test]
#[ignore = "prints figures; run by hand with --release"]
fn an_image_beside_a_directory() {
    let tree = std::env::var_os("GANTRY_SPEED_TREE").unwrap_or_else(|| "/usr/share".into());
    let place = std::env::var_os("GANTRY_SPEED_PLACE").unwrap_or_else(|| "/dev/shm".into());
    let place = tempfile::tempdir_in(place).unwrap();
    let archive = place.path().join("layer.tar");
    let out = std::io::BufWriter::with_capacity(1 << 20, File::create(&archive).unwrap());
    let source = File::open(Path::new(&tree)).unwrap();
    let created = create(source.as_fd(), out, &CreateOptions::default()).unwrap();
    println!("{} members, {} MiB", created.entries, created.bytes >> 20);
    let [mut directory, mut image, mut hash] = [Duration::MAX; 3];
    let timed = |best: &mut Duration, run: &dyn Fn()| {
        let start = Instant::now();
        run();
        *best = (*best).min(start.elapsed());
    };
    // In turns, so that a busy machine is busy for all; the best counts.
    for _ in 0..5 {
        let target = place.path().join("target");
        std::fs::create_dir(&target).unwrap();
        timed(&mut directory, &|| {
            let whiteouts = Whiteouts::Overlay;
            let options = ExtractOptions { whiteouts, ..ExtractOptions::default() };
            let into = File::open(&target).unwrap();
            extract(File::open(&archive).unwrap(), into.as_fd(), &options).unwrap();
        });
        std::fs::remove_dir_all(&target).unwrap();
        timed(&mut image, &|| {
            let mut file = File::options();
            file.read(true).write(true).create(true).truncate(true);
            let file = file.open(place.path().join("image")).unwrap();
            let options = ConvertOptions::default();
            convert(File::open(&archive).unwrap(), &file, &options).unwrap();
        });
        timed(&mut hash, &|| {
            let (_, passed) =
                gantry_archive::decompressed(File::open(&archive).unwrap(), |_| Ok(())).unwrap();
            assert_eq!(passed.diff_bytes, created.bytes);
        });
    }
    let stored = place.path().join("image").metadata().unwrap().len() >> 20;
    println!(
        "directory {directory:.2?}, image {image:.2?} ({stored} MiB), digest alone {hash:.2?}"
    );
}
