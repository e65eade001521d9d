//! Which chat templates a model's folder has, as `transformers` finds them.

use std::collections::BTreeMap;

use serde_json::Map;

use super::failed;
use crate::error::Result;
use crate::json;
use crate::source::Source;

pub(super) const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";
/// The template of `transformers`' processors.
const LEGACY_FILE: &str = "chat_template.json";
/// Where `transformers` 5 keeps the templates beside the default one.
const NAMED: &str = "additional_chat_templates";

/// The names of templates: the one that all have, and the one for conversations with tools.
pub(super) const DEFAULT: &str = "default";
pub(super) const TOOL_USE: &str = "tool_use";

/// The templates of a model by name, and the file that holds the default one.
pub(super) fn templates(source: &Source) -> Result<Option<(String, BTreeMap<String, String>)>> {
    let text = |file: &str| match source.read(file)? {
        None => Ok(None),
        Some(text) => String::from_utf8(text)
            .map(Some)
            .map_err(|error| failed(&source.path(file), &error.to_string())),
    };
    let object = |file: &str| match source.read(file)? {
        None => Ok(Map::new()),
        Some(text) => json::parse_object(&text).map_err(|what| failed(&source.path(file), &what)),
    };
    let mut found = BTreeMap::new();
    let mut path = source.path(FILE);
    if let Some(template) = text(FILE)? {
        found.insert(DEFAULT.to_owned(), template);
    }
    for name in [DEFAULT, TOOL_USE] {
        if let Some(template) = text(&format!("{NAMED}/{name}.jinja"))? {
            found.insert(name.to_owned(), template);
        }
    }
    for file in [CONFIG, LEGACY_FILE] {
        if found.is_empty() {
            path = source.path(file);
            let named =
                object(file)?.remove("chat_template").map(|template| templates_in(&template));
            found = named.unwrap_or(Ok(found)).map_err(|what| failed(&path, &what))?;
        }
    }
    if !found.is_empty() && !found.contains_key(DEFAULT) {
        let names = found.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(failed(&path, &format!("has chat templates, but none named default: {names}")));
    }
    Ok((!found.is_empty()).then_some((path, found)))
}

/// A `chat_template`: one template, or several by name.
fn templates_in(
    value: &serde_json::Value,
) -> std::result::Result<BTreeMap<String, String>, String> {
    let trouble = || format!("chat_template is {}, not a template", json::show(value));
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).ok_or_else(trouble);
    match value {
        serde_json::Value::Null => Ok(BTreeMap::new()),
        serde_json::Value::String(template) => {
            Ok(BTreeMap::from([(DEFAULT.to_owned(), template.clone())]))
        }
        serde_json::Value::Array(templates) => templates
            .iter()
            .map(|template| Ok((text(&template["name"])?, text(&template["template"])?)))
            .collect(),
        serde_json::Value::Object(templates) => {
            templates.iter().map(|(name, template)| Ok((name.clone(), text(template)?))).collect()
        }
        _ => Err(trouble()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_template_of_a_folder_is_that_of_transformers() {
        let folder = |files: &[(&str, serde_json::Value)]| {
            let directory = tempfile::TempDir::new().unwrap();
            for (name, content) in files {
                let path = directory.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let text = content.as_str().map(str::to_owned);
                std::fs::write(path, text.unwrap_or_else(|| content.to_string())).unwrap();
            }
            let found = templates(&Source::Directory(directory.path().to_owned()));
            found.map(|found| found.map(|(_, sources)| sources.into_iter().collect::<Vec<_>>()))
        };
        let is = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let in_config = |template: serde_json::Value| (CONFIG, json!({"chat_template": template}));
        let named = |name: &str| json!({"name": name, "template": name});
        let several = json!([named("tool_use"), named("default")]);
        let both = vec![is("default", "default"), is("tool_use", "tool_use")];
        for (files, expected) in [
            (vec![], None),
            (vec![in_config(json!(null))], None),
            (vec![in_config(json!("a"))], Some(vec![is("default", "a")])),
            (vec![in_config(json!("a")), (FILE, json!("b"))], Some(vec![is("default", "b")])),
            (vec![in_config(several)], Some(both.clone())),
            (vec![in_config(json!({"default": "default", "tool_use": "tool_use"}))], Some(both)),
            (
                vec![(FILE, json!("b")), ("additional_chat_templates/tool_use.jinja", json!("t"))],
                Some(vec![is("default", "b"), is("tool_use", "t")]),
            ),
            (vec![(LEGACY_FILE, json!({"chat_template": "c"}))], Some(vec![is("default", "c")])),
            (
                vec![in_config(json!("a")), (LEGACY_FILE, json!({"chat_template": "c"}))],
                Some(vec![is("default", "a")]),
            ),
        ] {
            assert_eq!(folder(&files), Ok(expected));
        }
        let error = folder(&[in_config(json!(5))]).unwrap_err().to_string();
        assert!(error.ends_with("chat_template is 5, not a template"), "{error}");
        let tool = json!([{"name": "tool_use", "template": "x"}]);
        let error = folder(&[in_config(tool)]).unwrap_err().to_string();
        assert!(error.ends_with("none named default: tool_use"), "{error}");
    }
}
