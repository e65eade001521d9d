//! What is in a folder where what we need is not.

use std::fs;
use std::path::Path;

/// What keeps a folder of these names, or a repository whose names may have folders before them, from
/// having the weights that `transformers` would load, and what to do.
pub fn advice(names: &[String]) -> Option<String> {
    let first = |suffixes: &[&str]| {
        names.iter().filter(|name| suffixes.iter().any(|suffix| name.ends_with(suffix))).min()
    };
    let has = |name: &str| names.iter().any(|other| other == name);
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return None;
    }
    if let Some(name) = names.iter().filter(|name| name.starts_with("adapter_")).max() {
        return Some(format!(
            "{name} is an adapter's, not a whole model's: merge it into the model that it was made for \
             (peft's merge_and_unload) and save that with save_pretrained"
        ));
    }
    if let Some(advice) = shards(names) {
        return Some(advice);
    }
    let at_top = |name: &&String| name.ends_with(".safetensors") && !name.contains('/');
    if let Some(name) = names.iter().filter(at_top).min() {
        return Some(format!(
            "{name} is there, which is not a name of weights that transformers looks for: if it is the \
             whole model, call it model.safetensors"
        ));
    }
    if let Some(name) = first(&[".pth"]).or_else(|| {
        names.iter().find(|name| ["params.json", "original/params.json"].contains(&&***name))
    }) {
        return Some(format!(
            "{name} is in Meta's own format: give the directory that holds its params.json, \
             consolidated.00.pth and tokenizer.model, and no config.json"
        ));
    }
    if let Some(name) = first(&[".bin", ".pt"]) {
        return Some(format!(
            "{name} is a pickle and safetensors are needed: load it with transformers and save it \
             with save_pretrained"
        ));
    }
    first(&[".gguf", ".ggml"]).map(|name| {
        format!("{name} is in llama.cpp's format: name the file, ORGANISATION/NAME:{name}")
    })
}

/// Parts of a model without their index.
fn shards(names: &[String]) -> Option<String> {
    let mut numbers: Vec<(usize, usize)> = names.iter().filter_map(|name| shard(name)).collect();
    numbers.sort_unstable();
    let &(_, count) = numbers.first()?;
    let missing: Vec<String> = (1..=count.min(10_000))
        .filter(|number| !numbers.contains(&(*number, count)))
        .map(|number| number.to_string())
        .collect();
    let which = match &missing[..] {
        [] => String::new(),
        few if few.len() <= 8 => format!(" (number {} is not)", few.join(", ")),
        many => format!(" ({} are not)", many.len()),
    };
    Some(format!(
        "{} of {count} shards are there{which}, and their index is not: fetch \
         model.safetensors.index.json",
        count - missing.len()
    ))
}

/// The number of `model-NUMBER-of-COUNT.safetensors`, and the count.
fn shard(name: &str) -> Option<(usize, usize)> {
    let numbers = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
    let (number, count) = numbers.split_once("-of-")?;
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&number).then_some((number, count))
}

/// The names in a folder, and those in `original/`, where repositories keep Meta's own files.
pub fn names(directory: &Path) -> Vec<String> {
    let of = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    };
    let original = of(&directory.join("original")).into_iter();
    of(directory).into_iter().chain(original.map(|name| format!("original/{name}"))).collect()
}

/// Where a link leads that leads nowhere.
pub fn dangling(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok().filter(|_| !path.exists())?;
    Some(target.display().to_string().replace(char::is_control, "?"))
}
