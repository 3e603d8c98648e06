// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Addresses as the kernel side gives them, `bpf/sock.h`, and the ways to follow connections with
//! `bpf/tcp_lives.h`.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::tool::Way;
use crate::value::Value;

/// The address in four words in network order, of which an IPv4 address is the first; `None` when
/// the version is neither 4 nor 6.
pub fn address(version: u8, words: [u32; 4]) -> Option<IpAddr> {
    let host = words.map(u32::from_be);
    match version {
        4 => Some(Ipv4Addr::from(host[0]).into()),
        6 => {
            let number = host.iter().fold(0, |all, word| all << 32 | u128::from(*word));
            Some(Ipv6Addr::from(number).into())
        }
        _ => None,
    }
}

/// The same as a value.
pub fn ip(version: u8, words: [u32; 4]) -> Value<'static> {
    address(version, words).map_or(Value::Null, Value::Ip)
}

/// A port as a value; 0 is none.
pub fn port(port: u16) -> Value<'static> {
    if port == 0 { Value::Null } else { Value::Uint(port.into()) }
}

/// Ways to follow TCP connections, best first. `more` are programs that each of them needs beside
/// those of `bpf/tcp_lives.h`.
pub fn connection_ways(more: &[&'static str]) -> Vec<Way> {
    let way = |name, state, state_twin, accept| {
        Way::new(name, more).with(true, &[state, accept]).twin(state, state_twin)
    };
    let raw = |name, accept| way(name, "state__rawtp", "state_twin__rawtp", accept);
    vec![
        way("fentry", "state__btf", "state_twin__btf", "accept__fentry")
            .twin("accept__fentry", "accept_twin__fentry"),
        raw("kprobe", "accept__kprobe"),
        raw("tp", "accept__tp"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let first = [0x7f00_0001u32.to_be(), 0, 0, 0];
        assert_eq!(address(4, first), Some(IpAddr::from([127, 0, 0, 1])));
        let last = [0x2001_0db8u32.to_be(), 0, 0, 1u32.to_be()];
        assert_eq!(address(6, last), "2001:db8::1".parse().ok());
        assert_eq!(address(0, last), None);
    }
}
