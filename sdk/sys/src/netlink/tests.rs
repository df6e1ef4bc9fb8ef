//! Against the kernel, in private network namespaces. They need root and skip loudly without.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use super::*;

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// Runs `test` in a namespace of its own.
fn private(test: impl FnOnce(&mut Route) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    NetNs::create(|_, route| {
        test(route);
        Ok::<_, Error>(())
    })
    .unwrap();
}

fn up() -> LinkChange {
    LinkChange { up: Some(true), ..LinkChange::default() }
}

#[test]
fn a_new_namespace_has_lo_up_and_is_another_one() {
    private(|route| {
        let links = route.links().unwrap();
        assert_eq!(links.len(), 1, "{links:?}");
        assert!(links[0].up && links[0].name == "lo");
        let (here, new) = (NetNs::current().unwrap(), NetNs::new().unwrap());
        assert_ne!(here.id().unwrap(), new.id().unwrap());
        let inside = new.run(|| NetNs::current()?.id()).unwrap();
        assert_eq!(inside, new.id().unwrap());
        assert_eq!(NetNs::current().unwrap().id().unwrap(), here.id().unwrap());
    });
}

#[test]
fn a_container_s_links_carry_tcp() {
    private(|route| {
        let bridge = name("br0");
        let mac = Mac([2, 0x42, 10, 1, 0, 1]);
        route.apply(&[Request::CreateBridge { name: bridge.clone(), mac: Some(mac) }]).unwrap();
        let link = route.link(&bridge).unwrap().unwrap();
        assert_eq!((link.kind.as_deref(), link.mac), (Some("bridge"), Some(mac)));
        let gateway = IpAddr::from([10, 1, 0, 1]);
        route
            .apply(&[
                Request::AddAddress { index: link.index, address: gateway, prefix: 24 },
                Request::Change((&bridge).into(), up()),
            ])
            .unwrap();

        let container = NetNs::new().unwrap();
        let started = Instant::now();
        let veth = Veth {
            name: name("veth0"),
            peer: name("eth0"),
            peer_netns: container.as_fd(),
            peer_mac: Some(Mac::from_ipv4(Ipv4Addr::new(10, 1, 0, 2))),
            mtu: Some(1400),
            master: Some(link.index),
        };
        route
            .apply(&[
                Request::CreateVeth(veth),
                Request::ChangePort {
                    port: (&name("veth0")).into(),
                    hairpin: true,
                    isolated: false,
                },
            ])
            .unwrap();
        container
            .run(|| {
                let mut inside = Route::open()?;
                let eth0 = inside.link(&name("eth0"))?.unwrap();
                assert_eq!((eth0.mtu, eth0.up), (1400, false));
                let own = IpAddr::from([10, 1, 0, 2]);
                let any = IpAddr::from([0, 0, 0, 0]);
                let change = LinkChange { no_link_local: true, ..up() };
                inside.apply(&[
                    Request::Change(eth0.index.into(), change),
                    Request::AddAddress { index: eth0.index, address: own, prefix: 24 },
                    Request::AddRoute(Destination {
                        to: any,
                        prefix: 0,
                        gateway: Some(gateway),
                        index: eth0.index,
                    }),
                ])
            })
            .unwrap();
        eprintln!("veth, port, address and route: {:?}", started.elapsed());

        let port = route.link(&name("veth0")).unwrap().unwrap();
        assert_eq!((port.master, port.mtu, port.up), (Some(link.index), 1400, true));
        let listener = container
            .run(|| {
                let routes = Route::open()?.routes()?;
                assert!(routes.iter().any(|r| r.gateway == Some(gateway) && r.prefix == 0));
                let addresses = Route::open()?.addresses()?;
                assert!(!addresses.iter().any(|a| a.address.is_ipv6() && a.scope == 253));
                Ok::<_, Error>(TcpListener::bind("10.1.0.2:80").unwrap())
            })
            .unwrap();
        let mut client = TcpStream::connect("10.1.0.2:80").unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut heard = String::new();
        listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
    });
}

#[test]
fn refusals_name_the_request_and_the_reason() {
    private(|route| {
        let create = || Request::CreateBridge { name: name("br0"), mac: None };
        let error = route.apply(&[create(), create()]).unwrap_err();
        assert!(error.is_exists());
        assert!(error.to_string().starts_with("cannot create bridge br0: File exists"), "{error}");
        assert_eq!(route.link(&name("none")).unwrap(), None);
        let error = route.apply(&[Request::DeleteLink((&name("none")).into())]).unwrap_err();
        assert!(error.is_not_found(), "{error}");

        let results =
            route.try_each(&[create(), Request::DeleteLink((&name("br0")).into())]).unwrap();
        assert!(results[0].is_some() && results[1].is_none(), "one refusal stops nothing else");
    });
}

#[test]
fn ipv6_addresses_are_usable_at_once() {
    private(|route| {
        let index = route.link(&name("lo")).unwrap().unwrap().index;
        let address: IpAddr = "fd01::1".parse().unwrap();
        route.apply(&[Request::AddAddress { index, address, prefix: 64 }]).unwrap();
        assert!(TcpListener::bind("[fd01::1]:80").is_ok());
        assert!(route.addresses().unwrap().iter().any(|a| a.address == address && a.prefix == 64));
        route.apply(&[Request::DeleteAddress { index, address, prefix: 64 }]).unwrap();
        assert!(!route.addresses().unwrap().iter().any(|a| a.address == address));
    });
}
