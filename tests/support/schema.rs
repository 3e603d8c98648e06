// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Holds JSON against a JSON Schema, as far as `bpfscope schema` uses its keywords, and stricter:
//! what the schema does not name is refused.

use std::cell::RefCell;
use std::collections::HashMap;

use regex_lite::Regex;
use serde_json::Value;

/// Keywords that say nothing about what is valid.
const SILENT: [&str; 5] = ["$schema", "title", "description", "format", "required"];

/// What is wrong with `value`, with where it is.
pub fn check(schema: &Value, value: &Value) -> Result<(), String> {
    at(schema, value, "")
}

fn at(schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let wrong = |what: String| Err(format!("{place}: {what}: {value}"));
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        match keyword.as_str() {
            "type" => {
                let names: Vec<&str> = match rule {
                    Value::String(name) => vec![name],
                    names => names
                        .as_array()
                        .expect("types")
                        .iter()
                        .map(|name| name.as_str().expect("a type"))
                        .collect(),
                };
                if !names.iter().any(|name| is_of(value, name)) {
                    return wrong(format!("is not of type {names:?}"));
                }
            }
            "const" if value != rule => return wrong(format!("is not {rule}")),
            "const" => {}
            "enum" if !rule.as_array().expect("values").contains(value) => {
                return wrong(format!("is none of {rule}"));
            }
            "enum" => {}
            "pattern" => {
                let pattern = rule.as_str().expect("a pattern");
                if value.as_str().is_some_and(|text| !matches(pattern, text)) {
                    return wrong(format!("does not match {rule}"));
                }
            }
            "minimum" if value.is_number() && value.as_f64() < rule.as_f64() => {
                return wrong(format!("is less than {rule}"));
            }
            "minimum" => {}
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    at(rule, item, &format!("{place}[{i}]"))?;
                }
            }
            "properties" => {
                let Some(object) = value.as_object() else { continue };
                for (name, value) in object {
                    match rule.get(name) {
                        Some(rule) => at(rule, value, &format!("{place}.{name}"))?,
                        None => return wrong(format!("has an unknown field {name}")),
                    }
                }
                for name in schema["required"].as_array().into_iter().flatten() {
                    if !object.contains_key(name.as_str().expect("a name")) {
                        return wrong(format!("has no {name}"));
                    }
                }
            }
            "oneOf" => one_of(rule.as_array().expect("schemas"), value, place)?,
            silent if SILENT.contains(&silent) => {}
            unknown => panic!("the schema has a keyword that is not known here: {unknown}"),
        }
    }
    Ok(())
}

/// Compiles each of the few patterns once.
fn matches(pattern: &str, text: &str) -> bool {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, Regex>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        let compiled = known
            .entry(pattern.to_string())
            .or_insert_with(|| Regex::new(pattern).expect("a regular expression"));
        compiled.is_match(text)
    })
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the schema has a type that is not known here: {other}"),
    }
}

/// Exactly one must fit; those that are for another kind of record say nothing of use.
fn one_of(schemas: &[Value], value: &Value, place: &str) -> Result<(), String> {
    let same = |schema: &&Value| {
        ["type", "kind", "name"].iter().all(|name| {
            let wanted = &schema["properties"][name]["const"];
            wanted.is_null() || *wanted == value[name]
        })
    };
    let meant: Vec<&Value> = schemas.iter().filter(same).collect();
    match meant.as_slice() {
        [schema] => at(schema, value, place),
        _ => Err(format!("{place}: {} of the schemas are for this: {value}", meant.len())),
    }
}
