//! Databases written here, and damaged.

use std::io::Write;

use crate::bolt::{Bolt, Bucket, Value, fnv};

const PAGE: usize = 4096;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;

type Element = (u32, Vec<u8>, Vec<u8>);

fn header(id: u64, flags: u16, count: usize) -> Vec<u8> {
    let mut page = id.to_le_bytes().to_vec();
    page.extend(flags.to_le_bytes());
    page.extend((count as u16).to_le_bytes());
    page.extend(0u32.to_le_bytes());
    page
}

fn leaf(id: u64, elements: &[Element]) -> Vec<u8> {
    let mut page = header(id, LEAF, elements.len());
    let mut data: Vec<u8> = Vec::new();
    for (n, (flags, key, value)) in elements.iter().enumerate() {
        let offset = (elements.len() - n) * 16 + data.len();
        for number in [*flags, offset as u32, key.len() as u32, value.len() as u32] {
            page.extend(number.to_le_bytes());
        }
        data.extend(key.iter().chain(value));
    }
    page.extend(data);
    page
}

fn text(key: &str, value: &str) -> Element {
    (0, key.into(), value.into())
}

/// A bucket within the value.
fn inline(key: &str, elements: &[Element]) -> Element {
    let mut value = vec![0; 16];
    value.extend(leaf(0, elements));
    (1, key.into(), value)
}

fn at(key: &str, page: u64) -> Element {
    let mut value = page.to_le_bytes().to_vec();
    value.extend([0; 8]);
    (1, key.into(), value)
}

fn branch(id: u64, children: &[u64]) -> Vec<u8> {
    let mut page = header(id, BRANCH, children.len());
    for child in children {
        page.extend([0; 8]);
        page.extend(child.to_le_bytes());
    }
    page
}

fn meta(id: u64, root: u64, pages: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for number in [0xed0c_daed_u32, 2, PAGE as u32, 0] {
        meta.extend(number.to_le_bytes());
    }
    for number in [root, 0, 0, pages, transaction] {
        meta.extend(number.to_le_bytes());
    }
    let sum = fnv(&meta);
    meta.extend(sum.to_le_bytes());
    [header(id, META, 0), meta].concat()
}

fn database(root: u64, pages: &[Vec<u8>]) -> Vec<u8> {
    let count = pages.len() as u64 + 2;
    // The older one points elsewhere.
    let metas = [meta(0, 99, count, 1), meta(1, root, count, 2)];
    let padded = |page: &Vec<u8>| {
        let mut page = page.clone();
        page.resize(PAGE, 0);
        page
    };
    metas.iter().chain(pages).flat_map(padded).collect()
}

/// What containerd would have written of these images.
pub(super) fn containerd(images: &[(&str, &str)]) -> Vec<u8> {
    let image = |(name, digest): &(&str, &str)| {
        let target = [
            text("digest", digest),
            text("mediatype", "application/vnd.oci.image.index.v1+json"),
            (0, b"size".to_vec(), vec![2]),
        ];
        inline(name, &[inline("target", &target)])
    };
    let (first, others) = images.split_at(1);
    let pages = [
        leaf(2, &[at("v1", 3)]),
        leaf(3, &[at("moby", 4), text("version", "4")]),
        leaf(4, &[at("images", 5)]),
        branch(5, &[6, 7]),
        leaf(6, &first.iter().map(image).collect::<Vec<_>>()),
        leaf(7, &others.iter().map(image).collect::<Vec<_>>()),
    ];
    database(2, &pages)
}

fn open(bytes: &[u8]) -> gantry_sdk::Result<Bolt> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Bolt::open(file)
}

/// Reads every bucket, as deep as tests go; how many entries there are.
fn walk(database: &Bolt, bucket: &Bucket, depth: u32) -> gantry_sdk::Result<usize> {
    let entries = database.entries(bucket)?;
    let mut count = entries.len();
    for (_, value) in entries {
        if let Value::Bucket(below) = value
            && depth < 8
        {
            count += walk(database, &below, depth + 1)?;
        }
    }
    Ok(count)
}

fn read(bytes: &[u8]) -> gantry_sdk::Result<usize> {
    let database = open(bytes)?;
    walk(&database, &database.root(), 0)
}

#[test]
fn buckets_are_trees_or_values() {
    let count = read(&containerd(&[("a", "x"), ("b", "y"), ("c", "z")])).unwrap();
    assert_eq!(count, 1 + 2 + 1 + 3 * (1 + 1 + 3));
}

#[test]
fn hostile_databases_end_with_an_error() {
    let mut long = branch(2, &[2]);
    long[10..12].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut many = leaf(2, &[text("a", "b")]);
    many[10..12].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut wide = leaf(2, &[text("a", "b")]);
    wide[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut huge = leaf(2, &[text("a", "b")]);
    huge[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases = [
        ("a branch that holds itself", vec![branch(2, &[2, 2])]),
        ("two that hold each other", vec![branch(2, &[3, 3]), branch(3, &[2, 2])]),
        ("a page out of range", vec![branch(2, &[u64::MAX])]),
        ("a first page as a child", vec![branch(2, &[0])]),
        ("more children than fit", vec![long]),
        ("more entries than fit", vec![many]),
        ("a page that never ends", vec![wide]),
        ("a huge key", vec![huge]),
        ("another page's number", vec![leaf(3, &[])]),
        ("a page of no type", vec![header(2, 0, 0)]),
        ("no page at all", vec![]),
    ];
    for (what, pages) in cases {
        assert!(read(&database(2, &pages)).is_err(), "{what}");
    }
    assert!(read(b"").is_err() && read(&[0; 3 * PAGE]).is_err());
}

#[test]
fn no_flipped_byte_does_harm() {
    let sound = containerd(&[("a", "x"), ("b", "y")]);
    for at in (0..sound.len()).filter(|at| at % PAGE < 400) {
        for flip in [0xff, 0x01] {
            let mut damaged = sound.clone();
            damaged[at] ^= flip;
            let _ = read(&damaged); // an error or another content, and an end
        }
    }
    for length in (0..sound.len()).step_by(977) {
        let _ = read(&sound[..length]);
    }
}
