//! Models of which one file has been changed, anywhere.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;
use tempfile::tempdir;

use super::{DEMO, all_are_told};

/// What a mutation puts in the place of a value.
const VALUES: [&str; 16] = [
    "null",
    "true",
    "0",
    "-1",
    "1",
    "0.5",
    "1e300",
    "18446744073709551615",
    "4294967296",
    "\"\"",
    "\"bf16\\u001b[31m\\n\"",
    "[]",
    "[0, 1, 2]",
    "[[]]",
    "{}",
    "{\"a\": {\"b\": null}}",
];

/// Numbers of a seed, one after the other.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// Changes one place of a JSON value: removed, replaced, repeated, or moved to another name.
fn mutate(value: &mut Value, random: &mut Random) {
    let replacement = serde_json::from_str(VALUES[random.below(VALUES.len())]).unwrap();
    match value {
        Value::Object(object) if !object.is_empty() => {
            let key = object.keys().nth(random.below(object.len())).unwrap().clone();
            match random.below(6) {
                0 => drop(object.remove(&key)),
                1 => drop(object.insert(key, replacement)),
                2 => {
                    let moved = object.remove(&key).unwrap();
                    object.insert(format!("{key}\u{9b}"), moved);
                }
                _ => mutate(&mut object[&key], random),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(5) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, replacement),
                2 => list.extend(list.clone()),
                _ => mutate(&mut list[at], random),
            }
        }
        _ => *value = replacement,
    }
}

/// A file's bytes with something changed: its JSON, or bytes at any place.
fn mutated(name: &str, mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    // A safetensors file begins with the length of its header.
    let json = match name.ends_with(".safetensors") {
        true => 8..8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize,
        false => 0..bytes.len(),
    };
    if random.below(4) > 0 {
        let mut value = serde_json::from_slice(&bytes[json.clone()]).unwrap();
        (0..=random.below(2)).for_each(|_| mutate(&mut value, random));
        let text = value.to_string();
        if json.start > 0 {
            bytes[..8].copy_from_slice(&(text.len() as u64).to_le_bytes());
        }
        bytes.splice(json, text.into_bytes());
        return bytes;
    }
    let at = random.below(json.end);
    match random.below(4) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => drop(bytes.drain(at..(at + 40).min(json.end))),
        _ => drop(bytes.splice(at..at, b"\"a\": [[{\"a\": 1, \"a\": 2}]],".iter().copied())),
    }
    bytes
}

/// Runs a model of which one file has been changed, for each of these seeds.
fn mutated_models_are_told(seeds: std::ops::Range<u64>) {
    const FILES: [&str; 3] = ["config.json", "generation_config.json", "model.safetensors"];
    let folder = tempdir().unwrap();
    let runs = seeds.map(|seed| {
        let mut random = Random(seed);
        let changed = FILES[random.below(FILES.len())];
        let model = folder.path().join(seed.to_string());
        fs::create_dir(&model).unwrap();
        for file in fs::read_dir(DEMO).unwrap().map(|file| file.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if name == changed {
                let bytes = mutated(name, fs::read(&file).unwrap(), &mut random);
                fs::write(model.join(name), bytes).unwrap();
            } else {
                symlink(&file, model.join(name)).unwrap();
            }
        }
        let model = model.display().to_string();
        let sampling = ["--temp", "1", "--seed", "1"];
        let ask = ["chat", "-p", "Hi", "-n", "2", "--device", "cpu", "-m", &model];
        [&ask[..], &sampling].concat().iter().map(|arg| (*arg).to_owned()).collect()
    });
    all_are_told(runs.collect());
}

#[test]
fn a_model_with_something_changed_runs_or_is_refused() {
    mutated_models_are_told(0..200);
}

#[test]
#[ignore = "takes minutes"]
fn thousands_of_changed_models_run_or_are_refused() {
    mutated_models_are_told(0..2000);
}
