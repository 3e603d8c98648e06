// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Text that came from outside (file names, arguments, command names, host names) cannot drive a
//! terminal, break a line, or break a JSON string.

/// Characters that are shown as an escape: controls, and what reorders or splits a line.
fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Bidirectional controls can make a line read as something else.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // Line and paragraph separators.
        | '\u{2028}' | '\u{2029}')
}

fn push_hex(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(&[
        b'\\',
        b'x',
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]);
}

/// A word with this byte everywhere.
const fn everywhere(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The highest bit of each byte that is zero; of bytes above such a one also of those that are 1.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(everywhere(1)) & !word & everywhere(0x80)
}

/// Whether all of eight bytes are ASCII that is shown as it is, and none is one of these.
fn is_plain_word<const N: usize>(bytes: [u8; 8], but: [u8; N]) -> bool {
    let word = u64::from_ne_bytes(bytes);
    let controls = word.wrapping_sub(everywhere(0x20)) | word;
    let delete = zero_bytes(word ^ everywhere(0x7f));
    let others = but.iter().fold(delete, |found, b| found | zero_bytes(word ^ everywhere(*b)));
    (controls & everywhere(0x80)) | others == 0
}

/// Whether all bytes are ASCII that is shown as it is, and none is one of these. Nearly all text is
/// of this kind, and there is much of it: so eight bytes at a time.
fn is_plain<const N: usize>(bytes: &[u8], but: [u8; N]) -> bool {
    match bytes.last_chunk::<8>() {
        // The last eight bytes may lie across the last two words.
        Some(last) => {
            let mut words = bytes.chunks_exact(8).filter_map(|chunk| chunk.first_chunk::<8>());
            words.all(|word| is_plain_word(*word, but)) && is_plain_word(*last, but)
        }
        None => bytes.iter().all(|b| (0x20..0x7f).contains(b) && !but.contains(b)),
    }
}

/// The bytes before the first NUL, or all of them.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    let mut at = 0;
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        // The lowest one that is found is right, whatever stands above it.
        let zeros = zero_bytes(u64::from_le_bytes(*word));
        if zeros != 0 {
            return &bytes[..at + zeros.trailing_zeros() as usize / 8];
        }
        at += 8;
    }
    let rest = bytes[at..].iter().position(|b| *b == 0);
    rest.map_or(bytes, |rest| &bytes[..at + rest])
}

/// Appends `bytes` as one piece of printable text and returns how many characters that took.
/// Control bytes, bidirectional controls and what is not UTF-8 become `\n`, `\t`, `\r` or `\xNN`;
/// a backslash is doubled so that nothing is ambiguous.
pub fn text(out: &mut Vec<u8>, bytes: &[u8]) -> usize {
    if is_plain(bytes, [b'\\']) {
        out.extend_from_slice(bytes);
        return bytes.len();
    }
    let start = out.len();
    let mut wide = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\r' => out.extend_from_slice(b"\\r"),
                c if is_unsafe(c) => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| push_hex(out, b));
                }
                c => {
                    let mut buffer = [0; 4];
                    let encoded = c.encode_utf8(&mut buffer);
                    wide += encoded.len() - 1;
                    out.extend_from_slice(encoded.as_bytes());
                }
            }
        }
        chunk.invalid().iter().for_each(|b| push_hex(out, *b));
    }
    out.len() - start - wide
}

/// The same as a string, for text that a tool puts together itself.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    text(&mut out, bytes);
    String::from_utf8_lossy(&out).into_owned()
}

/// Appends `bytes` as the inside of a JSON string; what is not UTF-8 becomes U+FFFD. Returns
/// whether `bytes` was UTF-8.
pub fn json(out: &mut Vec<u8>, bytes: &[u8]) -> bool {
    if is_plain(bytes, [b'\\', b'"']) {
        out.extend_from_slice(bytes);
        return true;
    }
    let mut valid = true;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\r' => out.extend_from_slice(b"\\r"),
                // JSON needs only C0 escaped; a terminal that shows JSON needs the rest as well.
                c if is_unsafe(c) => {
                    out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes());
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            valid = false;
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    valid
}

/// One line of JSON from outside, as it is but for what would drive a terminal.
pub fn relayed(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            // Only white space between values: strings have none of these.
            '\0'..='\u{1f}' => {}
            c if is_unsafe(c) => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// Appends `bytes` as one CSV cell, escaped as [`text`] and quoted where RFC 4180 wants it.
pub fn csv(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    text(out, bytes);
    if out[start..].iter().any(|b| matches!(b, b',' | b'"')) {
        let cell = out.split_off(start);
        out.push(b'"');
        for byte in cell {
            if byte == b'"' {
                out.push(b'"');
            }
            out.push(byte);
        }
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        let width = text(&mut out, bytes);
        let shown = String::from_utf8(out).expect("escaped text is UTF-8");
        assert_eq!(width, shown.chars().count(), "{shown}");
        shown
    }

    #[test]
    fn nothing_in_a_name_reaches_the_terminal() {
        assert_eq!(shown(b"plain name"), "plain name");
        assert_eq!(shown("näme".as_bytes()), "näme");
        assert_eq!(shown(b"a\x1b[2Jb\nc\td"), "a\\x1b[2Jb\\nc\\td");
        assert_eq!(shown(b"\xff\xfe"), "\\xff\\xfe");
        assert_eq!(shown("a\u{202e}b\u{9b}".as_bytes()), "a\\xe2\\x80\\xaeb\\xc2\\x9b");
        assert_eq!(shown(b"a\\x1b"), "a\\\\x1b");
    }

    #[test]
    fn every_name_is_a_json_string() {
        for bytes in [&b"a\"b\\c\n\x01\x7f"[..], b"\xff\xfeok", "\u{202e}\u{2028}".as_bytes()] {
            let mut out = vec![b'"'];
            let valid = json(&mut out, bytes);
            out.push(b'"');
            let parsed: String = serde_json::from_slice(&out).expect("valid JSON");
            assert_eq!(valid, std::str::from_utf8(bytes).is_ok());
            assert_eq!(parsed, String::from_utf8_lossy(bytes).into_owned());
            assert!(!out.iter().any(|b| *b < 0x20 || *b == 0x7f));
        }
    }

    #[test]
    fn relayed_json_means_the_same() {
        let line = "{\"a\":\t\"\u{9b}2J\u{202e}\u{7f}\\n\"}\r\n";
        let relayed = relayed(line);
        assert!(relayed.is_ascii() && !relayed.bytes().any(|b| b < 0x20 || b == 0x7f));
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parsed(&relayed), parsed(line));
    }

    #[test]
    fn csv_cells_are_quoted_only_where_needed() {
        let cell = |bytes: &[u8]| {
            let mut out = Vec::new();
            csv(&mut out, bytes);
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(cell(b"plain"), "plain");
        assert_eq!(cell(b"a,b"), "\"a,b\"");
        assert_eq!(cell(b"say \"x\"\n"), "\"say \"\"x\"\"\\n\"");
    }
}
