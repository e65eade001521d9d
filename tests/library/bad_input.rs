//! Broken and hostile model directories end in one clear line that names the file and the trouble,
//! without a panic and at once.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use chaski::checkpoint::Checkpoint;
use chaski::config::Config;
use chaski::source::Source;
use tempfile::tempdir;

use crate::bad_models::{BadModel, FoundBy, bad_models, tiny};

fn load(folder: &Path) -> chaski::Result<()> {
    let source = Source::find(&folder.display().to_string())?;
    Config::load(&source)?;
    Checkpoint::open(&source).map(drop)
}

#[test]
fn the_good_models_load() {
    for write in [tiny::write_good, tiny::write_sharded] {
        let folder = tempdir().expect("a directory");
        write(folder.path());
        load(folder.path()).expect("a good model");
    }
}

/// What is wrong with the way in which `model` is refused.
fn trouble_with(model: &BadModel) -> Option<String> {
    let folder = tempdir().expect("a directory");
    model.write(folder.path());
    let start = Instant::now();
    let Err(error) = load(folder.path()) else {
        return Some("it loads".to_owned());
    };
    let elapsed = start.elapsed();
    let message = error.to_string();
    let names_file = message.contains(&format!("/{}", model.file));
    let trouble = if error.exit_status() != 1 {
        "it is not a failure"
    } else if !names_file || !message.contains(model.trouble) {
        "the file or the trouble is not named"
    } else if message.contains(char::is_control) || message.len() > 1000 {
        "it is not one clear line"
    } else if elapsed > Duration::from_secs(1) {
        "it takes over a second"
    } else {
        return None;
    };
    Some(format!("{trouble}: {message}"))
}

#[test]
fn every_bad_model_is_refused_in_one_clear_line() {
    let mut models = bad_models();
    models.retain(|model| model.found_by != FoundBy::Weights);
    let trouble = |model: &BadModel| Some(format!("{}: {}", model.name, trouble_with(model)?));
    let troubles: Vec<String> = models.iter().filter_map(trouble).collect();
    assert!(troubles.is_empty(), "of {}:\n{}", models.len(), troubles.join("\n"));
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = bad_models().into_iter().map(|model| model.name).collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}

/// A pipe in place of a file would block whoever opens it.
#[test]
#[cfg(unix)]
fn pipes_do_not_hang() {
    for file in [tiny::CONFIG, tiny::SINGLE] {
        let folder = tempdir().expect("a directory");
        tiny::write_good(folder.path());
        fs::remove_file(folder.path().join(file)).expect("gone");
        let pipe = folder.path().join(file);
        assert!(std::process::Command::new("mkfifo").arg(pipe).status().expect("mkfifo").success());
        let message = load(folder.path()).expect_err(file).to_string();
        assert!(message.contains(file) && message.contains("not a regular file"), "{message}");
    }
}

/// Llama 2's files carry a table of frequencies in f32 beside 16-bit weights.
#[test]
fn tables_beside_the_weights_are_no_weights() {
    let folder = tempdir().expect("a directory");
    tiny::write_good(folder.path());
    let mut entries = tiny::entries(&tiny::weights());
    let start = entries.last().map_or(0, |entry| entry.end);
    entries.push(tiny::Entry {
        name: "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
        dtype: "F32",
        shape: vec![4],
        start,
        end: start + 16,
    });
    let file = tiny::safetensors(&tiny::header(&entries), start + 16);
    tiny::write(folder.path(), tiny::SINGLE, file);
    let source = Source::Directory(folder.path().to_owned());
    let checkpoint = Checkpoint::open(&source).expect("a checkpoint");
    assert_eq!(checkpoint.tensors().len(), entries.len() - 1);
}
