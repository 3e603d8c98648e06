// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Paths as `bpf/path.h` gives them: names, leaf first, each with its NUL.

/// These names as a path from the root, without a slash at its end: empty for the root itself.
/// `cut` says that names are missing at the beginning.
pub fn of_names(names: &[u8], cut: bool) -> Vec<u8> {
    let mut path = if cut { b"/...".to_vec() } else { Vec::new() };
    let names: Vec<&[u8]> = names.split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
    for name in names.into_iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(of_names(b"leaf\0dir\0", false), b"/dir/leaf");
        assert_eq!(of_names(b"leaf\0", true), b"/.../leaf");
        assert_eq!(of_names(b"", false), b"");
    }
}
