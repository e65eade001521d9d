//! Values as Python writes them, for templates, at a price: a template can build a value that is
//! small in memory and endless when it is written out, so each part is charged to its fuel.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// The deepest value that is written: as the deepest JSON that is read.
const MAX_DEPTH: usize = 128;
const MAX_INDENT: usize = 16;

/// `json.dumps(value, ensure_ascii=False, indent=None)`.
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let is_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if is_ascii == Some(true) || indent > Some(MAX_INDENT) {
        return Err(refused("tojson: an option is not supported"));
    }
    let mut writer = JsonWriter { state, indent, json: String::new() };
    writer.write(value, 0)?;
    Ok(writer.json)
}

/// Prints a value: text as it is, and what is made of parts only if writing it out has an end.
pub(super) fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        charge(state, value, 0)?;
    }
    minijinja::escape_formatter(out, state, value)
}

/// Charges for every part of a value, and the parts of the parts.
fn charge(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    enter(state, depth)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.try_for_each(|item| charge(state, &item, depth + 1))
        }
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            charge(state, &key, depth + 1)?;
            charge(state, &value.get_item(&key)?, depth + 1)
        }),
        _ => Ok(()),
    }
}

/// Charges for one part of a value.
fn enter(state: &State, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refused("a value is nested too deeply to be written"));
    }
    state.consume_fuel(1)
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_owned())
}

struct JsonWriter<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    indent: Option<usize>,
    json: String,
}

impl JsonWriter<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        enter(self.state, depth)?;
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.json.push_str("null"),
            ValueKind::Bool => self.json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.json.push_str(&value.to_string()),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.write_parts('[', ']', value, depth, |writer, item| {
                    writer.write(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                self.write_parts('{', '}', value, depth, |writer, key| {
                    writer.write_text(&key.to_string())?;
                    writer.json.push_str(": ");
                    writer.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            _ => return Err(refused("tojson: a value that JSON does not have")),
        }
        Ok(())
    }

    fn write_text(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 8)?;
        let quoted = serde_json::to_string(text).map_err(|error| refused(&error.to_string()))?;
        self.json.push_str(&quoted);
        Ok(())
    }

    fn write_parts(
        &mut self,
        open: char,
        close: char,
        value: &Value,
        depth: usize,
        mut write_part: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.json.push(open);
        let mut is_first = true;
        for part in value.try_iter()? {
            if !is_first {
                self.json.push_str(if self.indent.is_some() { "," } else { ", " });
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
        if let Some(indent) = self.indent {
            self.state.consume_fuel((indent * depth) as u64 / 8)?;
            self.json.push('\n');
            self.json.extend(std::iter::repeat_n(' ', indent * depth));
        }
        Ok(())
    }
}
