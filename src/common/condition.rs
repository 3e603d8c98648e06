// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! `--filter 'FIELD OP VALUE'`: conditions on the fields of a record, tested before it is shown.

use std::net::IpAddr;

use anyhow::Result;
use regex_lite::Regex;

use crate::error::usage;
use crate::names;
use crate::record::Kind;
use crate::record::Source;
use crate::value::Format;
use crate::value::Type;
use crate::value::Value;
use crate::value::list_items;

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
    Matches,
    MatchesNot,
}

/// The longer ones first: `<=` begins with `<`.
const OPS: [(&str, Op); 8] = [
    ("!=", Op::Unequal),
    ("!~", Op::MatchesNot),
    ("<=", Op::AtMost),
    (">=", Op::AtLeast),
    ("=", Op::Equal),
    ("~", Op::Matches),
    ("<", Op::Less),
    (">", Op::More),
];

impl Op {
    fn compares<T: Ord>(self, a: &T, b: &T) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Unequal => a != b,
            Self::Less => a < b,
            Self::AtMost => a <= b,
            Self::More => a > b,
            Self::AtLeast => a >= b,
            // Never asked: a pattern is no value.
            Self::Matches | Self::MatchesNot => false,
        }
    }

    fn is_pattern(self) -> bool {
        matches!(self, Self::Matches | Self::MatchesNot)
    }

    fn orders(self) -> bool {
        matches!(self, Self::Less | Self::AtMost | Self::More | Self::AtLeast)
    }
}

/// One condition as the user gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    field: String,
    op: Op,
    value: String,
}

impl Condition {
    /// Parses `FIELD OP VALUE`; spaces around the operator do not matter.
    ///
    /// # Errors
    /// A sentence, for what has no such form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let (field, rest) = text.split_at(end);
        let rest = rest.trim_start();
        let op = OPS.iter().find(|(word, _)| rest.starts_with(word));
        match op {
            Some((word, op)) if !field.is_empty() => Ok(Self {
                field: field.to_string(),
                op: *op,
                value: rest[word.len()..].trim().to_string(),
            }),
            _ => Err("a condition is FIELD OP VALUE with one of = != < <= > >= ~ !~".into()),
        }
    }
}

/// What a field's value is compared with.
#[derive(Clone, Debug)]
enum Operand {
    Number(i128),
    Text(String),
    Ip(IpAddr),
    Pattern(Regex),
}

/// A condition on one kind of record.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    /// Where the value comes from.
    pub source: Source,
    op: Op,
    operand: Operand,
}

impl Test {
    fn new(condition: &Condition, source: Source, ty: Type, raw: bool) -> Result<Self> {
        let Condition { field, op, value } = condition;
        let refuse = |why: &str| usage(format!("--filter '{field}': {why}"));
        if op.is_pattern() {
            if raw || matches!(ty, Type::Bool | Type::Int | Type::Uint) {
                return Err(refuse("~ is for text, and this is a number"));
            }
            let pattern = Regex::new(value)
                .map_err(|error| refuse(&format!("'{value}' is no regular expression: {error}")))?;
            return Ok(Self { source, op: *op, operand: Operand::Pattern(pattern) });
        }
        let number = || parse_number(value).map(Operand::Number);
        let is_number = || refuse(&format!("'{value}' is not a number"));
        let operand = match ty {
            _ if raw => number().ok_or_else(is_number)?,
            Type::Bool => match value.as_str() {
                "true" | "yes" | "1" => Operand::Number(1),
                "false" | "no" | "0" => Operand::Number(0),
                _ => return Err(refuse(&format!("'{value}' is neither true nor false"))),
            },
            Type::Int | Type::Uint | Type::Id => number().ok_or_else(is_number)?,
            Type::Errno => match (number(), names::errno_value(value)) {
                (Some(number), _) => number,
                (None, Some(errno)) => Operand::Number(errno.into()),
                _ => return Err(refuse(&format!("'{value}' is neither an errno nor a number"))),
            },
            Type::Name | Type::Flags => number().unwrap_or_else(|| Operand::Text(value.clone())),
            Type::Ip => Operand::Ip(
                value.parse().map_err(|_| refuse(&format!("'{value}' is no IP address")))?,
            ),
            Type::String | Type::List | Type::Stack => Operand::Text(value.clone()),
        };
        if op.orders() && !(matches!(operand, Operand::Number(_)) && ty != Type::Bool) {
            return Err(refuse("< and > compare numbers"));
        }
        Ok(Self { source, op: *op, operand })
    }

    /// Whether the value meets the condition. One that is not there never does.
    pub fn holds(&self, value: &Value<'_>) -> bool {
        match &self.operand {
            Operand::Number(wanted) => {
                number_of(value).is_some_and(|number| self.op.compares(&number, wanted))
            }
            Operand::Ip(wanted) => match value {
                Value::Ip(ip) => self.op.compares(ip, wanted),
                _ => false,
            },
            Operand::Text(wanted) => {
                with_text(value, |text| (text == wanted.as_bytes()) == (self.op == Op::Equal))
                    .unwrap_or(false)
            }
            Operand::Pattern(pattern) => with_text(value, |text| {
                let found = pattern.is_match(&String::from_utf8_lossy(text));
                found == (self.op == Op::Matches)
            })
            .unwrap_or(false),
        }
    }
}

/// A decimal number, or one with 0x or 0o before it.
fn parse_number(text: &str) -> Option<i128> {
    let (digits, radix) = match text.get(..2) {
        Some("0x") => (&text[2..], 16),
        Some("0o") => (&text[2..], 8),
        _ => (text, 10),
    };
    i128::from_str_radix(digits, radix).ok()
}

/// The number that a value is or has beside it.
fn number_of(value: &Value<'_>) -> Option<i128> {
    match *value {
        Value::Bool(yes) => Some(yes.into()),
        Value::Int(n) | Value::Name(_, n) => Some(n.into()),
        Value::Uint(n) | Value::Id(n) | Value::Flags(_, n) | Value::FlagNames(_, n) => {
            Some(n.into())
        }
        Value::Errno(n) => Some(i128::from(n).abs()),
        _ => None,
    }
}

/// Calls `test` with the text of a value: the name of what has one, the items of a list with a
/// space between two, anything else as JSON has it.
fn with_text<R>(value: &Value<'_>, test: impl FnOnce(&[u8]) -> R) -> Option<R> {
    match *value {
        Value::Null | Value::Errno(0) | Value::Name(None, _) => None,
        Value::Str(text) | Value::Name(Some(text), _) | Value::FlagNames(text, _) => {
            Some(test(text.as_bytes()))
        }
        Value::Bytes(bytes) | Value::Cut(bytes) => Some(test(bytes)),
        Value::List(bytes, _) => Some(test(&list_items(bytes).collect::<Vec<_>>().join(&b" "[..]))),
        Value::Errno(errno) => names::errno(i64::from(errno).abs()).map(|n| test(n.as_bytes())),
        _ => {
            let mut text = Vec::new();
            value.text(&mut text, Format::Plain, "");
            Some(test(&text))
        }
    }
}

/// The tests of each kind, whose records may have fields of the host (`of_host`); `None` for a kind that has not all of the fields, which never passes.
///
/// # Errors
/// A usage error for a field that no record has, which of a histogram is its key, and for a value that is not of its type.
pub(crate) fn bind(
    conditions: &[Condition],
    kinds: &[Kind],
    of_host: bool,
) -> Result<Vec<Option<Vec<Test>>>> {
    for Condition { field, .. } in conditions {
        let mut names: Vec<&str> = Vec::new();
        let mut exists = false;
        for kind in kinds {
            for (_, known) in kind.all_fields(of_host) {
                exists |= known.name == field
                    || (known.ty.has_raw() && field.strip_suffix("_raw") == Some(known.name));
                if !names.contains(&known.name) {
                    names.push(known.name);
                }
            }
        }
        if !exists {
            let names = names.join(", ");
            return Err(usage(format!("--filter: there is no field '{field}'; there are {names}")));
        }
    }
    kinds
        .iter()
        .map(|kind| {
            let all = kind.all_fields(of_host);
            let mut tests = Vec::new();
            for condition in conditions {
                let by_name = |name: &str| all.iter().find(|(_, field)| field.name == name);
                let found = by_name(&condition.field).map(|found| (found, false)).or_else(|| {
                    let name = condition.field.strip_suffix("_raw")?;
                    by_name(name).filter(|(_, field)| field.ty.has_raw()).map(|found| (found, true))
                });
                match found {
                    Some(((source, field), raw)) => {
                        tests.push(Test::new(condition, *source, field.ty, raw)?);
                    }
                    None => return Ok(None),
                }
            }
            Ok(Some(tests))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Flag;

    fn holds(condition: &str, ty: Type, value: Value<'_>) -> bool {
        let condition = Condition::parse(condition).expect("a condition");
        let raw = condition.field.ends_with("_raw");
        Test::new(&condition, Source::Field(0), ty, raw).expect("of its type").holds(&value)
    }

    fn refused(condition: &str, ty: Type) -> String {
        let condition = Condition::parse(condition).expect("a condition");
        Test::new(&condition, Source::Field(0), ty, false).expect_err("refused").to_string()
    }

    #[test]
    fn conditions_are_parsed() {
        let parsed = |text| Condition::parse(text).expect("a condition");
        assert_eq!(parsed("a=b"), parsed(" a = b "));
        assert_eq!((parsed("a<=1").op, parsed("a < 1").op), (Op::AtMost, Op::Less));
        assert_eq!((parsed("a!~b").op, parsed("a != b").op), (Op::MatchesNot, Op::Unequal));
        assert_eq!(parsed("path ~ a = b").value, "a = b");
        assert_eq!(parsed("path =").value, "");
        for bad in ["", "a", "= 5", "a b", "a ! b", "a-b = 5"] {
            assert!(Condition::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers() {
        let value = Value::Uint(10);
        for (condition, expected) in [
            ("x = 10", true),
            ("x != 10", false),
            ("x < 11", true),
            ("x < 10", false),
            ("x <= 10", true),
            ("x > 10", false),
            ("x >= 0xa", true),
            ("x > -1", true),
        ] {
            assert_eq!(holds(condition, Type::Uint, value), expected, "{condition}");
            assert!(!holds(condition, Type::Uint, Value::Null), "{condition} of null");
        }
        assert!(holds("x = 18446744073709551615", Type::Id, Value::Id(u64::MAX)));
        assert!(holds("x = true", Type::Bool, Value::Bool(true)));
        assert!(!holds("x != yes", Type::Bool, Value::Bool(true)));
        assert!(refused("x = 5x", Type::Int).contains("'5x' is not a number"));
        assert!(refused("x ~ 5", Type::Int).contains("~ is for text"));
        assert!(refused("x = maybe", Type::Bool).contains("true"));
        assert!(refused("x > true", Type::Bool).contains("compare numbers"));
    }

    #[test]
    fn texts() {
        assert!(holds("x = /a b", Type::String, Value::Bytes(b"/a b")));
        assert!(!holds("x != /a b", Type::String, Value::Bytes(b"/a b")));
        assert!(holds("x ~ ^/etc/.*\\.conf$", Type::String, Value::Bytes(b"/etc/x.conf")));
        assert!(holds("x !~ ^/etc", Type::String, Value::Cut(b"/var")));
        assert!(holds("x =", Type::String, Value::Str("")));
        assert!(!holds("x !~ a", Type::String, Value::Null));
        assert!(!holds("x != a", Type::String, Value::Null));
        assert!(holds("x = ls -l", Type::List, Value::List(b"ls\0-l\0", false)));
        assert!(holds("x = 192.0.2.1", Type::Ip, Value::Ip([192, 0, 2, 1].into())));
        assert!(holds("x ~ ^192", Type::Ip, Value::Ip([192, 0, 2, 1].into())));
        assert!(refused("x = 192", Type::Ip).contains("no IP address"));
        assert!(refused("x > a", Type::String).contains("compare numbers"));
        assert!(refused("x ~ (", Type::String).contains("no regular expression"));
    }

    #[test]
    fn names_and_their_numbers() {
        static FLAGS: [Flag; 2] = [Flag::bit(1, "A"), Flag::bit(2, "B")];
        for condition in ["x = ENOENT", "x = 2", "x ~ ^ENO", "x_raw = 2", "x > 1", "x != EPERM"] {
            assert!(holds(condition, Type::Errno, Value::Errno(-2)), "{condition}");
        }
        assert!(!holds("x ~ .", Type::Errno, Value::Errno(0)));
        assert!(refused("x = ENOSUCH", Type::Errno).contains("'ENOSUCH'"));
        assert!(holds("x = READ", Type::Name, Value::Name(Some("READ"), 7)));
        assert!(holds("x = 7", Type::Name, Value::Name(Some("READ"), 7)));
        assert!(holds("x = 9", Type::Name, Value::Name(None, 9)));
        assert!(!holds("x != READ", Type::Name, Value::Name(None, 9)));
        assert!(holds("x = A|B", Type::Flags, Value::Flags(&FLAGS, 3)));
        assert!(holds("x ~ B", Type::Flags, Value::Flags(&FLAGS, 3)));
        assert!(holds("x_raw = 3", Type::Flags, Value::Flags(&FLAGS, 3)));
    }

    #[test]
    fn conditions_are_bound_to_kinds() {
        let kinds = [
            Kind::event("a").field("x", Type::Uint, "").field("e", Type::Errno, ""),
            Kind::row("b").field("y", Type::Uint, ""),
        ];
        let bound = |text| bind(&[Condition::parse(text).expect("a condition")], &kinds, false);
        let x = bound("x = 1").expect("valid");
        assert!(x[0].as_ref().is_some_and(|tests| tests.len() == 1) && x[1].is_none());
        assert!(bound("e_raw = 1").is_ok() && bound("pid = 1").is_ok());
        assert!(bound("x_raw = 1").is_err());
        let unknown = bound("z = 1").expect_err("refused").to_string();
        assert!(unknown.contains("'z'") && unknown.contains("x, e, y"), "{unknown}");
        let histogram = [Kind::histogram("h")];
        let refused = bind(&[Condition::parse("x = 1").expect("a condition")], &histogram, false);
        assert!(refused.expect_err("refused").to_string().contains("'x'"));
        let keyed = [Kind::histogram("h").field("x", Type::Uint, "")];
        let bound = bind(&[Condition::parse("x = 1").expect("a condition")], &keyed, false);
        assert!(bound.expect("a key is a field")[0].is_some());
    }
}
