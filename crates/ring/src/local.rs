//! Which devices of a ring are on this machine.
//!
//! A machine's own addresses come from /proc, as the kernel's routing tables list them: every address of an interface, but not
//! the rest of 127.0.0.0/8.

use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};

/// The addresses that this machine answers to, given what a service binds: itself, or all for `0.0.0.0` and `::`.
pub fn whataremyips(ring_ip: &str) -> Vec<IpAddr> {
    match ring_ip.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() => vec![ip],
        _ => {
            // Without /proc there are no addresses, and the daemons say that they cannot find themselves.
            let mut ips = local_v4(&std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default());
            ips.extend(local_v6(&std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()));
            ips
        }
    }
}

/// Whether a device's address is one of `my_ips` and, unless each device has its own port, `my_port`. A host name is resolved.
pub fn is_local_device(my_ips: &[IpAddr], my_port: Option<u16>, dev_ip: &str, dev_port: u16) -> bool {
    if my_port.is_some_and(|port| port != dev_port) {
        return false;
    }
    match dev_ip.parse::<IpAddr>() {
        Ok(ip) => my_ips.contains(&ip),
        Err(_) => (dev_ip, dev_port)
            .to_socket_addrs()
            .is_ok_and(|mut addrs| addrs.any(|addr| my_ips.contains(&addr.ip()))),
    }
}

/// `/proc/net/fib_trie` names an address on one line and on the next, for an own one, `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    let mut last = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<IpAddr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(ip) = last.filter(|ip| !ips.contains(ip))
        {
            ips.push(ip);
        }
    }
    ips
}

/// `/proc/net/if_inet6` starts each line with 32 hex digits.
fn local_v6(if_inet6: &str) -> Vec<IpAddr> {
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    if_inet6.lines().filter_map(address).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
        +-- 10.0.0.0/24 2 0 2\n        |-- 10.0.0.0\n           /24 link UNICAST\n        |-- 10.0.0.7\n           \
        /32 host LOCAL\n        |-- 10.0.0.255\n           /32 link BROADCAST\n  +-- 127.0.0.0/8 2 0 2\n        \
        |-- 127.0.0.0\n           /8 host LOCAL\n        |-- 127.0.0.1\n           /32 host LOCAL\n";

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_read_from_proc() {
        assert_eq!(local_v4(&FIB_TRIE.repeat(2)), ips(&["10.0.0.7", "127.0.0.1"]));
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000a01 02 40 20 80 eth0\n";
        assert_eq!(local_v6(inet6), ips(&["::1", "fe80::a01"]));
        assert_eq!(whataremyips("10.1.2.3"), ips(&["10.1.2.3"]));
        assert!(whataremyips("0.0.0.0").contains(&ips(&["127.0.0.1"])[0]));
    }

    #[test]
    fn a_device_is_local_by_address_and_port() {
        let mine = ips(&["10.0.0.7", "fe80::a01"]);
        assert!(is_local_device(&mine, Some(6200), "10.0.0.7", 6200));
        assert!(!is_local_device(&mine, Some(6200), "10.0.0.7", 6201));
        assert!(is_local_device(&mine, None, "10.0.0.7", 6201));
        assert!(!is_local_device(&mine, None, "10.0.0.8", 6200));
        assert!(is_local_device(&mine, None, "fe80:0::0a01", 6200));
        assert!(is_local_device(&ips(&["127.0.0.1", "::1"]), None, "localhost", 6200));
        assert!(!is_local_device(&mine, None, "no such host", 6200));
    }
}
