//! Figures, not assertions: unpacking beside what the same work costs at least, and GNU tar.
//!
//! `TMPDIR=/dev/shm cargo test --release -p gantry-archive --test speed -- --ignored --nocapture`;
//! the tree to archive is `/usr/share` or the directory named by `GANTRY_SPEED_TREE`.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_archive::{
    Compression, CreateOptions, ExtractOptions, Hasher, Kind, Limits, Reader, create, extract,
};

/// Runs of each; the best counts.
const ROUNDS: usize = 3;

fn open(path: &Path) -> File {
    File::open(path).unwrap()
}

/// Processor time of this process and of the children it has waited for.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10) // 100 a second. Source: proc_pid_stat(5)
}

/// The shortest time of some work, and its processor time.
#[derive(Clone, Copy)]
struct Best {
    wall: Duration,
    processor: Duration,
}

impl Best {
    const NONE: Self = Self { wall: Duration::MAX, processor: Duration::ZERO };

    /// Runs `work` on an empty directory.
    fn take(&mut self, place: &Path, work: impl FnOnce(&Path)) {
        let target = place.join("target");
        std::fs::create_dir(&target).unwrap();
        let (start, before) = (Instant::now(), processor_time());
        work(&target);
        let (wall, processor) = (start.elapsed(), processor_time() - before);
        if wall < self.wall {
            *self = Self { wall, processor };
        }
        std::fs::remove_dir_all(&target).unwrap();
    }
}

impl std::fmt::Display for Best {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2?} ({:.2?} on processors)", self.wall, self.processor)
    }
}

/// Reads and hashes.
fn hash(mut source: impl Read) {
    let (mut hasher, mut buf) = (Hasher::default(), vec![0; 256 << 10]);
    loop {
        match source.read(&mut buf).unwrap() {
            0 => break,
            n => hasher.update(&buf[..n]),
        }
    }
    hasher.finish();
}

/// Reads to the end with the fastest decoder at hand that knows the format.
fn inflate(archive: &Path, compression: Compression) {
    let source = BufReader::with_capacity(256 << 10, open(archive));
    let mut buf = vec![0; 256 << 10];
    let mut drain = |mut decoder: Box<dyn Read>| while decoder.read(&mut buf).unwrap() > 0 {};
    match compression {
        Compression::Gzip => drain(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
        Compression::Zstd => {
            drain(Box::new(zstd::stream::read::Decoder::with_buffer(source).unwrap()));
        }
        _ => {}
    }
}

/// Creates what is in the archive, with nothing but content, mode and time.
fn write(archive: &Path, target: &Path) {
    let source = BufReader::with_capacity(256 << 10, open(archive));
    let mut reader = Reader::new(source, Limits::default());
    while let Some(entry) = reader.next_entry().unwrap() {
        let name = std::str::from_utf8(&entry.name).unwrap();
        let path = target.join(name);
        match entry.kind {
            Kind::Directory => drop(std::fs::create_dir(&path)),
            Kind::File => {
                let mut file = File::create(&path).unwrap();
                loop {
                    let data = reader.fill().unwrap();
                    let n = data.len();
                    if n == 0 {
                        break;
                    }
                    file.write_all(data).unwrap();
                    reader.consume(n);
                }
                let seconds = u64::try_from(entry.mtime.seconds).unwrap();
                file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
            }
            Kind::Symlink => {
                let to = std::str::from_utf8(&entry.link).unwrap();
                std::os::unix::fs::symlink(to, &path).unwrap();
            }
            Kind::Hardlink => {
                let to = std::str::from_utf8(&entry.link).unwrap();
                std::fs::hard_link(target.join(to), &path).unwrap();
            }
            _ => {}
        }
    }
}

#[test]
#[ignore = "prints figures; run by hand with --release"]
fn unpacking_beside_its_floor() {
    let tree = std::env::var_os("GANTRY_SPEED_TREE").unwrap_or_else(|| "/usr/share".into());
    let place = tempfile::tempdir().unwrap();
    let plain = place.path().join("layer.tar");
    let mut created = Best::NONE;
    created.take(place.path(), |_| {
        let out = std::io::BufWriter::with_capacity(1 << 20, File::create(&plain).unwrap());
        let options = CreateOptions::default();
        let created = create(open(Path::new(&tree)).as_fd(), out, &options).unwrap();
        println!("{} members, {} MiB", created.entries, created.bytes >> 20);
    });
    println!("created in {created}");
    for (tool, name) in [("gzip", "layer.tar.gz"), ("zstd", "layer.tar.zst")] {
        let command = format!("{tool} -q -c layer.tar > {name}");
        let status = Command::new("sh").arg("-c").arg(&command).current_dir(place.path()).status();
        if !status.unwrap().success() {
            std::fs::remove_file(place.path().join(name)).unwrap();
            println!("{tool} is missing");
        }
    }
    for (compression, name) in [
        (Compression::None, "layer.tar"),
        (Compression::Gzip, "layer.tar.gz"),
        (Compression::Zstd, "layer.tar.zst"),
    ] {
        let archive = place.path().join(name);
        if archive.exists() {
            compare(place.path(), &plain, &archive, compression);
        }
    }
}

fn compare(place: &Path, plain: &Path, archive: &Path, compression: Compression) {
    let unpack = |target: &Path, hash_raw| {
        let options = ExtractOptions { hash_raw, ..ExtractOptions::default() };
        extract(open(archive), open(target).as_fd(), &options).unwrap();
    };
    let [mut gnu, mut ours, mut verified] = [Best::NONE; 3];
    let [mut raw, mut inflated, mut hashed, mut written] = [Best::NONE; 4];
    // In turns, so that a busy machine is busy for all.
    for _ in 0..ROUNDS {
        ours.take(place, |target| unpack(target, true));
        verified.take(place, |target| unpack(target, false));
        raw.take(place, |_| hash(open(archive)));
        inflated.take(place, |_| inflate(archive, compression));
        hashed.take(place, |_| hash(open(plain)));
        written.take(place, |target| write(plain, target));
        gnu.take(place, |target| {
            let mut tar = Command::new("tar");
            tar.arg("-xf").arg(archive).arg("-C").arg(target).arg("--numeric-owner");
            assert!(tar.status().unwrap().success());
        });
    }
    let parts = match compression {
        Compression::None => vec![hashed.wall, written.wall],
        _ => vec![raw.wall, inflated.wall, hashed.wall, written.wall],
    };
    let floor: Duration = parts.iter().sum();
    println!("{}", archive.file_name().unwrap().display());
    println!("  ours                  {ours}");
    println!("  ours, source verified {verified}");
    println!(
        "  floor on one core     {floor:.2?}: hash raw {:.2?}, decompress {:.2?}, hash {:.2?}, \
         write {:.2?}",
        raw.wall, inflated.wall, hashed.wall, written.wall
    );
    println!("  GNU tar, no digests   {gnu}");
}
