//! Typed reading of a JSON object's keys: every error names the file and the key.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::show;

/// One object of a file, and what its keys are called in messages.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    pub file: &'a str,
    /// Empty for the file's outermost object, else like `rope_scaling.`.
    pub prefix: &'static str,
    pub object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The error that `key` has this `trouble`.
    pub fn wrong(&self, key: &str, trouble: &str) -> Error {
        Error::failed(format!("{}: {}{key} {trouble}", self.file, self.prefix))
    }

    /// The key's value; none where the key is missing or null, which JSON's writers take for the
    /// same.
    pub fn optional(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The key's value. Missing is an error: what a model's graph depends on is never guessed.
    pub fn required(&self, key: &str) -> Result<&'a Value> {
        self.optional(key)
            .ok_or_else(|| self.wrong(key, "is missing: it must be given, it is never guessed"))
    }

    /// A size in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.whole_number(key, self.required(key)?, 1, max)
    }

    /// A whole number in `min..=max`, where the key is present.
    pub fn optional_size(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>> {
        self.optional(key).map(|value| self.whole_number(key, value, min, max)).transpose()
    }

    /// A number in `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64> {
        self.real_number(key, self.required(key)?, range)
    }

    /// A number in `range`, where the key is present.
    pub fn optional_number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        self.optional(key).map(|value| self.real_number(key, value, range)).transpose()
    }

    /// Numbers in `range`, where the key is present.
    pub fn numbers(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.optional(key) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.wrong(key, "is no list of numbers"))?;
        let number = |item| Ok(self.real_number(key, item, range.clone())? as f32);
        list.iter().map(number).collect::<Result<_>>().map(Some)
    }

    fn whole_number(&self, key: &str, value: &Value, min: usize, max: usize) -> Result<usize> {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.filter(|number| (min..=max).contains(number)).ok_or_else(|| {
            self.wrong(
                key,
                &format!("is {}: a whole number from {min} to {max} is needed", show(value)),
            )
        })
    }

    fn real_number(&self, key: &str, value: &Value, range: RangeInclusive<f64>) -> Result<f64> {
        value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| {
            let [min, max] = [range.start(), range.end()];
            self.wrong(
                key,
                &format!("is {}: a number from {min:?} to {max:?} is needed", show(value)),
            )
        })
    }

    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => {
                Err(self.wrong(key, &format!("is {}: true or false is needed", show(value))))
            }
        }
    }

    pub fn text(&self, key: &str) -> Result<&'a str> {
        let value = self.required(key)?;
        let wanted = || self.wrong(key, &format!("is {}: a string is needed", show(value)));
        value.as_str().ok_or_else(wanted)
    }

    /// The object under `key`, where there is one.
    pub fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Fields<'a>>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { file: self.file, prefix, object })),
            Some(value) => {
                Err(self.wrong(key, &format!("is {}: an object is needed", show(value))))
            }
        }
    }

    /// Token ids below `vocab`: one number, a list of them, or none at all.
    pub fn ids(&self, key: &str, vocab: usize) -> Result<Vec<u32>> {
        let values = match self.optional(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| {
            let id = value.as_u64().filter(|id| *id < vocab as u64);
            id.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let trouble =
                    format!("holds {}: token ids below vocab_size {vocab} are needed", show(value));
                self.wrong(key, &trouble)
            })
        };
        values.iter().map(id).collect()
    }
}
