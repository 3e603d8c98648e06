// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The part of the kernel's BTF that one object can ask for.
//!
//! For each kernel type that an object names, libbpf searches all 150,000 types of the kernel, and
//! that search is most of what a tool's start costs. So libbpf is given a small BTF to search: the
//! types of the names that occur in the object, with everything that they contain. Where they only
//! point to a struct, the struct is there without its members, because libbpf compares no more
//! than its kind.

use std::collections::HashMap;
use std::collections::HashSet;

use crate::btf::KernelBtf;
use crate::btf::kind;

/// How much of a type is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// Something points to it: members may be left out.
    PointedTo,
    Whole,
}

/// A type's name without the suffix that tells local versions of it apart (`x___old` is `x`).
fn essential(name: &[u8]) -> &[u8] {
    let suffix = name.windows(3).rposition(|window| window == b"___").filter(|at| *at > 0);
    suffix.map_or(name, |at| &name[..at])
}

/// Names of types that CO-RE relocations of an object with this BTF can ask for.
pub fn names(object: &KernelBtf) -> HashSet<Vec<u8>> {
    object
        .types()
        .filter(|entry| is_named_by_objects(entry.kind))
        .map(|entry| essential(object.string(entry.name)).to_vec())
        .filter(|name| !name.is_empty())
        .collect()
}

/// A quick look at a name before it is searched for: most of the kernel's names differ from all
/// wanted ones in their first letters already.
struct Sieve {
    wanted: Vec<bool>,
}

impl Sieve {
    fn new(names: &HashSet<Vec<u8>>) -> Self {
        let mut wanted = vec![false; 1 << 16];
        for name in names {
            let byte = |i: usize| name.get(i).copied().unwrap_or(0);
            wanted[Self::place([byte(0), byte(1), byte(2)])] = true;
        }
        Self { wanted }
    }

    fn place(first: [u8; 3]) -> usize {
        // Letters have little in their upper bits that tells them apart.
        usize::from(first[0] & 0x3f) << 10
            | usize::from(first[1] & 0x1f) << 5
            | usize::from(first[2] & 0x1f)
    }

    fn may_hold(&self, first: [u8; 3]) -> bool {
        self.wanted[Self::place(first)]
    }
}

fn is_named_by_objects(kind: u32) -> bool {
    matches!(kind, kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::TYPEDEF)
}

/// Raw BTF of the types of these names.
pub fn subset(kernel: &KernelBtf, names: &HashSet<Vec<u8>>) -> Vec<u8> {
    let sieve = Sieve::new(names);
    let mut wanted: Vec<(u32, Need)> = Vec::new();
    let mut last = 0;
    for (id, kind, name) in kernel.outlines() {
        last = id;
        if is_named_by_objects(kind)
            && sieve.may_hold(kernel.first_bytes(name))
            && names.contains(kernel.string(name))
        {
            wanted.push((id, Need::Whole));
        }
    }
    // Type ids count from 1; 0 is void.
    let mut needs = vec![Need::Nothing; last as usize + 1];

    while let Some((id, need)) = wanted.pop() {
        let Some(known) = needs.get_mut(id as usize) else { continue };
        if id == 0 || *known >= need {
            continue;
        }
        *known = need;
        let Some(entry) = kernel.by_id(id) else { continue };
        match entry.kind {
            kind::STRUCT | kind::UNION if need == Need::Whole => {
                wanted.extend(entry.words(12, 1).map(|member| (member, Need::Whole)));
            }
            kind::PTR => wanted.push((entry.size_or_type, Need::PointedTo)),
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                wanted.push((entry.size_or_type, need));
            }
            kind::ARRAY => {
                wanted.extend(entry.words(12, 0).chain(entry.words(12, 1)).map(|t| (t, need)));
            }
            kind::FUNC_PROTO => {
                wanted.push((entry.size_or_type, need));
                wanted.extend(entry.words(8, 1).map(|parameter| (parameter, need)));
            }
            _ => {}
        }
    }

    let mut ids: HashMap<u32, u32> = HashMap::from([(0, 0)]);
    let kept = (0u32..).zip(&needs).filter(|(_, need)| **need > Need::Nothing).map(|(id, _)| id);
    let kept: Vec<u32> = kept.collect();
    for (new, old) in (1u32..).zip(&kept) {
        ids.insert(*old, new);
    }
    let mut writer =
        Writer { kernel, ids, strings: vec![0], known: HashMap::new(), out: Vec::new() };
    for id in kept {
        writer.add(id, needs[id as usize]);
    }
    writer.finish()
}

struct Writer<'a> {
    kernel: &'a KernelBtf,
    /// From the kernel's type ids to ours.
    ids: HashMap<u32, u32>,
    strings: Vec<u8>,
    known: HashMap<u32, u32>,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn word(&mut self, word: u32) {
        self.out.extend_from_slice(&word.to_ne_bytes());
    }

    fn name(&mut self, offset: u32) {
        let new = if offset == 0 {
            0
        } else {
            *self.known.entry(offset).or_insert_with(|| {
                let at = u32::try_from(self.strings.len()).unwrap_or(0);
                self.strings.extend_from_slice(self.kernel.string(offset));
                self.strings.push(0);
                at
            })
        };
        self.word(new);
    }

    fn id(&mut self, old: u32) {
        let new = self.ids.get(&old).copied().unwrap_or(0);
        self.word(new);
    }

    fn add(&mut self, id: u32, need: Need) {
        let Some(entry) = self.kernel.by_id(id) else { return };
        let hollow = matches!(entry.kind, kind::STRUCT | kind::UNION) && need != Need::Whole;
        self.name(entry.name);
        // The low half of the word is the number of members.
        self.word(if hollow { entry.info & 0xffff_0000 } else { entry.info });
        match entry.kind {
            kind::PTR
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::TYPE_TAG
            | kind::FUNC_PROTO => self.id(entry.size_or_type),
            _ => self.word(entry.size_or_type),
        }
        if hollow {
            return;
        }
        // What each word behind the type is: a name, a type, or a number that stays.
        let pattern: &[u8] = match entry.kind {
            kind::STRUCT | kind::UNION => b"nt.",
            kind::ENUM => b"n.",
            kind::ENUM64 => b"n..",
            kind::FUNC_PROTO => b"nt",
            kind::ARRAY => b"tt.",
            _ => b".",
        };
        for (i, word) in entry.words(4, 0).enumerate() {
            match pattern[i % pattern.len()] {
                b'n' => self.name(word),
                b't' => self.id(word),
                _ => self.word(word),
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
        let (types, strings) = (length(&self.out), length(&self.strings));
        let mut out = 0xeb9fu16.to_ne_bytes().to_vec();
        out.extend_from_slice(&[1, 0]);
        // Header length; offset and length of the types, then of the strings.
        for word in [24, 0, types, types, strings] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.extend_from_slice(&self.out);
        out.extend_from_slice(&self.strings);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_versions_share_a_name() {
        assert_eq!(essential(b"io_kiocb___before_cmd"), b"io_kiocb");
        assert_eq!(essential(b"task_struct"), b"task_struct");
        assert_eq!(essential(b"___x"), b"___x");
    }

    /// struct a { int x; struct b *p; struct c inner; }; struct b { int x; }; struct c { int x; }
    fn kernel() -> KernelBtf {
        let strings = b"\0int\0a\0b\0c\0x\0p\0inner\0";
        let st = |members: u32| 4 << 24 | members;
        let words: Vec<u32> = vec![
            1,
            1 << 24,
            4,
            32, // 1: int
            7,
            st(1),
            4,
            11,
            1,
            0, // 2: struct b { int x; }
            0,
            2 << 24,
            2, // 3: struct b *
            9,
            st(1),
            4,
            11,
            1,
            0, // 4: struct c { int x; }
            5,
            st(3),
            24,
            11,
            1,
            0,
            13,
            3,
            64,
            15,
            4,
            128, // 5: struct a
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |n: usize| u32::try_from(n).expect("small");
        let mut out = 0xeb9fu16.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for word in [24, 0, length(types.len()), length(types.len()), length(strings.len())] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(types);
        out.extend(strings);
        KernelBtf::parse(out).expect("BTF")
    }

    #[test]
    fn what_is_contained_stays_and_what_is_pointed_to_is_hollow() {
        let names = HashSet::from([b"a".to_vec()]);
        let small = KernelBtf::parse(subset(&kernel(), &names)).expect("BTF");
        assert_eq!(small.struct_has("a", "p"), Some(true));
        assert_eq!(small.struct_has("c", "x"), Some(true));
        assert_eq!(small.struct_has("b", "x"), Some(false));
        // References lead to the same types as before.
        let types: Vec<_> = small.types().collect();
        let a = types.iter().find(|t| small.string(t.name) == b"a").expect("a");
        let members: Vec<u32> = a.words(12, 1).collect();
        assert_eq!(small.string(types[members[0] as usize - 1].name), b"int");
        let pointer = &types[members[1] as usize - 1];
        assert_eq!(pointer.kind, kind::PTR);
        assert_eq!(small.string(types[pointer.size_or_type as usize - 1].name), b"b");
        assert_eq!(small.string(types[members[2] as usize - 1].name), b"c");
    }

    #[test]
    fn names_that_the_kernel_does_not_have_add_nothing() {
        let names = HashSet::from([b"z".to_vec()]);
        let small = KernelBtf::parse(subset(&kernel(), &names)).expect("BTF");
        assert_eq!(small.types().count(), 0);
    }
}
