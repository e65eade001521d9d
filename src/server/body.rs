//! The fields of a request's JSON, each with the error that names it.

use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::json;

type Result<T> = std::result::Result<T, Refusal>;

/// A request's object. A field that is null is as good as absent, and one that nobody asks for is passed
/// over: clients send more than any one server knows.
pub struct RequestBody(Map<String, Value>);

impl RequestBody {
    /// # Errors
    /// What is no JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut object = json::parse_object(bytes)
            .map_err(|what| Refusal::invalid(format!("the request's body: {what}")))?;
        object.retain(|_, value| !value.is_null());
        Ok(Self(object))
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    pub fn flag(&self, name: &str) -> Result<bool> {
        self.read(name, "a truth value", Value::as_bool).map(Option::unwrap_or_default)
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        self.read(name, "a text", Value::as_str)
    }

    pub fn number(&self, name: &str) -> Result<Option<f32>> {
        self.read(name, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    /// A whole number, of which those below 0 stand for no limit, as llama.cpp has it: `usize::MAX`.
    pub fn count(&self, name: &str) -> Result<Option<usize>> {
        let count = |value: &Value| match value.as_i64() {
            Some(number) => Some(usize::try_from(number).unwrap_or(usize::MAX)),
            None => value.as_u64().map(|number| number as usize),
        };
        self.read(name, "a whole number", count)
    }

    /// A whole number in this range.
    pub fn within(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>> {
        let found = self.count(name)?;
        match found.filter(|number| !range.contains(number)) {
            None => Ok(found),
            Some(_) => {
                let (least, most) = range.into_inner();
                Err(self.wrong(name, &format!("a whole number from {least} to {most}")))
            }
        }
    }

    /// A text or a list of at most `most` texts.
    pub fn texts(&self, name: &str, most: usize) -> Result<Vec<String>> {
        let texts = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => {
                list.iter().map(|text| text.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        let found = self.read(name, "a text or a list of texts", texts)?.unwrap_or_default();
        match found.len() > most {
            true => Err(Refusal::field(name, format!("has {} texts: at most {most}", found.len()))),
            false => Ok(found),
        }
    }

    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.read(name, "a list of token ids", ids)?.unwrap_or_default())
    }

    /// What `read` makes of the field, which is to be `what`.
    pub fn read<'b, T>(
        &'b self,
        name: &str,
        what: &str,
        read: impl FnOnce(&'b Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(name, what)),
        }
    }

    fn wrong(&self, name: &str, what: &str) -> Refusal {
        let shown = self.0.get(name).map(json::show).unwrap_or_default();
        Refusal::field(name, format!("is {shown}: {what} is needed"))
    }
}

/// The ids in a list, if it is one of ids alone.
pub fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_types_are_named() {
        let body = RequestBody::parse(
            br#"{"a": 1, "b": "x", "c": true, "d": ["x", 1], "e": null, "f": -1, "g": 1.5, "h": [[1]]}"#,
        )
        .unwrap();
        let message = |refusal: Refusal| refusal.message();
        assert_eq!(body.number("a").unwrap(), Some(1.0));
        assert_eq!(body.text("b").unwrap(), Some("x"));
        assert!(body.flag("c").unwrap() && !body.flag("e").unwrap());
        assert_eq!(body.count("f").unwrap(), Some(usize::MAX));
        assert_eq!(body.texts("b", 1).unwrap(), ["x"]);
        assert_eq!(message(body.flag("a").unwrap_err()), "a is 1: a truth value is needed");
        assert_eq!(message(body.count("g").unwrap_err()), "g is 1.5: a whole number is needed");
        assert!(message(body.texts("d", 4).unwrap_err()).starts_with("d is a list"));
        assert!(message(body.ids("h").unwrap_err()).ends_with("a list of token ids is needed"));
        assert!(message(body.within("a", 2..=3).unwrap_err()).ends_with("from 2 to 3 is needed"));
        let error = RequestBody::parse(b"[1]").err().unwrap().to_json();
        assert_eq!(error["error"]["type"], "invalid_request_error");
    }
}
