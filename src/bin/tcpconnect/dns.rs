// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Which name an address was looked up by: what DNS answers said, which anybody may have sent.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use simple_dns::Packet;
use simple_dns::PacketFlag;
use simple_dns::rdata::RData;

/// How many addresses are remembered, and for how long.
const CAPACITY: usize = 10_240;
const LIFETIME_NS: u64 = 24 * 3600 * 1_000_000_000;

struct Entry {
    name: String,
    /// When the answer came, in nanoseconds of `CLOCK_BOOTTIME`.
    at: u64,
}

/// The names of addresses, as the latest answer has it.
#[derive(Default)]
pub struct Names {
    entries: HashMap<IpAddr, Entry>,
    /// Every address once, with a time that is not later than its entry's; the oldest first.
    order: VecDeque<(u64, IpAddr)>,
}

impl Names {
    /// Takes what a message says, if it is an answer.
    pub fn learn(&mut self, message: &[u8], now: u64) {
        let Some((name, addresses)) = answer(message) else { return };
        for address in addresses {
            let entry = Entry { name: name.clone(), at: now };
            if self.entries.insert(address, entry).is_none() {
                self.order.push_back((now, address));
            }
            self.forget(now);
        }
    }

    /// Leaves out what is too old, and the oldest of what is too much.
    fn forget(&mut self, now: u64) {
        while let Some((noted, address)) = self.order.front().copied() {
            let expired = now.saturating_sub(noted) > LIFETIME_NS;
            if !expired && self.entries.len() <= CAPACITY {
                break;
            }
            self.order.pop_front();
            match self.entries.get(&address) {
                // Heard of again since.
                Some(entry) if entry.at > noted => self.order.push_back((entry.at, address)),
                _ => drop(self.entries.remove(&address)),
            }
        }
    }

    /// The name that led to an address, and how long before `now` the answer had come.
    pub fn find(&self, address: IpAddr, now: u64) -> Option<(&str, u64)> {
        let entry = self.entries.get(&address)?;
        let age = now.saturating_sub(entry.at);
        (age <= LIFETIME_NS).then_some((entry.name.as_str(), age))
    }
}

/// The question of an answer, and the addresses in it. Those of aliases belong to the name that
/// was asked for.
fn answer(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let packet = Packet::parse(message).ok()?;
    let [question] = packet.questions.as_slice() else { return None };
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(IpAddr::from(Ipv4Addr::from(a.address))),
        RData::AAAA(aaaa) => Some(IpAddr::from(Ipv6Addr::from(aaaa.address))),
        _ => None,
    });
    Some((question.qname.to_string(), addresses.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two labels, a question of this type, and these answers, each with a pointer to the name.
    fn message(flags: u16, answers: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = vec![0x12, 0x34];
        out.extend(flags.to_be_bytes());
        for count in [1, answers.len(), 0, 0] {
            out.extend(u16::try_from(count).expect("few").to_be_bytes());
        }
        out.extend(b"\x04www1\x07example\0\0\x01\0\x01");
        for (kind, data) in answers {
            out.extend([0xc0, 12]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 60]);
            out.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
            out.extend(*data);
        }
        out
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn answers_are_remembered_by_address() {
        let mut names = Names::default();
        let v6 = ip("2001:db8::7");
        let IpAddr::V6(bytes) = v6 else { panic!("v6") };
        let alias: &[u8] = b"\x01a\xc0\x0c";
        let answers = [(5, alias), (1, &[192, 0, 2, 1][..]), (28, &bytes.octets()[..])];
        names.learn(&message(0x8180, &answers), 1000);
        for address in [v6, ip("192.0.2.1")] {
            assert_eq!(names.find(address, 1500), Some(("www1.example", 500)));
        }
        assert_eq!(names.find(ip("192.0.2.2"), 1500), None);
        assert_eq!(names.find(v6, 1001 + LIFETIME_NS), None);
        // A question is not an answer, whatever it carries.
        names.learn(&message(0x0100, &[(1, &[192, 0, 2, 2])]), 1000);
        assert_eq!(names.find(ip("192.0.2.2"), 1500), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut names = Names::default();
        let address = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
        let count = 3 * u32::try_from(CAPACITY).expect("small");
        for n in 0..count {
            // The first one is heard of again and again, and so never the oldest.
            for n in [n, 0] {
                let bytes = (0x0a00_0000 + n).to_be_bytes();
                names.learn(&message(0x8180, &[(1, &bytes)]), u64::from(n) + u64::from(count));
            }
            assert!(names.entries.len() <= CAPACITY);
            assert_eq!(names.entries.len(), names.order.len());
        }
        assert!(names.find(address(count - 1), 0).is_some());
        assert!(names.find(address(1), 0).is_none());
        names.learn(&message(0x8180, &[(1, &[1, 1, 1, 1])]), 10 * LIFETIME_NS);
        assert_eq!(names.entries.len(), 1);
    }

    /// What is no answer is refused, and nothing that is sent stops the tool.
    #[test]
    fn hostile_messages_are_survived() {
        let good = message(0x8180, &[(1, &[192, 0, 2, 1]), (28, &[7; 16]), (5, b"\x01a\xc0\x0c")]);
        for cut in 0..good.len() {
            assert!(answer(&good[..cut]).is_none(), "{cut}");
        }
        // xorshift: the same messages in every run.
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).expect("31 bits")
        };
        for _ in 0..200_000 {
            let mut bad = good.clone();
            for _ in 0..1 + random() % 8 {
                let at = random() % bad.len();
                // Lengths, types and pointers more often than anything else.
                bad[at] = match random() % 4 {
                    0 => 0xc0,
                    1 => 0xff,
                    2 => u8::try_from(random() % 64).expect("small"),
                    _ => u8::try_from(random() % 256).expect("a byte"),
                };
            }
            bad.truncate(random() % (bad.len() + 1) + 1);
            let _ = answer(&bad);
        }
        // A name that points at itself, and one of many pointers.
        let mut endless = message(0x8180, &[]);
        endless[12..14].copy_from_slice(&[0xc0, 12]);
        assert!(answer(&endless).is_none());
    }
}
