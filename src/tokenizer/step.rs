//! A step around the encoding as a tokenizer.json writes it: its type, and its fields, checked.

use serde_json::{Map, Value};

use super::pattern::Pattern;
use crate::json;

/// Published tokenizers have up to five steps of a kind.
const MAX_STEPS: usize = 16;
/// The longest text that a step puts into another one: published ones put in one character.
pub(super) const MAX_CONTENT_BYTES: usize = 16;

/// One step's JSON.
pub(super) struct PipelineStep<'v> {
    pub fields: &'v Map<String, Value>,
    pub kind: &'v str,
}

impl<'v> PipelineStep<'v> {
    /// All steps, those of sequences one by one. `list` is the key of a sequence's steps.
    pub fn all(value: Option<&'v Value>, list: &str) -> Result<Vec<Self>, String> {
        let mut steps = Vec::new();
        if let Some(value) = value {
            Self::collect(value, list, MAX_STEPS, &mut steps)?;
        }
        Ok(steps)
    }

    fn collect(
        value: &'v Value,
        list: &str,
        depth: usize,
        steps: &mut Vec<Self>,
    ) -> Result<(), String> {
        let fields =
            value.as_object().ok_or_else(|| format!("is {}, no step", json::show(value)))?;
        let kind = fields.get("type").and_then(Value::as_str).ok_or("a step has no type")?;
        if kind != "Sequence" {
            steps.push(Self { fields, kind });
        } else {
            let parts = fields.get(list).and_then(Value::as_array);
            let parts = parts.ok_or_else(|| format!("a Sequence has no list {list}"))?;
            for part in parts {
                Self::collect(
                    part,
                    list,
                    depth.checked_sub(1).ok_or("sequences nest too deeply")?,
                    steps,
                )?;
            }
        }
        if steps.len() > MAX_STEPS {
            return Err(format!("has more than {MAX_STEPS} steps"));
        }
        Ok(())
    }

    pub fn text(&self, key: &str) -> Result<&'v str, String> {
        self.fields
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{}: {key} is no text", self.kind))
    }

    /// A text that is put into others.
    pub fn content(&self, key: &str) -> Result<&'v str, String> {
        let text = self.text(key)?;
        if text.len() > MAX_CONTENT_BYTES {
            return Err(format!("{}: {key} has over {MAX_CONTENT_BYTES} bytes", self.kind));
        }
        Ok(text)
    }

    pub fn flag(&self, key: &str, default: Option<bool>) -> Result<bool, String> {
        match self.fields.get(key) {
            Some(Value::Bool(flag)) => Ok(*flag),
            None | Some(Value::Null) if default.is_some() => Ok(default.unwrap_or_default()),
            _ => Err(format!("{}: {key} is neither true nor false", self.kind)),
        }
    }

    pub fn count(&self, key: &str) -> Result<usize, String> {
        let count = self
            .fields
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| format!("{}: {key} is no count", self.kind))
    }

    pub fn character(&self, key: &str) -> Result<char, String> {
        let text = self.text(key)?;
        let mut characters = text.chars();
        match (characters.next(), characters.next()) {
            (Some(character), None) => Ok(character),
            _ => Err(format!("{}: {key} is not one character", self.kind)),
        }
    }

    pub fn pattern(&self) -> Result<Pattern, String> {
        let pattern = self.fields.get("pattern").unwrap_or(&Value::Null);
        Pattern::read(pattern).map_err(|what| format!("{}: {what}", self.kind))
    }

    pub fn not_supported(&self) -> String {
        format!("{} is not supported", json::quote(self.kind))
    }

    /// The crate's own, of fields that have been checked.
    pub fn build<T: serde::de::DeserializeOwned>(&self, fields: Value) -> Result<T, String> {
        serde_json::from_value(fields)
            .map_err(|error| format!("{}: {}", self.kind, json::one_line(&error.to_string())))
    }

    pub fn build_as_it_is<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        self.build(Value::Object(self.fields.clone()))
    }
}
