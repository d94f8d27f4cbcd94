//! Which addresses belong to the public internet.
//!
//! The question is asked the other way round from most lists: an address is public only if nothing says that
//! it is special. For IPv6 that starts from the one block that is assigned at all, `2000::/3`, so that what is
//! assigned to new uses later is refused until somebody looks at it.
//!
//! Spec: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), multicast and IPv6 address space.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Not public in IPv4: the first address and the length of the prefix.
const SPECIAL_V4: [(Ipv4Addr, u32); 17] = [
    (Ipv4Addr::UNSPECIFIED, 8), // this network; 0.0.0.0 reaches the host itself
    (Ipv4Addr::new(10, 0, 0, 0), 8), // private
    (Ipv4Addr::new(100, 64, 0, 0), 10), // shared, behind a carrier's NAT
    (Ipv4Addr::new(127, 0, 0, 0), 8), // loopback
    (Ipv4Addr::new(169, 254, 0, 0), 16), // link-local, where clouds keep credentials
    (Ipv4Addr::new(172, 16, 0, 0), 12), // private
    (Ipv4Addr::new(192, 0, 0, 0), 24), // IETF protocols
    (Ipv4Addr::new(192, 0, 2, 0), 24), // documentation
    (Ipv4Addr::new(192, 31, 196, 0), 24), // AS112
    (Ipv4Addr::new(192, 52, 193, 0), 24), // automatic multicast tunnels
    (Ipv4Addr::new(192, 88, 99, 0), 24), // relays for 6to4
    (Ipv4Addr::new(192, 168, 0, 0), 16), // private
    (Ipv4Addr::new(192, 175, 48, 0), 24), // AS112
    (Ipv4Addr::new(198, 18, 0, 0), 15), // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24), // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 3), // multicast, reserved, broadcast
];

/// The block that global unicast addresses are assigned from. Outside it lie `::`, `::1`, the IPv4-mapped
/// and -compatible addresses, unique local, link-local, site-local and multicast ones.
const UNICAST_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Not public within [`UNICAST_V6`].
const SPECIAL_V6: [(Ipv6Addr, u32); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // IETF protocols, Teredo, ORCHID, benchmarks
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4: any IPv4 address, wrapped
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), // AS112
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// The well-known prefix under which a host without IPv4 reaches it (RFC 6052).
const NAT64: (Ipv6Addr, u32) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Is `address` one of the public internet, to which anybody may be sent?
///
/// An address of the well-known NAT64 prefix is as public as the IPv4 address in it: on hosts without IPv4,
/// it is all that DNS gives for most of the web. Of the other ways to wrap an IPv4 address none is.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|block| within_v4(address, *block)),
        IpAddr::V6(address) if within_v6(address, NAT64) => {
            let [.., a, b, c, d] = address.octets();
            is_public(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        IpAddr::V6(address) => {
            within_v6(address, UNICAST_V6)
                && !SPECIAL_V6.iter().any(|block| within_v6(address, *block))
        }
    }
}

const fn within_v4(address: Ipv4Addr, (first, prefix): (Ipv4Addr, u32)) -> bool {
    (address.to_bits() ^ first.to_bits()) >> (32 - prefix) == 0
}

const fn within_v6(address: Ipv6Addr, (first, prefix): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ first.to_bits()) >> (128 - prefix) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_all(public: bool, addresses: &[&str]) {
        for address in addresses {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn hosts_of_the_internet_are_public() {
        assert_all(
            true,
            &[
                "1.1.1.1",
                "8.8.8.8",
                "93.184.216.34",
                "2606:4700:4700::1111",
                "2a00:1450:4001:82b::200e",
                "2001:4860:4860::8888",
            ],
        );
    }

    #[test]
    fn every_special_block_is_refused_up_to_its_edges() {
        assert_all(
            false,
            &[
                "0.0.0.0",
                "0.255.255.255",
                "10.0.0.0",
                "10.255.255.255",
                "100.64.0.0",
                "100.127.255.255",
                "127.0.0.1",
                "127.255.255.255",
                "169.254.169.254",
                "172.16.0.0",
                "172.31.255.255",
                "192.0.0.1",
                "192.0.2.1",
                "192.31.196.1",
                "192.52.193.1",
                "192.88.99.1",
                "192.168.0.0",
                "192.168.255.255",
                "192.175.48.1",
                "198.18.0.0",
                "198.19.255.255",
                "198.51.100.1",
                "203.0.113.1",
                "224.0.0.1",
                "239.255.255.255",
                "240.0.0.1",
                "255.255.255.255",
            ],
        );
        assert_all(
            true,
            &[
                "1.0.0.0",
                "9.255.255.255",
                "11.0.0.0",
                "100.63.255.255",
                "100.128.0.0",
                "126.255.255.255",
                "128.0.0.0",
                "169.253.255.255",
                "169.255.0.0",
                "172.15.255.255",
                "172.32.0.0",
                "192.167.255.255",
                "192.169.0.0",
                "198.17.255.255",
                "198.20.0.0",
                "223.255.255.255",
            ],
        );
    }

    #[test]
    fn special_blocks_of_ipv6_are_refused() {
        assert_all(
            false,
            &[
                "::",
                "::1",
                "::2",
                "100::1",
                "fc00::1",
                "fd12:3456::1",
                "fe80::1",
                "febf::1",
                "fec0::1",
                "ff02::1",
                "2001::1",
                "2001:1ff:ffff::",
                "2001:db8::1",
                "2001:2::1",
                "2001:10::1",
                "2620:4f:8000::1",
                "3fff::1",
                "3fff:fff::1",
                "4000::1",
                "5f00::1",
                "1fff::1",
            ],
        );
        assert_all(
            true,
            &[
                "2001:200::1",
                "2001:db7::1",
                "2001:db9::1",
                "3ffe::1",
                "3fff:1000::1",
            ],
        );
    }

    #[test]
    fn an_ipv4_address_is_not_hidden_by_wrapping_it() {
        assert_all(
            false,
            &[
                "::ffff:127.0.0.1",   // mapped
                "::ffff:8.8.8.8",     // no DNS gives this
                "::127.0.0.1",        // compatible
                "::ffff:0:127.0.0.1", // translated
                "64:ff9b::127.0.0.1", // NAT64
                "64:ff9b::10.0.0.1",
                "64:ff9b::169.254.169.254",
                "64:ff9b:1::8.8.8.8", // NAT64 within a network
                "2002:7f00:1::",      // 6to4
                "2002:808:808::1",
                "2001:0:7f00:1::", // Teredo
            ],
        );
        assert_all(true, &["64:ff9b::8.8.8.8"]);
    }
}
