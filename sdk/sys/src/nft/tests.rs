//! Against the kernel, in private network namespaces. They need root and `nft`, and skip loudly.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use super::*;
use crate::netlink::{IfName, NetNs};

const RULES: &str = r#"table inet t {
  comment "version 1";
  map pub { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
  set open { type ipv4_addr . inet_proto . inet_service; }
  set bridges { type ifname; }
  set hair { type ifname . ipv4_addr; flags interval; }
  set masq { type ipv4_addr; flags interval; }
}"#;

fn private(test: impl FnOnce(&mut Nft) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    NetNs::create(|_, _| {
        match load(RULES) {
            Err(LoadError::Missing) => {
                eprintln!("SKIPPED: needs nft");
                return Ok(());
            }
            other => other.unwrap(),
        }
        test(&mut Nft::open().unwrap());
        Ok::<_, crate::netlink::Error>(())
    })
    .unwrap();
}

fn ip(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + n).into()
}

fn published(n: u32, port: u16) -> Key {
    Key::new().ip(ip(n)).protocol(6).port(port)
}

fn target(n: u32, port: u16) -> Key {
    Key::new().ip(ip(n)).port(port)
}

#[test]
fn a_batch_is_all_or_nothing_and_names_the_conflict() {
    private(|nft| {
        let mut batch = Batch::new("t");
        batch.add_entry("pub", published(1, 80), target(2, 80));
        batch.add("open", published(2, 80));
        nft.commit(&batch).unwrap();
        nft.commit(&batch).expect("the same again is fine");

        let mut other = Batch::new("t");
        other.add("open", published(3, 80));
        other.add_entry("pub", published(1, 80), target(3, 80));
        let error = nft.commit(&other).unwrap_err();
        assert_eq!(error.conflict(), Some(1), "{error}");
        assert!(error.to_string().contains("add an element to pub"), "{error}");
        assert_eq!(nft.elements("t", "open").unwrap().len(), 1, "nothing of it was applied");

        let mut gone = Batch::new("t");
        gone.delete("open", published(9, 9));
        gone.delete("pub", published(1, 80));
        gone.delete("open", published(2, 80));
        assert!(nft.commit(&gone).unwrap_err().is_not_found());
        assert_eq!(nft.elements("t", "pub").unwrap().len(), 1, "still all or nothing");
        nft.commit_lenient(&gone).unwrap();
        assert!(nft.elements("t", "pub").unwrap().is_empty());
        assert!(nft.elements("t", "open").unwrap().is_empty());
    });
}

#[test]
fn elements_read_back_as_written() {
    private(|nft| {
        let bridge = IfName::new("br0").unwrap();
        let mut batch = Batch::new("t");
        batch.add("bridges", Key::new().ifname(&bridge));
        let (first, last) =
            (Key::new().ifname(&bridge).ip(ip(0)), Key::new().ifname(&bridge).ip(ip(255)));
        batch.add_range("hair", first.clone(), last.clone());
        batch.add_interval("masq", Key::new().ip(ip(0)), Some(Key::new().ip(ip(256))));
        nft.commit(&batch).unwrap();

        let bridges = nft.elements("t", "bridges").unwrap();
        assert_eq!(bridges[0].key, Key::new().ifname(&bridge));
        let hair = nft.elements("t", "hair").unwrap();
        assert_eq!((&hair[0].key, hair[0].last.as_ref()), (&first, Some(&last)));
        let masq = nft.elements("t", "masq").unwrap();
        assert!(masq.iter().any(|e| e.key == Key::new().ip(ip(0)) && !e.ends_interval));
        assert!(masq.iter().any(|e| e.key == Key::new().ip(ip(256)) && e.ends_interval));

        let mut batch = Batch::new("t");
        batch.delete_range("hair", first, last);
        batch.delete_interval("masq", Key::new().ip(ip(0)), Some(Key::new().ip(ip(256))));
        nft.commit(&batch).unwrap();
        assert!(nft.elements("t", "hair").unwrap().is_empty());
        assert!(
            !nft.elements("t", "masq").unwrap().iter().any(|e| e.key == Key::new().ip(ip(256)))
        );
    });
}

#[test]
fn tables_are_known_by_their_comment() {
    private(|nft| {
        assert_eq!(nft.table_comment("t").unwrap().as_deref(), Some("version 1"));
        assert_eq!(nft.table_comment("other").unwrap(), None);
        assert!(nft.elements("t", "other").unwrap_err().is_not_found());
        let mut batch = Batch::new("t");
        batch.delete_table();
        nft.commit(&batch).unwrap();
        assert_eq!(nft.table_comment("t").unwrap(), None);
        let error = load("table inet t { nonsense }").unwrap_err();
        assert!(error.to_string().contains("syntax error"), "{error}");
    });
}

#[test]
fn ten_thousand_elements_in_one_batch() {
    private(|nft| {
        let mut batch = Batch::new("t");
        for n in 0..10_000 {
            batch.add_entry("pub", published(n, 80), target(n, 80));
        }
        let started = Instant::now();
        nft.commit(&batch).unwrap();
        let bulk = started.elapsed();
        let mut one = Batch::new("t");
        one.add_entry("pub", published(20_000, 80), target(1, 80));
        one.add("open", published(1, 80));
        let started = Instant::now();
        nft.commit(&one).unwrap();
        eprintln!("10 000 elements in {bulk:?}, two more in {:?}", started.elapsed());
        assert_eq!(nft.elements("t", "pub").unwrap().len(), 10_001);
    });
}
