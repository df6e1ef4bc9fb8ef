//! The targets.

#![expect(clippy::unwrap_used, reason = "tests end by panicking")]

use std::io::{BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use gantry_api::image::OciDescriptor;
use gantry_archive::{ExtractOptions, Limits, Whiteouts, extract, settle_standalone};
use gantry_fuzz::run;
use gantry_image::config::ImageFile;
use gantry_image::load::ingest::Archive;
use gantry_image::load::sink::Sink;
use gantry_image::load::{candidates, check, decode};
use gantry_image::pull::manifest::Document;
use gantry_sdk::Ctx;
use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::reference::{AnyReference, Reference};
use gantry_testkit::fakes::Blobs;

/// References that are accepted are written as they are read, and have no room for anything else.
#[test]
fn reference() {
    run(
        "reference",
        |_| {},
        |input| {
            let Ok(text) = std::str::from_utf8(input) else { return "not UTF-8".to_owned() };
            let any = AnyReference::parse(text).map(drop).map_err(|e| e.to_string());
            match Reference::parse(text) {
                Ok(reference) => {
                    let written = reference.to_string();
                    let again = Reference::parse(&written).unwrap();
                    assert_eq!(again.to_string(), written, "{text:?}");
                    let familiar = Reference::parse(&reference.familiar()).unwrap();
                    assert_eq!(familiar.to_string(), written, "{text:?}");
                    assert!(!written.contains(|c: char| c.is_whitespace() || c.is_control()));
                    let parts = (reference.tag().is_some(), reference.digest().is_some());
                    format!("{parts:?} {any:?}")
                }
                Err(error) => format!("{error} {any:?}"),
            }
        },
    );
}

/// Configurations and descriptors: an answer, and what is accepted can be asked for everything.
#[test]
fn manifest() {
    run(
        "manifest",
        |_| {},
        |input| {
            let config = ImageFile::parse(input).map(|file| {
                let shown = (file.platform(), file.created(), file.comment().len());
                let diff_ids = file.diff_ids().map(|ids| ids.len());
                format!("{:?} {:?} {}", shown.1.is_some(), diff_ids.is_ok(), shown.0.len() % 4)
            });
            let descriptor = decode::<OciDescriptor>(input).map(|descriptor| {
                let text = serde_json::to_string(&descriptor).unwrap();
                decode::<OciDescriptor>(text.as_bytes()).unwrap();
            });
            let shape = decode::<serde_json::Value>(input).map(|value| match value {
                serde_json::Value::Object(map) => map.keys().cloned().collect::<Vec<_>>().join(","),
                other => other.to_string().chars().take(1).collect(),
            });
            let tell = |error: gantry_sdk::Error| error.to_string();
            let shape = shape.unwrap_or_else(tell);
            let document = Document::parse(input).map(|document| match document {
                Document::Index(manifests) => format!("index of {}", manifests.len().min(3)),
                Document::Manifest(manifest) => {
                    let is_image = manifest.expect_image().map_err(tell);
                    format!("manifest of {}, {is_image:?}", manifest.layers.len().min(3))
                }
            });
            let (config, descriptor) = (config.map_err(tell), descriptor.map_err(tell));
            format!("{config:?} {descriptor:?} {:?} {shape}", document.map_err(tell))
        },
    );
}

/// Makes the checksums of what looks like headers right again.
fn mend_headers(input: &mut [u8]) {
    for block in input.as_chunks_mut::<512>().0 {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fn open(path: &Path) -> rustix::fd::OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Layers are unpacked in every way beside a file that must stay as it is.
#[test]
fn layer_tar() {
    let place = tempfile::tempdir().unwrap();
    let secret = place.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let below = place.path().join("below");
    std::fs::create_dir_all(below.join("d/e")).unwrap();
    std::os::unix::fs::symlink("../secret", below.join("l")).unwrap();
    let limits = Limits { file_bytes: 1 << 30, stream_bytes: 1 << 30, ..Limits::default() };
    run(
        "layer_tar",
        |input| mend_headers(input),
        |input| {
            let mut told = String::new();
            let ways = [
                (Whiteouts::Literal, false),
                (Whiteouts::Remove, false),
                (Whiteouts::Overlay, false),
                (Whiteouts::Overlay, true),
            ];
            for (whiteouts, standalone) in ways {
                let root = place.path().join("root");
                std::fs::create_dir(&root).unwrap();
                let (top, lower) = (open(&root), open(&below));
                let options = ExtractOptions {
                    limits: limits.clone(),
                    whiteouts,
                    standalone,
                    below: (whiteouts == Whiteouts::Overlay && !standalone).then(|| lower.as_fd()),
                    ..ExtractOptions::default()
                };
                let outcome = extract(input, top.as_fd(), &options).and_then(|summary| {
                    if standalone {
                        let (implied, given) = (&summary.implied, summary.top_given);
                        settle_standalone(top.as_fd(), lower.as_fd(), implied, given)?;
                    }
                    Ok(summary.entries)
                });
                let name = |error: gantry_archive::ArchiveError| match error {
                    gantry_archive::ArchiveError::Refused { what, .. } => what.to_owned(),
                    gantry_archive::ArchiveError::Io { doing, source, .. } => {
                        format!("{doing} {:?}", source.kind())
                    }
                    other => other.to_string(),
                };
                told.push_str(&outcome.map_or_else(name, |_| "unpacked".to_owned()));
                drop((top, lower));
                std::fs::remove_dir_all(&root).unwrap();
                let beside: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
                assert_eq!(beside.len(), 2, "something is beside the root: {beside:?}");
                assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
            }
            told
        },
    );
}

/// Archives of images are read, understood and checked, up to where an image would become known.
#[test]
fn docker_archive() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let _entered = runtime.enter();
    run(
        "docker_archive",
        |input| mend_headers(input),
        |input| {
            let tell = |error: gantry_sdk::Error| error.chain();
            let (cx, blobs) = (Ctx::background(), Arc::new(Blobs::default()));
            let lease = runtime.block_on(blobs.lease(&cx)).unwrap();
            let sink = Sink::of_blobs(blobs, lease, &cx);
            let mut archive = match Archive::read(input, sink) {
                Ok(archive) => archive,
                Err(error) => return tell(error),
            };
            let found = match candidates(&mut archive, &[]) {
                Ok(found) => found,
                Err(error) => return tell(error),
            };
            let mut told = String::new();
            for candidate in found.iter().take(4) {
                let names = (candidate.tags.len().min(2), candidate.target.is_some());
                let layers = check(&mut archive, candidate).map_err(tell);
                told.push_str(&format!("{names:?} {layers:?} "));
            }
            told
        },
    );
}

/// Our own framing of gzip gives what zlib gives, and refuses what zlib refuses.
#[test]
fn gzip() {
    run(
        "gzip",
        |_| {},
        |input| {
            let mut theirs = Vec::new();
            let decoder = flate2::bufread::MultiGzDecoder::new(BufReader::new(input));
            let their_outcome = decoder.take(8 << 20).read_to_end(&mut theirs);
            if !input.starts_with(&[0x1f, 0x8b]) || theirs.len() >= 8 << 20 {
                return "no gzip, or much of it".to_owned();
            }
            let outcome = gantry_archive::decompressed(input, |chunks| {
                let mut ours = Vec::new();
                chunks.read_to_end(&mut ours).map_err(gantry_archive::ArchiveError::Read)?;
                Ok(ours)
            });
            match (outcome, their_outcome) {
                (Ok((ours, _)), Ok(_)) => {
                    assert!(ours == theirs, "other bytes");
                    "decompressed".to_owned()
                }
                (Err(error), Err(_)) => {
                    std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
                }
                (ours, theirs) => panic!("ours: {:?}, zlib: {theirs:?}", ours.map(|_| ())),
            }
        },
    );
}
