// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! One measured value on its way to a text column, a JSON field or a CSV cell.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::escape;
use crate::names;

/// A name in a set of flags; see [`Value::Flags`].
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The bits that are looked at.
    pub mask: u64,
    /// What they have to be.
    pub value: u64,
    /// Its name.
    pub name: &'static str,
}

impl Flag {
    /// A flag that is set when all bits of `mask` are.
    pub const fn bit(mask: u64, name: &'static str) -> Self {
        Self { mask, value: mask, name }
    }

    /// One of several names for what the bits of `mask` hold together.
    pub const fn field(mask: u64, value: u64, name: &'static str) -> Self {
        Self { mask, value, name }
    }
}

/// One frame of a stack, leaf first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The return address.
    pub addr: u64,
    /// The function, demangled; `None` when it cannot be named.
    pub sym: Option<String>,
    /// Bytes from the function's start, or from the module's where there is no name.
    pub off: u64,
    /// The file or kernel module that the address lies in.
    pub module: Option<String>,
    /// Bytes from the beginning of that file, where it is known.
    pub module_off: Option<u64>,
}

/// What a field may hold. Each [`Type`] takes only the variants that its documentation names, and
/// any field may be [`Value::Null`]: it could not be read.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Not known. `?` in text, `null` in JSON.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number that may be negative.
    Int(i64),
    /// A number that may not.
    Uint(u64),
    /// An address, a cookie, an inode: 64 bits that are not for arithmetic, a string in JSON.
    Id(u64),
    /// Text of our own.
    Str(&'a str),
    /// Text from outside: any bytes.
    Bytes(&'a [u8]),
    /// The same, of which the end is missing.
    Cut(&'a [u8]),
    /// Strings from outside, each ended by a NUL, and whether some are missing at the end.
    List(&'a [u8], bool),
    /// An errno, 0 = no error; negative values are taken as their opposite.
    Errno(i32),
    /// One of an enumeration: its name if it is known, and its number.
    Name(Option<&'a str>, i64),
    /// A set of bits with the table of their names.
    Flags(&'static [Flag], u64),
    /// The same of a saved record: the names are already put together.
    FlagNames(&'a str, u64),
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A call stack.
    Stack(&'a [Frame]),
}

/// The type of a field: what its JSON holds, in every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// [`Value::Bool`]; JSON true or false.
    Bool,
    /// [`Value::Int`]; a JSON number.
    Int,
    /// [`Value::Uint`]; a JSON number.
    Uint,
    /// [`Value::Id`]; a JSON string of decimal digits.
    Id,
    /// [`Value::Str`], [`Value::Bytes`], [`Value::Cut`]; a JSON string. Beside it `FIELD_cut`:
    /// true where the end is missing, and `FIELD_b64` where the bytes are not UTF-8.
    String,
    /// [`Value::List`]; an array of strings, with `FIELD_cut` and `FIELD_b64` (an array) alike.
    List,
    /// [`Value::Errno`]; the name or null, and `FIELD_raw`, the number.
    Errno,
    /// [`Value::Name`]; the name or null, and `FIELD_raw`, the number.
    Name,
    /// [`Value::Flags`], [`Value::FlagNames`]; the names joined by `|`, and `FIELD_raw`, the number.
    Flags,
    /// [`Value::Ip`]; a JSON string.
    Ip,
    /// [`Value::Stack`]; an array of `{addr, sym, off, module}`, leaf first.
    Stack,
}

impl Type {
    /// Whether a field of this type may hold `value`.
    pub fn holds(self, value: &Value<'_>) -> bool {
        matches!(
            (self, value),
            (_, Value::Null)
                | (Self::Bool, Value::Bool(_))
                | (Self::Int, Value::Int(_))
                | (Self::Uint, Value::Uint(_))
                | (Self::Id, Value::Id(_))
                | (Self::String, Value::Str(_) | Value::Bytes(_) | Value::Cut(_))
                | (Self::List, Value::List(..))
                | (Self::Errno, Value::Errno(_))
                | (Self::Name, Value::Name(..))
                | (Self::Flags, Value::Flags(..) | Value::FlagNames(..))
                | (Self::Ip, Value::Ip(_))
                | (Self::Stack, Value::Stack(_))
        )
    }

    /// Whether the field has a `FIELD_raw` beside it.
    pub fn has_raw(self) -> bool {
        matches!(self, Self::Errno | Self::Name | Self::Flags)
    }

    /// The JSON type as docs/output.md names it.
    pub fn json_name(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int | Self::Uint => "number",
            Self::Id => "string (decimal)",
            Self::String | Self::Errno | Self::Name | Self::Flags | Self::Ip => "string",
            Self::List => "array of strings",
            Self::Stack => "array of frames",
        }
    }
}

/// How a text column shows its value, where there is a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Numbers in decimal, errno as a number, enumerations and flags by name.
    #[default]
    Plain,
    /// Octal, with leading zeros up to this width.
    Octal(usize),
    /// Hexadecimal, with 0x.
    Hex,
    /// Nanoseconds as seconds with this many decimals.
    Seconds(usize),
    /// Nanoseconds as milliseconds with this many decimals.
    Millis(usize),
    /// Nanoseconds as microseconds with this many decimals.
    Micros(usize),
    /// Bytes as whole units of 1,024.
    Kib,
    /// Bytes as units of 1,024, with this many decimals.
    KibWith(usize),
    /// Bytes as whole units of 1,048,576.
    Mib,
    /// Millionths as a percentage with this many decimals.
    Percent(usize),
    /// Each string of a list in double quotes.
    Quoted,
}

pub(crate) fn push_uint(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

pub(crate) fn push_int(out: &mut Vec<u8>, n: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// The strings of a [`Value::List`]: each ended by its NUL.
pub fn list_items(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ended = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    (!bytes.is_empty()).then(|| ended.split(|b| *b == 0)).into_iter().flatten()
}

fn push_flags(out: &mut Vec<u8>, table: &[Flag], bits: u64) {
    let mut rest = bits;
    let start = out.len();
    for flag in table.iter().filter(|flag| bits & flag.mask == flag.value) {
        // A flag that is part of one already shown (O_DSYNC of O_SYNC) says nothing more.
        if flag.value != 0 && rest & flag.value == 0 {
            continue;
        }
        rest &= !flag.mask;
        if out.len() > start {
            out.push(b'|');
        }
        out.extend_from_slice(flag.name.as_bytes());
    }
    if rest != 0 || out.len() == start {
        if out.len() > start {
            out.push(b'|');
        }
        push_hex(out, rest);
    }
}

/// Appends a number with 0x.
fn push_hex(out: &mut Vec<u8>, n: u64) {
    match n {
        // Nearly always, of flags.
        0 => out.extend_from_slice(b"0x0"),
        _ => out.extend_from_slice(format!("0x{n:x}").as_bytes()),
    }
}

/// Appends milliseconds with `decimals` from nanoseconds, rounded.
pub(crate) fn push_millis(out: &mut Vec<u8>, ns: u64, decimals: usize) {
    push_time(out, ns, 6, decimals);
}

/// 10 to the power of the index.
const POWERS_OF_TEN: [u64; 10] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// Appends units of `10^power` nanoseconds with `decimals`, at most that many, rounded.
fn push_time(out: &mut Vec<u8>, ns: u64, power: usize, decimals: usize) {
    let decimals = decimals.min(power);
    let (unit, whole) = (POWERS_OF_TEN[power - decimals], POWERS_OF_TEN[decimals]);
    let scaled = ns.saturating_add(unit / 2) / unit;
    push_uint(out, scaled / whole);
    push_fraction(out, scaled % whole, decimals);
}

/// Appends the decimals of a second of which so many nanoseconds have passed, cut off.
pub(crate) fn push_fraction_of_second(out: &mut Vec<u8>, ns: u64, decimals: usize) {
    let decimals = decimals.min(9);
    push_fraction(out, ns / POWERS_OF_TEN[9 - decimals], decimals);
}

/// Appends a point and so many decimals of a number that stands behind it; nothing for no decimals.
fn push_fraction(out: &mut Vec<u8>, mut fraction: u64, decimals: usize) {
    let mut text = *b".00000000000000000000";
    let Some(digits) = text.get_mut(1..=decimals).filter(|digits| !digits.is_empty()) else {
        return;
    };
    for digit in digits.iter_mut().rev() {
        // A digit.
        *digit += (fraction % 10) as u8;
        fraction /= 10;
    }
    out.extend_from_slice(&text[..=decimals]);
}

/// Appends KiB with `decimals` (at most 3) from bytes, rounded to the nearest, and of two to the even
/// one.
fn push_kib(out: &mut Vec<u8>, bytes: u64, decimals: usize) {
    let decimals = decimals.min(3);
    let per_kib = POWERS_OF_TEN[decimals];
    // Whole ones apart, so that nothing overflows.
    let (mut whole, scaled) = (bytes / 1024, bytes % 1024 * per_kib);
    let (mut part, rest) = (scaled / 1024, scaled % 1024);
    // Without decimals it is the last digit before the point that has to be even.
    let last = if decimals == 0 { whole } else { part };
    if rest > 512 || (rest == 512 && last % 2 == 1) {
        part += 1;
    }
    if part == per_kib {
        (whole, part) = (whole + 1, 0);
    }
    push_uint(out, whole);
    push_fraction(out, part, decimals);
}

/// Appends an address.
fn push_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            // The longest one with a point behind it; the points are there already.
            let mut text = [b'.'; 16];
            let mut len = 0;
            for octet in ip.octets() {
                if octet >= 100 {
                    text[len] = b'0' + octet / 100;
                    len += 1;
                }
                if octet >= 10 {
                    text[len] = b'0' + octet / 10 % 10;
                    len += 1;
                }
                text[len] = b'0' + octet % 10;
                len += 2;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        // What is left out of it is a science of its own.
        IpAddr::V6(ip) => out.extend_from_slice(ip.to_string().as_bytes()),
    }
}

impl Value<'_> {
    /// Appends an address with a port, an IPv6 address in brackets, as [`Value::text`] does.
    pub(crate) fn with_port(&self, out: &mut Vec<u8>, port: &Value<'_>, null: &str) -> usize {
        let start = out.len();
        let brackets = matches!(self, Value::Ip(IpAddr::V6(_)));
        if brackets {
            out.push(b'[');
        }
        self.text(out, Format::Plain, null);
        if brackets {
            out.push(b']');
        }
        out.push(b':');
        port.text(out, Format::Plain, null);
        out.len() - start
    }

    /// Appends the value as text and returns its width in characters. `null` stands for
    /// [`Value::Null`].
    pub fn text(&self, out: &mut Vec<u8>, format: Format, null: &str) -> usize {
        let start = out.len();
        match *self {
            Value::Null => out.extend_from_slice(null.as_bytes()),
            Value::Bool(yes) => out.push(if yes { b'Y' } else { b'N' }),
            Value::Int(n) => match format {
                Format::Octal(width) => out.extend_from_slice(format!("{n:0width$o}").as_bytes()),
                Format::Millis(decimals) => {
                    if n < 0 {
                        out.push(b'-');
                    }
                    push_millis(out, n.unsigned_abs(), decimals);
                }
                _ => push_int(out, n),
            },
            Value::Uint(n) | Value::Id(n) => match format {
                Format::Octal(width) => out.extend_from_slice(format!("{n:0width$o}").as_bytes()),
                Format::Hex => push_hex(out, n),
                Format::Seconds(decimals) => push_time(out, n, 9, decimals),
                Format::Millis(decimals) => push_millis(out, n, decimals),
                Format::Micros(decimals) => push_time(out, n, 3, decimals),
                Format::Kib => push_uint(out, n / 1024),
                Format::Mib => push_uint(out, n / (1024 * 1024)),
                Format::Percent(decimals) => {
                    push_time(out, n, 4, decimals);
                    out.push(b'%');
                }
                Format::KibWith(decimals) => push_kib(out, n, decimals),
                _ => push_uint(out, n),
            },
            Value::Str(text) => {
                out.extend_from_slice(text.as_bytes());
                return if text.is_ascii() { text.len() } else { text.chars().count() };
            }
            Value::Bytes(bytes) => return escape::text(out, bytes),
            Value::Cut(bytes) => {
                let width = escape::text(out, bytes);
                out.extend_from_slice(b"...");
                return width + 3;
            }
            Value::List(bytes, cut) => return list_text(out, bytes, cut, format),
            Value::Errno(errno) => push_int(out, i64::from(errno).abs()),
            Value::Name(Some(name), _) => return escape::text(out, name.as_bytes()),
            Value::Name(None, raw) => push_int(out, raw),
            Value::Flags(table, bits) => match format {
                Format::Octal(width) => {
                    out.extend_from_slice(format!("{bits:0width$o}").as_bytes());
                }
                _ => push_flags(out, table, bits),
            },
            Value::FlagNames(names, bits) => match format {
                Format::Octal(width) => {
                    out.extend_from_slice(format!("{bits:0width$o}").as_bytes());
                }
                _ => return escape::text(out, names.as_bytes()),
            },
            Value::Ip(ip) => push_ip(out, ip),
            Value::Stack(frames) => {
                for (i, frame) in frames.iter().enumerate() {
                    if i > 0 {
                        out.push(b';');
                    }
                    frame_text(out, frame);
                }
            }
        }
        out.len() - start
    }

    /// Appends `,"name":value` and what stands beside it (`name_raw`, `name_cut`, `name_b64`).
    pub fn json(&self, out: &mut Vec<u8>, name: &str, ty: Type) {
        key(out, name, "");
        self.json_after_key(out, name, ty);
    }

    /// The same where `,"name":` is there already.
    pub(crate) fn json_after_key(&self, out: &mut Vec<u8>, name: &str, ty: Type) {
        match *self {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Bool(yes) => out.extend_from_slice(if yes { b"true" } else { b"false" }),
            Value::Int(n) => push_int(out, n),
            Value::Uint(n) => push_uint(out, n),
            Value::Id(n) => {
                out.push(b'"');
                push_uint(out, n);
                out.push(b'"');
            }
            Value::Str(text) => string(out, name, text.as_bytes()),
            Value::Bytes(bytes) => string(out, name, bytes),
            Value::Cut(bytes) => {
                string(out, name, bytes);
                key(out, name, "_cut");
                out.extend_from_slice(b"true");
            }
            Value::List(bytes, cut) => list_json(out, name, bytes, cut),
            Value::Errno(errno) => {
                let errno = i64::from(errno).abs();
                named(out, name, names::errno(errno), errno);
            }
            Value::Name(text, raw) => named(out, name, text, raw),
            Value::Flags(table, bits) => {
                out.push(b'"');
                push_flags(out, table, bits);
                out.push(b'"');
                key(out, name, "_raw");
                push_uint(out, bits);
            }
            Value::FlagNames(names, bits) => {
                out.push(b'"');
                escape::json(out, names.as_bytes());
                out.push(b'"');
                key(out, name, "_raw");
                push_uint(out, bits);
            }
            Value::Ip(ip) => {
                out.push(b'"');
                push_ip(out, ip);
                out.push(b'"');
            }
            Value::Stack(frames) => stack_json(out, frames),
        }
        // A field's company must not depend on whether it could be read.
        if matches!(self, Value::Null) && ty.has_raw() {
            key(out, name, "_raw");
            out.extend_from_slice(b"null");
        }
    }

    /// Appends the value as one CSV cell, or two where the field has a `FIELD_raw`.
    pub fn csv(&self, out: &mut Vec<u8>, ty: Type) {
        let mut cell = Vec::new();
        match *self {
            Value::Errno(errno) => {
                let errno = i64::from(errno).abs();
                cell.extend_from_slice(names::errno(errno).unwrap_or("").as_bytes());
                cell.push(b',');
                push_int(&mut cell, errno);
                out.extend_from_slice(&cell);
            }
            Value::Name(text, raw) => {
                escape::csv(out, text.unwrap_or("").as_bytes());
                out.push(b',');
                push_int(out, raw);
            }
            Value::Flags(table, bits) => {
                push_flags(out, table, bits);
                out.push(b',');
                push_uint(out, bits);
            }
            Value::FlagNames(names, bits) => {
                escape::csv(out, names.as_bytes());
                out.push(b',');
                push_uint(out, bits);
            }
            Value::Null => {
                if ty.has_raw() {
                    out.push(b',');
                }
            }
            Value::Bytes(bytes) => escape::csv(out, bytes),
            _ => {
                self.text(&mut cell, Format::Plain, "");
                // Already escaped as text: only quoting is left to do.
                if cell.iter().any(|b| matches!(b, b',' | b'"')) {
                    let text = String::from_utf8_lossy(&cell).replace('"', "\"\"");
                    out.push(b'"');
                    out.extend_from_slice(text.as_bytes());
                    out.push(b'"');
                } else {
                    out.extend_from_slice(&cell);
                }
            }
        }
    }
}

/// One frame as `sym+0xoff (module)`, as much of it as is known.
pub(crate) fn frame_text(out: &mut Vec<u8>, frame: &Frame) {
    match (&frame.sym, &frame.module) {
        (Some(sym), _) => {
            escape::text(out, sym.as_bytes());
        }
        (None, Some(module)) => {
            escape::text(out, module.as_bytes());
            out.extend_from_slice(format!("+0x{:x}", frame.off).as_bytes());
        }
        (None, None) => out.extend_from_slice(format!("0x{:x}", frame.addr).as_bytes()),
    }
}

fn list_text(out: &mut Vec<u8>, bytes: &[u8], cut: bool, format: Format) -> usize {
    let mut width = 0;
    for (i, item) in list_items(bytes).enumerate() {
        if i > 0 {
            out.push(b' ');
            width += 1;
        }
        if format == Format::Quoted {
            let start = out.len();
            let shown = escape::text(out, item);
            let quotes = out[start..].iter().filter(|b| **b == b'"').count();
            let text = String::from_utf8_lossy(&out.split_off(start)).replace('"', "\\\"");
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
            width += shown + quotes + 2;
        } else {
            width += escape::text(out, item);
        }
    }
    if cut {
        out.extend_from_slice(b" ...");
        width += 4;
    }
    width
}

fn list_json(out: &mut Vec<u8>, name: &str, bytes: &[u8], cut: bool) {
    let mut valid = true;
    out.push(b'[');
    for (i, item) in list_items(bytes).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'"');
        valid &= escape::json(out, item);
        out.push(b'"');
    }
    out.push(b']');
    if !valid {
        key(out, name, "_b64");
        out.push(b'[');
        for (i, item) in list_items(bytes).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(format!("\"{}\"", BASE64.encode(item)).as_bytes());
        }
        out.push(b']');
    }
    if cut {
        key(out, name, "_cut");
        out.extend_from_slice(b"true");
    }
}

fn stack_json(out: &mut Vec<u8>, frames: &[Frame]) {
    let text = |out: &mut Vec<u8>, text: &Option<String>| match text {
        Some(text) => {
            out.push(b'"');
            escape::json(out, text.as_bytes());
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    };
    out.push(b'[');
    for (i, frame) in frames.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"addr\":\"");
        push_uint(out, frame.addr);
        out.extend_from_slice(b"\",\"sym\":");
        text(out, &frame.sym);
        out.extend_from_slice(b",\"off\":");
        push_uint(out, frame.off);
        out.extend_from_slice(b",\"module\":");
        text(out, &frame.module);
        out.push(b'}');
    }
    out.push(b']');
}

fn key(out: &mut Vec<u8>, name: &str, suffix: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(suffix.as_bytes());
    out.extend_from_slice(b"\":");
}

fn string(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    let valid = escape::json(out, bytes);
    out.push(b'"');
    if !valid {
        key(out, name, "_b64");
        out.extend_from_slice(format!("\"{}\"", BASE64.encode(bytes)).as_bytes());
    }
}

fn named(out: &mut Vec<u8>, name: &str, text: Option<&str>, raw: i64) {
    match text {
        Some(text) => {
            out.push(b'"');
            escape::json(out, text.as_bytes());
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
    key(out, name, "_raw");
    push_int(out, raw);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Value<'_>, format: Format) -> String {
        let mut out = Vec::new();
        let width = value.text(&mut out, format, "?");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(width, text.chars().count(), "{text}");
        text
    }

    fn json(value: Value<'_>, ty: Type) -> serde_json::Value {
        let mut out = b"{\"first\":0".to_vec();
        value.json(&mut out, "x", ty);
        out.push(b'}');
        serde_json::from_slice(&out).expect("valid JSON")
    }

    #[test]
    fn numbers() {
        assert_eq!(text(Value::Uint(0o644), Format::Octal(4)), "0644");
        assert_eq!(text(Value::Uint(1_234_567), Format::Millis(3)), "1.235");
        assert_eq!(text(Value::Uint(999_999_999), Format::Millis(0)), "1000");
        assert_eq!(text(Value::Uint(3 * 1024 + 1023), Format::Kib), "3");
        assert_eq!(text(Value::Uint((5 << 20) - 1), Format::Mib), "4");
        assert_eq!(text(Value::Uint(989_999), Format::Percent(2)), "99.00%");
        assert_eq!(text(Value::Uint(1_000_000), Format::Percent(0)), "100%");
        assert_eq!(text(Value::Uint(1536), Format::KibWith(2)), "1.50");
        for bytes in (0..5000).chain([1 << 40, (1 << 40) + 5]) {
            let kib = bytes as f64 / 1024.0;
            for (decimals, exact) in
                [(0, format!("{kib:.0}")), (2, format!("{kib:.2}")), (3, format!("{kib:.3}"))]
            {
                assert_eq!(text(Value::Uint(bytes), Format::KibWith(decimals)), exact, "{bytes}");
            }
        }
        assert_eq!(text(Value::Uint(u64::MAX), Format::KibWith(2)), "18014398509481984.00");
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "255.25.2.0",
            "255.255.255.255",
            "10.99.100.9",
            "::1",
            "2001:db8::1",
        ] {
            let ip = address.parse().expect("an address");
            assert_eq!(text(Value::Ip(ip), Format::Plain), address);
        }
        assert_eq!(text(Value::Int(-5), Format::Plain), "-5");
        assert_eq!(json(Value::Id(u64::MAX), Type::Id)["x"], "18446744073709551615");
    }

    #[test]
    fn whole_numbers_have_all_their_digits() {
        let powers = POWERS_OF_TEN.into_iter().flat_map(|n| [n - 1, n, n + 1]);
        let others = [0, 65_535, 1_234_567, 12_345_678, 123_456_789, 1 << 32, u64::MAX];
        for n in powers.chain(others) {
            assert_eq!(text(Value::Uint(n), Format::Plain), n.to_string());
        }
        assert_eq!(text(Value::Uint(1_000_500_000), Format::Seconds(9)), "1.000500000");
    }

    #[test]
    fn names_and_raw_numbers_stand_together() {
        let parsed = json(Value::Errno(-2), Type::Errno);
        assert_eq!((parsed["x"].as_str(), parsed["x_raw"].as_i64()), (Some("ENOENT"), Some(2)));
        assert_eq!(json(Value::Errno(0), Type::Errno)["x"], serde_json::Value::Null);
        let null = json(Value::Null, Type::Errno);
        assert!(null["x_raw"].is_null() && null.get("x_raw").is_some());
        static FLAGS: [Flag; 5] = [
            Flag::field(3, 0, "READ"),
            Flag::field(3, 1, "WRITE"),
            Flag::bit(12, "SYNC"),
            Flag::bit(4, "DSYNC"),
            Flag::bit(16, "B"),
        ];
        let shown = |bits| json(Value::Flags(&FLAGS, bits), Type::Flags)["x"].clone();
        assert_eq!((shown(0), shown(17)), ("READ".into(), "WRITE|B".into()));
        assert_eq!((shown(12), shown(4)), ("READ|SYNC".into(), "READ|DSYNC".into()));
        assert_eq!(shown(64 + 1), "WRITE|0x40");
    }

    #[test]
    fn lists_and_cuts_are_marked() {
        let list = Value::List(b"ls\0-l\0a b\0", true);
        assert_eq!(text(list, Format::Plain), "ls -l a b ...");
        assert_eq!(text(list, Format::Quoted), "\"ls\" \"-l\" \"a b\" ...");
        let parsed = json(list, Type::List);
        assert_eq!(parsed["x"], serde_json::json!(["ls", "-l", "a b"]));
        assert_eq!(parsed["x_cut"], true);
        assert_eq!(json(Value::List(b"", false), Type::List)["x"], serde_json::json!([]));
        assert_eq!(json(Value::List(b"\0", false), Type::List)["x"], serde_json::json!([""]));
        let parsed = json(Value::List(b"\xff\0ok\0", false), Type::List);
        assert_eq!(parsed["x_b64"], serde_json::json!(["/w==", "b2s="]));
        let parsed = json(Value::Cut(b"\xff"), Type::String);
        assert_eq!(
            (parsed["x_b64"].as_str(), parsed["x_cut"].as_bool()),
            (Some("/w=="), Some(true))
        );
    }
}
