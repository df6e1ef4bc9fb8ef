//! The rules, as text, and the names of their sets and maps.
//!
//! Containers are elements, so the rules never change while the daemon runs, and one more container
//! costs the same beside ten as beside ten thousand.

/// The table, of family `inet`.
pub(crate) const TABLE: &str = "gantry";

/// host address, protocol, port → container address, port
pub(crate) const PUBLISHED_ON_ADDRESS: [&str; 2] = ["pub4a", "pub6a"];
/// protocol, port → container address, port; any host address
pub(crate) const PUBLISHED_ANYWHERE: [&str; 2] = ["pub4w", "pub6w"];
/// Our bridges.
pub(crate) const BRIDGES: &str = "bridges";
/// Bridges without a way out.
pub(crate) const INTERNAL: &str = "internal";
/// Pairs of bridges (today: one and itself) whose containers may talk.
pub(crate) const CONNECTED: &str = "icc";
/// bridge, address: clients on the bridge itself, which must see the bridge as the peer
pub(crate) const HAIRPIN: [&str; 2] = ["hair4", "hair6"];
/// Sources that leave under the host's address.
pub(crate) const MASQUERADED: [&str; 2] = ["masq4", "masq6"];

/// Changes whenever the rules below do, so that an older table is replaced.
const VERSION: u32 = 1;

/// Which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Whether IPv4 is filtered at all.
    pub(crate) v4: bool,
    /// Whether IPv6 is filtered at all.
    pub(crate) v6: bool,
    /// Whether the host forwards only for containers: wanted if it was us who turned forwarding on,
    /// or the host would have become a router for everybody.
    pub(crate) drop_others: bool,
}

impl Variant {
    /// Kept with the table, to know it again.
    pub(crate) fn comment(self) -> String {
        let Self { v4, v6, drop_others } = self;
        format!("rules {VERSION} v4={v4} v6={v6} drop={drop_others}")
    }

    /// The rules. Replaces an existing table.
    pub(crate) fn text(self) -> String {
        let policy = if self.drop_others { "drop" } else { "accept" };
        let spare = match (self.v4, self.v6) {
            (true, false) => "meta nfproto ipv6 accept",
            (false, true) => "meta nfproto ipv4 accept",
            _ => "",
        };
        let comment = self.comment();
        format!(
            r#"
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  comment "{comment}"

  map pub4a {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map pub6a {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  map pub4w {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map pub6w {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  set bridges {{ type ifname; }}
  set internal {{ type ifname; }}
  set icc {{ type ifname . ifname; }}
  set hair4 {{ type ifname . ipv4_addr; flags interval; }}
  set hair6 {{ type ifname . ipv6_addr; flags interval; }}
  set masq4 {{ type ipv4_addr; flags interval; }}
  set masq6 {{ type ipv6_addr; flags interval; }}

  chain published {{
    dnat ip to ip daddr . meta l4proto . th dport map @pub4a
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @pub6a
    meta nfproto ipv4 dnat ip to meta l4proto . th dport map @pub4w
    meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @pub6w
  }}
  chain arriving {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump published
  }}
  chain own {{
    type nat hook output priority -100; policy accept;
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    fib daddr type local jump published
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat oifname . ip saddr @hair4 masquerade
    ct status dnat oifname . ip6 saddr @hair6 masquerade
    ip saddr @masq4 oifname != @bridges masquerade
    ip6 saddr @masq6 oifname != @bridges masquerade
  }}
  chain passing {{
    type filter hook forward priority filter; policy {policy};
    {spare}
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
    iifname . oifname @icc accept
    iifname @internal drop
    oifname @internal drop
    oifname @bridges ct status dnat accept
    iifname @bridges oifname @bridges drop
    iifname @bridges accept
    oifname @bridges drop
  }}
}}
"#
        )
    }
}
