//! Figures, printed; run by hand.

use std::path::Path;
use std::time::Instant;

use gantry_content::blobs::FileBlobs;
use gantry_sdk::Labels;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::kinds::layers::{Chain, ChainLayer};
use gantry_testkit::archive::Tar;

use crate::host::{Host, compressed, cx};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; run by hand"]
async fn what_a_container_layer_costs() {
    let Some(host) = Host::new() else { return };
    let store = host.start().await;
    let chain = host.chain();
    store.unpack(&cx(), &chain, None, None).await.unwrap();
    let mut times = [vec![], vec![], vec![]];
    for n in 0..500 {
        let start = Instant::now();
        let key = format!("c{n}");
        let layer = store.create(&cx(), &key, &chain, None, &Labels::new()).await.unwrap();
        times[0].push(start.elapsed());
        let start = Instant::now();
        drop(store.mount(&cx(), &layer).await.unwrap());
        times[1].push(start.elapsed());
        let start = Instant::now();
        store.remove(&cx(), &layer).await.unwrap();
        times[2].push(start.elapsed());
    }
    for (what, mut times) in ["create", "mount", "remove"].into_iter().zip(times) {
        times.sort_unstable();
        println!("{what}: p50 {:?}, p99 {:?}", times[250], times[495]);
    }
}

/// Text that gzip makes a third of.
fn prose(seed: u32, bytes: usize) -> String {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word = state >> 20; // one of 4096
        text.push_str(&format!("{:x} ", word.wrapping_mul(0x9e37)));
    }
    text.truncate(bytes);
    text
}

const LAYERS: u32 = 5;
const FILES: u32 = 4000;

/// The files of a layer: 4000 of 1 to 20 KB in 100 directories.
fn files(layer: u32) -> impl Iterator<Item = (String, String)> {
    (0..FILES).map(move |n| {
        let seed = layer * FILES + n;
        let size = 1000 + (seed.wrapping_mul(2_654_435_761) >> 16) as usize % 19_000;
        (format!("l{layer}/d{}/f{n}", n % 100), prose(seed, size))
    })
}

fn archive(layer: u32) -> Tar {
    let mut tar = Tar::default().dir(&format!("l{layer}"));
    for n in 0..100 {
        tar = tar.dir(&format!("l{layer}/d{n}"));
    }
    files(layer).fold(tar, |tar, (name, text)| tar.file(&name, &text))
}

/// Processor time of this process, in seconds. Source: proc_pid_stat(5).
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap() as f64;
    (ticks(11) + ticks(12)) / 100.0
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (T, f64) {
    let (start, before) = (Instant::now(), processor_time());
    let answer = work();
    let (wall, cpu) = (start.elapsed().as_secs_f64(), processor_time() - before);
    println!("{what:<28} {wall:6.2} s wall {cpu:6.2} s processor");
    (answer, wall)
}

/// What cannot be left out, one after the other on one processor.
fn floor(dir: &Path, blobs: &[Vec<u8>], tars: &[Vec<u8>]) -> f64 {
    use sha2::{Digest, Sha256};
    let mut sum = 0.0;
    let hash =
        |data: &[Vec<u8>]| data.iter().map(|data| Sha256::digest(data)[0] as u64).sum::<u64>();
    sum += timed("floor: hash compressed", || hash(blobs)).1;
    let inflate = || {
        for blob in blobs {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(&blob[..]);
            std::io::copy(&mut decoder, &mut std::io::sink()).unwrap();
        }
    };
    sum += timed("floor: inflate", inflate).1;
    sum += timed("floor: hash archive", || hash(tars)).1;
    let all: Vec<_> = (0..LAYERS).flat_map(files).collect();
    let write = || {
        for layer in 0..LAYERS {
            for n in 0..100 {
                std::fs::create_dir_all(dir.join(format!("l{layer}/d{n}"))).unwrap();
            }
        }
        for (name, text) in &all {
            std::fs::write(dir.join(name), text).unwrap();
        }
    };
    sum + timed("floor: write", write).1
}

#[test]
#[ignore = "prints figures; run by hand, with TMPDIR on a tmpfs"]
fn what_unpacking_costs() {
    let Some(host) = Host::new() else { return };
    let blobs = host.arriving();
    let made = (0..LAYERS).map(|layer| (archive(layer).end(), compressed(archive(layer))));
    let (tars, made): (Vec<Vec<u8>>, Vec<_>) = made.unzip();
    let (diff_ids, gzips): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    let bytes = |data: &[Vec<u8>]| data.iter().map(Vec::len).sum::<usize>() >> 20;
    println!("{} files, {} MiB, {} MiB compressed", LAYERS * FILES, bytes(&tars), bytes(&gzips));
    let floor = floor(&host.root("floor"), &gzips, &tars);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let layers = diff_ids.into_iter().zip(gzips).map(|(diff_id, gzip)| {
        let blob = runtime.block_on(put(&blobs, gzip));
        ChainLayer { diff_id, blob }
    });
    let chain = Chain(layers.collect());
    drop(tars);
    let store = runtime.block_on(host.start_on(blobs));
    // Forgets the peak so far. Source: proc_pid_clear_refs(5).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    println!("{} before", memory("VmRSS"));
    for instance in ["overlay2", "erofs", "vfs"] {
        let unpack =
            || runtime.block_on(store.unpack(&cx(), &chain, Some(instance), None)).unwrap();
        let ((), wall) = timed(&format!("unpack on {instance}"), unpack);
        println!("{:.2} times the floor of {floor:.2} s, {}", wall / floor, memory("VmHWM"));
    }
}

fn memory(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with(field)).unwrap().to_owned()
}

async fn put(blobs: &FileBlobs, data: Vec<u8>) -> Digest {
    let lease = blobs.lease(&cx()).await.unwrap();
    let mut writer = blobs.writer(&cx(), &lease).await.unwrap();
    writer.write_all(&data).unwrap();
    writer.commit(None).unwrap().digest
}
