//! JSON as Python's `json.dumps` writes it, for templates.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, State, Value};

use super::charged::charge_bytes;
use super::python::{number, refused};

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`. The guard
/// is written as it is, for it to be found again.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    positional: &[Value],
    options: Kwargs,
    guard: Option<char>,
) -> Result<String, Error> {
    let mut positional = positional.iter().cloned();
    let mut option = |name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.next() {
            Some(value) => Some(value),
            None => options.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let is_ascii = option("ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = option("indent")?.map(|value| indentation(&value)).transpose()?;
    let separators = option("separators")?.map(|value| separators(&value)).transpose()?;
    let sort_keys = option("sort_keys")?.is_some_and(|value| value.is_true());
    options.assert_all_used()?;
    let comma = if indent.is_some() { "," } else { ", " };
    let separators = separators.unwrap_or_else(|| (comma.to_owned(), ": ".to_owned()));
    let mut writer =
        JsonWriter { state, is_ascii, indent, separators, sort_keys, guard, json: String::new() };
    writer.write(value, 0)?;
    Ok(writer.json)
}

/// What a level is indented by: a number of spaces, or a text.
fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let width = if value.kind() == ValueKind::Bool {
        value.is_true().into()
    } else {
        i64::try_from(value.clone())?
    };
    match usize::try_from(width.max(0)) {
        Ok(width) if width <= 1 << 10 => Ok(" ".repeat(width)),
        _ => Err(refused("tojson: the indentation is too wide")),
    }
}

/// What stands between items, and after keys.
fn separators(value: &Value) -> Result<(String, String), Error> {
    let texts: Vec<Value> = value.try_iter()?.collect();
    match texts[..] {
        [ref item, ref key] if item.as_str().is_some() && key.as_str().is_some() => {
            Ok((item.to_string(), key.to_string()))
        }
        _ => Err(refused("tojson: separators are two texts")),
    }
}

struct JsonWriter<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    is_ascii: bool,
    indent: Option<String>,
    separators: (String, String),
    sort_keys: bool,
    guard: Option<char>,
    json: String,
}

impl JsonWriter<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.write_parts('[', ']', value.try_iter()?, depth, |writer, item| {
                    writer.write(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_parts('{', '}', keys.into_iter(), depth, |writer, key| {
                    let name = scalar(key)?.unwrap_or_else(|| key.to_string());
                    writer.write_text(&name)?;
                    let after = writer.separators.1.clone();
                    writer.json.push_str(&after);
                    writer.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            _ => match scalar(value)? {
                Some(text) => self.json.push_str(&text),
                None => return Err(refused("tojson: a value that JSON does not have")),
            },
        }
        Ok(())
    }

    fn write_text(&mut self, text: &str) -> Result<(), Error> {
        charge_bytes(self.state, text.len())?;
        let quoted = serde_json::to_string(text).map_err(|error| refused(&error.to_string()))?;
        if !self.is_ascii {
            self.json.push_str(&quoted);
            return Ok(());
        }
        for character in quoted.chars() {
            if matches!(character, ' '..='~') || Some(character) == self.guard {
                self.json.push(character);
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(self.json, "\\u{unit:04x}").map_err(|_| refused("tojson"))?;
            }
        }
        Ok(())
    }

    fn write_parts(
        &mut self,
        open: char,
        close: char,
        parts: impl Iterator<Item = Value>,
        depth: usize,
        mut write_part: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.json.push(open);
        let mut is_first = true;
        for part in parts {
            if !is_first {
                let comma = self.separators.0.clone();
                self.json.push_str(&comma);
            }
            is_first = false;
            self.new_line(depth + 1)?;
            write_part(self, &part)?;
        }
        if !is_first {
            self.new_line(depth)?;
        }
        self.json.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            charge_bytes(self.state, indent.len() * depth)?;
            self.json.push('\n');
            self.json.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
        Ok(())
    }
}

/// A value without parts that is no text, as JSON writes it; `None` for others.
fn scalar(value: &Value) -> Result<Option<String>, Error> {
    Ok(match value.kind() {
        ValueKind::None => Some("null".to_owned()),
        ValueKind::Bool => Some(value.is_true().to_string()),
        ValueKind::Number => Some(match number(value)?.as_str() {
            "nan" => "NaN".to_owned(),
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            written => written.to_owned(),
        }),
        _ => None,
    })
}
