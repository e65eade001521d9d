//! JSON that strangers wrote: a key that is given twice is an error at every level, nesting and the
//! number of values are bounded, and every message fits on one line whatever the file says.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error;

/// The longest piece of a file that a message repeats, in characters.
const QUOTE_CHARS: usize = 160;
/// The most values in a file, at every level together: in memory each takes some hundred bytes.
const MAX_VALUES: usize = 2_000_000;

/// Parses `text` as one JSON value. Nesting deeper than 128 levels is an error, as is a repeated
/// key, and more than [`MAX_VALUES`] values. The error is what is wrong and where, without the name
/// of the file.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let left = Cell::new(MAX_VALUES);
    let value = Strict(&left).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    value.map_err(describe)
}

/// As [`parse`], of an object.
pub fn parse_object(text: &[u8]) -> Result<Map<String, Value>, String> {
    match parse(text)? {
        Value::Object(object) => Ok(object),
        other => Err(format!("{} in place of a JSON object", kind(&other))),
    }
}

/// What a JSON parser objected to, on one line.
pub fn describe(error: serde_json::Error) -> String {
    format!("broken JSON: {}", one_line(&error.to_string()))
}

/// A name out of a file, quoted for a message: escaped and cut.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", one_line(name))
}

/// `text` on a line of at most [`QUOTE_CHARS`].
pub fn one_line(text: &str) -> String {
    error::one_line(text, QUOTE_CHARS)
}

/// A JSON value for a message, cut.
pub fn show(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        scalar => one_line(&scalar.to_string()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A part of a file that is a [`Value`], as [`parse`] reads it: for a field's `deserialize_with`.
pub fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let value = Strict(&Cell::new(MAX_VALUES)).deserialize(deserializer)?;
    Ok((!value.is_null()).then_some(value))
}

/// Builds a [`Value`], refusing repeated keys, of which `serde_json` itself would silently keep the
/// last, and more values than are left.
struct Strict<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| D::Error::custom(format!("over {MAX_VALUES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number is not finite"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict(self.0))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("key {} is given twice", quote(&key))));
            }
            object.insert(key, entries.next_value_seed(Strict(self.0))?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_serde_json_reads() {
        let text =
            r#"{"a": [1, -2, 3.5, true, null, "x\ny"], "b": {"c": {}}, "d": 18446744073709551615}"#;
        let expected: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(Value::Object(parse_object(text.as_bytes()).expect("an object")), expected);
    }

    #[test]
    fn refuses_on_one_line() {
        let deep = [b"{\"a\":".as_slice(), &[b'['; 100_000]].concat();
        let many = [b"{\"a\": [0".as_slice(), &b",0".repeat(MAX_VALUES), b"]}"].concat();
        let cases: [(&[u8], &str); 10] = [
            (b"", "EOF"),
            (b"[1]", "a list in place"),
            (b"{\"a\": 1", "EOF"),
            (b"{} {}", "trailing"),
            (b"{\"a\": 1, \"a\": 1}", "\"a\" is given twice"),
            (b"{\"x\": {\"b\\n\": 1, \"b\\n\": 2}}", "\"b\\n\" is given twice"),
            (b"{\"a\": 1e999}", "out of range"),
            (b"{\"\xff\": 1}", "code point"),
            (&deep, "recursion limit"),
            (&many, "over 2000000 values"),
        ];
        for (text, trouble) in cases {
            let error = parse_object(text).expect_err(trouble);
            assert!(error.contains(trouble), "{error}");
            assert!(!error.contains(char::is_control) && error.len() < 1000, "{error}");
        }
    }

    #[test]
    fn quotes_are_short_and_printable() {
        assert_eq!(quote("a\u{1b}[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert!(quote(&"é".repeat(1_000_000)).chars().count() < QUOTE_CHARS + 4);
    }
}
