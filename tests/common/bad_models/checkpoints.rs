//! What can be wrong with the files of weights and their index.

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};

use super::tiny::{self, Entry, INDEX, SHARDS, SINGLE};
use super::{BadModel, FoundBy, Spoil};

pub fn bad_checkpoints() -> Vec<BadModel> {
    [headers(), weights(), raw_headers(), indexes(), shards(), folders(), against_the_config()]
        .into_iter()
        .flatten()
        .collect()
}

fn case(name: &str, file: &'static str, trouble: &'static str, spoil: Spoil) -> BadModel {
    BadModel { name: name.to_owned(), found_by: FoundBy::Checkpoint, file, trouble, spoil }
}

/// Entries that contradict each other or the data; the second is the first layer's norm, the last
/// the output's.
fn headers() -> Vec<BadModel> {
    const NORM: &str = "tensor \"model.layers.0.input_layernorm.weight\"";
    type Case = (&'static str, &'static str, fn(&mut Vec<Entry>));
    let cases: [Case; 15] = [
        ("overlap", "overlaps tensor \"model.embed_tokens.weight\"", |entries| {
            entries[1].start -= 2;
            entries[1].end -= 2;
        }),
        ("same place", "overlaps tensor", |entries| {
            (entries[4].start, entries[4].end) = (entries[3].start, entries[3].end)
        }),
        ("hole", "2 bytes before it that belong to no tensor", |entries| {
            entries[1..].iter_mut().for_each(|entry| {
                entry.start += 2;
                entry.end += 2;
            });
        }),
        ("hole at the start", "1024 bytes before it", |entries| drop(entries.remove(0))),
        ("unclaimed end", "32 bytes follow the last tensor", |entries| drop(entries.pop())),
        ("end before start", NORM, |entries| entries[1].end = entries[1].start - 1),
        ("too few bytes", "of shape [16] needs 32 bytes", |entries| entries[1].end -= 2),
        ("wrong shape for its bytes", "of shape [17] needs 34 bytes", |entries| {
            entries[1].shape = vec![17];
        }),
        ("past the end", "lacks 16 bytes at the end of the file", |entries| {
            let last = entries.last_mut().expect("an entry");
            last.shape = vec![24];
            last.end += 16;
        }),
        ("far past the end", "18446744073709551615", |entries| {
            let last = entries.last_mut().expect("an entry");
            last.end = usize::MAX;
        }),
        ("overflowing shape", "is larger than any memory", |entries| {
            entries[1].shape = vec![usize::MAX, usize::MAX];
        }),
        ("empty tensor", "is empty: its shape is [0, 16]", |entries| {
            entries[1].shape = vec![0, 16];
        }),
        ("many dimensions", "has 9 dimensions", |entries| entries[1].shape = vec![1; 9]),
        ("integer weights", "has the type \"I16\"", |entries| entries[1].dtype = "I16"),
        ("double weights", NORM, |entries| entries[1].dtype = "F64"),
    ];
    cases.map(|(name, trouble, spoil)| case(name, SINGLE, trouble, Spoil::Header(spoil))).into()
}

/// Bytes of a good file changed.
fn weights() -> Vec<BadModel> {
    type Case = (&'static str, &'static str, fn(&mut Vec<u8>));
    let cases: [Case; 12] = [
        ("empty file", "0 bytes are not a safetensors file", Vec::clear),
        ("truncated length", "7 bytes are not a safetensors file", |file| file.truncate(7)),
        ("length alone", "truncated: its header has", |file| file.truncate(8)),
        ("truncated header", "truncated: its header has", |file| file.truncate(100)),
        ("truncated data", "lacks 1 bytes at the end of the file", |file| {
            file.truncate(file.len() - 1)
        }),
        ("no data", "fetch it again", |file| file.truncate(file.len() - 3000)),
        ("trailing byte", "1 bytes follow the last tensor", |file| file.push(0)),
        ("trailing megabyte", "1048576 bytes follow", |file| {
            file.resize(file.len() + (1 << 20), 0)
        }),
        ("header too short", "header: broken JSON: tensor \"model.norm.weight\": EOF", |file| {
            file[0] -= 32
        }),
        ("header too long", "header: broken JSON: trailing", |file| file[0] += 8),
        ("header of exabytes", "a header of 18446744073709551615 bytes", |file| {
            file[..8].fill(0xff);
        }),
        ("a zip", "not a safetensors file", |file| {
            file[..10].copy_from_slice(b"PK\x03\x04\0\0\0\0\x08\0")
        }),
    ];
    cases.map(|(name, trouble, spoil)| case(name, SINGLE, trouble, Spoil::Weights(spoil))).into()
}

/// Writes a file of weights with `first` before the good header's entries.
fn write_header_with(folder: &Path, first: &str) {
    let entries = tiny::entries(&tiny::weights());
    let header = tiny::header(&entries).replacen('{', &format!("{{{first},"), 1);
    let data_bytes = entries.last().map_or(0, |entry| entry.end);
    tiny::write(folder, SINGLE, tiny::safetensors(&header, data_bytes));
}

/// Headers that no writer of entries would write.
fn raw_headers() -> Vec<BadModel> {
    type Case = (&'static str, &'static str, fn(&Path));
    let cases: [Case; 16] = [
        ("tensor twice", "tensor \"model.norm.weight\" is given twice", |m| {
            let entries = tiny::entries(&tiny::weights());
            let header = tiny::header(&entries[10..]);
            write_header_with(m, &header[1..header.len() - 1]);
        }),
        ("field twice", "duplicate field `dtype`", |m| {
            write_header_with(m, r#""a":{"dtype":"BF16","dtype":"BF16"}"#);
        }),
        ("unknown field", "unknown field `scale`", |m| write_header_with(m, r#""a":{"scale":1}"#)),
        ("field missing", "missing field `shape`", |m| {
            write_header_with(m, r#""a":{"dtype":"F16"}"#)
        }),
        ("negative size", "invalid value: integer `-1`", |m| {
            write_header_with(m, r#""a":{"dtype":"BF16","shape":[-1],"data_offsets":[0,2]}"#);
        }),
        ("fractional size", "floating point `1.5`", |m| {
            write_header_with(m, r#""a":{"dtype":"BF16","shape":[1.5],"data_offsets":[0,2]}"#);
        }),
        ("three offsets", "tensor \"a\"", |m| {
            write_header_with(m, r#""a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2,4]}"#);
        }),
        ("tensor is a number", "tensor \"a\"", |m| write_header_with(m, r#""a":7"#)),
        ("line breaks in a name", "\"a\\nb\\u{1b}[31m\"", |m| {
            write_header_with(
                m,
                r#""a\nb\u001b[31m":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}"#,
            );
        }),
        ("endless name", "has the type \"I8\"", |m| {
            let name = "n".repeat(1 << 20);
            let entry = r#"{"dtype":"I8","shape":[1],"data_offsets":[0,1]}"#;
            write_header_with(m, &format!("\"{name}\":{entry}"));
        }),
        ("deep metadata", "recursion limit", |m| {
            write_header_with(m, &format!("\"__metadata__\":{}", "[".repeat(1 << 20)));
        }),
        ("deep tensor", "tensor \"a\"", |m| {
            write_header_with(m, &format!("\"a\":{{\"shape\":{}", "[".repeat(1 << 20)));
        }),
        ("metadata of numbers", "__metadata__ is not an object of strings", |m| {
            write_header_with(m, r#""__metadata__":{"format":1}"#);
        }),
        ("header is a list", "does not begin with {", |m| {
            tiny::write(m, SINGLE, tiny::file(b"[]      ", 0));
        }),
        ("no tensors", "no weights", |m| tiny::write(m, SINGLE, tiny::file(b"{}", 0))),
        ("misaligned", "is not a multiple of its elements' 2 bytes", |m| {
            let entries = tiny::entries(&tiny::weights());
            let mut header = tiny::header(&entries);
            if header.len().is_multiple_of(2) {
                header.push(' ');
            }
            let data_bytes = entries.last().map_or(0, |entry| entry.end);
            tiny::write(m, SINGLE, tiny::file(header.as_bytes(), data_bytes));
        }),
    ];
    cases.map(|(name, trouble, spoil)| case(name, SINGLE, trouble, Spoil::Folder(spoil))).into()
}

/// Indexes of an otherwise good model in two files.
fn indexes() -> Vec<BadModel> {
    const NAME: &str = "model.norm.weight";
    const NOT_PLAIN: &str = "puts tensor \"model.norm.weight\" into \"";
    type Case = (&'static str, &'static str, fn(&mut Value));
    let cases: [Case; 13] = [
        ("slash", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("a/b.safetensors")),
        ("parent", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("../b.safetensors")),
        ("absolute", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("/b.safetensors")),
        ("backslash", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("..\\b.safetensors")),
        ("drive", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("C:b.safetensors")),
        ("zero byte", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("b\0.safetensors")),
        ("two dots", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("..")),
        ("pickle", NOT_PLAIN, |index| index["weight_map"][NAME] = json!("pytorch_model.bin")),
        ("file is a number", "into 3", |index| index["weight_map"][NAME] = json!(3)),
        (
            "absent shard",
            "of the 3 files that it names, \"gone.safetensors\" is not there",
            |index| {
                index["weight_map"][NAME] = json!("gone.safetensors");
            },
        ),
        ("map is a list", "weight_map is a list", |index| index["weight_map"] = json!([])),
        ("map is empty", "weight_map names no tensor", |index| index["weight_map"] = json!({})),
        ("no map", "weight_map is missing", |index| *index = json!({ "metadata": {} })),
    ];
    let name = |name: &str| format!("index: {name}");
    cases
        .map(|(what, trouble, spoil)| case(&name(what), INDEX, trouble, Spoil::Index(spoil)))
        .into()
}

/// Two files that are not what their index says.
fn shards() -> Vec<BadModel> {
    type Case = (&'static str, &'static str, &'static str, fn(&Path));
    let cases: [Case; 10] = [
        (
            "shard removed",
            INDEX,
            "of the 2 files that it names, \"model-00002-of-00002.safetensors\" is not",
            |m| {
                fs::remove_file(m.join(SHARDS[1])).expect("gone");
            },
        ),
        ("shard truncated", SHARDS[1], "fetch it again", |m| {
            let file = fs::read(m.join(SHARDS[1])).expect("a shard");
            tiny::write(m, SHARDS[1], &file[..file.len() - 1]);
        }),
        ("tensor in both", SHARDS[1], "is also in another file", |m| {
            tiny::write_part(m, SHARDS[1], &tiny::weights()[4..]);
        }),
        ("tensor in neither", SHARDS[1], "tensor \"model.norm.weight\" is missing", |m| {
            tiny::write_part(m, SHARDS[1], &tiny::weights()[5..10]);
        }),
        (
            "tensor in the wrong shard",
            SHARDS[0],
            "tensor \"model.layers.0.self_attn.v_proj.weight\" is missing",
            |m| {
                tiny::write_part(m, SHARDS[0], &tiny::weights()[..4]);
                tiny::write_part(m, SHARDS[1], &tiny::weights()[4..]);
            },
        ),
        ("tensor not in the index", SHARDS[1], "tensor \"extra\" is not in", |m| {
            let mut weights = tiny::weights().split_off(5);
            weights.push(("extra".to_owned(), vec![4]));
            tiny::write_part(m, SHARDS[1], &weights);
        }),
        ("shard is a directory", SHARDS[0], "not a regular file", |m| {
            fs::remove_file(m.join(SHARDS[0])).expect("gone");
            fs::create_dir(m.join(SHARDS[0])).expect("a directory");
        }),
        ("index with a tensor twice", INDEX, "key \"model.norm.weight\" is given twice", |m| {
            let text = fs::read_to_string(m.join(INDEX)).expect("the index");
            let twice =
                "\"weight_map\":{\"model.norm.weight\":\"model-00001-of-00002.safetensors\",";
            tiny::write(m, INDEX, text.replacen("\"weight_map\":{", twice, 1));
        }),
        ("index nested deeply", INDEX, "recursion limit", |m| {
            tiny::write(m, INDEX, format!("{{\"weight_map\":{}", "[".repeat(1 << 20)));
        }),
        ("index of 5 MiB", INDEX, "over 4 MiB", |m| tiny::write(m, INDEX, " ".repeat(5 << 20))),
    ];
    cases
        .map(|(name, file, trouble, spoil)| case(name, file, trouble, Spoil::Sharded(spoil)))
        .into()
}

/// Folders without weights that we read.
fn folders() -> Vec<BadModel> {
    fn instead_of_weights(folder: &Path, file: &str) {
        fs::remove_file(folder.join(SINGLE)).expect("gone");
        tiny::write(folder, file, "weights");
    }
    type Case = (&'static str, &'static str, fn(&Path));
    let cases: [Case; 12] = [
        ("no weights", "no such file", |m| instead_of_weights(m, "README.md")),
        ("an adapter", "adapter_model.safetensors is an adapter's", |m| {
            instead_of_weights(m, "adapter_config.json");
            tiny::write(m, "adapter_model.safetensors", "weights");
        }),
        (
            "shards without an index",
            "2 of 3 shards are there (number 2 is not), and their index",
            |m| {
                instead_of_weights(m, "model-00001-of-00003.safetensors");
                tiny::write(m, "model-00003-of-00003.safetensors", "weights");
                tiny::write(m, "consolidated.safetensors", "weights");
            },
        ),
        ("weights of another name", "model.fp16.safetensors is there, which is not a name", |m| {
            instead_of_weights(m, "model.fp16.safetensors");
        }),
        (
            "Meta's files in original/",
            "original/consolidated.00.pth is in Meta's own format",
            |m| {
                fs::create_dir(m.join("original")).expect("a directory");
                tiny::write(m, "original/params.json", "{}");
                instead_of_weights(m, "original/consolidated.00.pth");
            },
        ),
        ("a dangling link", "it is a link to ../../blobs/0000, which is not there", |m| {
            fs::remove_file(m.join(SINGLE)).expect("gone");
            #[cfg(unix)]
            std::os::unix::fs::symlink("../../blobs/0000", m.join(SINGLE)).expect("a link");
        }),
        ("GPTQ's integers", "quantised weights are not", |m| {
            let mut entries = tiny::entries(&tiny::weights());
            entries[2].dtype = "I32";
            let data_bytes = entries.last().map_or(0, |entry| entry.end);
            tiny::write(m, SINGLE, tiny::safetensors(&tiny::header(&entries), data_bytes));
        }),
        ("Meta's weights", "consolidated.00.pth is in Meta's own format", |m| {
            instead_of_weights(m, "consolidated.00.pth");
        }),
        ("pickled weights", "pytorch_model.bin is a pickle", |m| {
            instead_of_weights(m, "pytorch_model.bin");
        }),
        ("weights are a directory", "not a regular file", |m| {
            fs::remove_file(m.join(SINGLE)).expect("gone");
            fs::create_dir(m.join(SINGLE)).expect("a directory");
        }),
        ("a terabyte of zeros", "does not begin with {", |m| {
            let file = File::create(m.join(SINGLE)).expect("a file");
            file.set_len(1 << 40).expect("a sparse file");
        }),
        ("oversized header", "a header of 8388609 bytes is over 8388608", |m| {
            tiny::write(m, SINGLE, tiny::file(&[b'{'; (8 << 20) + 1], 0));
        }),
    ];
    cases.map(|(name, trouble, spoil)| case(name, SINGLE, trouble, Spoil::Folder(spoil))).into()
}

/// Good files that do not belong together.
fn against_the_config() -> Vec<BadModel> {
    type Case = (&'static str, &'static str, fn(&Path));
    let cases: [Case; 8] = [
        ("no head", "tensor lm_head.weight is missing and config.json says", |m| {
            tiny::write_config_with(m, "tie_word_embeddings", Some("false"));
        }),
        ("no embedding", "tensor model.embed_tokens.weight is missing and config.json says", |m| {
            let mut weights = tiny::weights();
            weights[0].0 = "lm_head.weight".to_owned();
            tiny::write_part(m, SINGLE, &weights);
            tiny::write_config_with(m, "tie_word_embeddings", Some("false"));
        }),
        ("tensor missing", "model.layers.0.mlp.up_proj.weight", |m| {
            let mut weights = tiny::weights();
            weights.remove(8);
            tiny::write_part(m, SINGLE, &weights);
        }),
        ("layer missing", "model.layers.1.", |m| {
            tiny::write_config_with(m, "num_hidden_layers", Some("2"));
        }),
        ("layer too many", "model.layers.1.input_layernorm.weight", |m| {
            let mut weights = tiny::weights();
            weights.push(("model.layers.1.input_layernorm.weight".to_owned(), vec![16]));
            tiny::write_part(m, SINGLE, &weights);
        }),
        ("a bias", "model.layers.0.self_attn.q_proj.bias", |m| {
            let mut weights = tiny::weights();
            weights.push(("model.layers.0.self_attn.q_proj.bias".to_owned(), vec![16]));
            tiny::write_part(m, SINGLE, &weights);
        }),
        ("wrong shape", "model.layers.0.self_attn.k_proj.weight", |m| {
            let mut weights = tiny::weights();
            weights[3].1 = vec![16, 8];
            tiny::write_part(m, SINGLE, &weights);
        }),
        ("other vocabulary", "model.embed_tokens.weight", |m| {
            tiny::write_config_with(m, "vocab_size", Some("33"));
        }),
    ];
    let case = |(name, trouble, spoil): Case| BadModel {
        found_by: FoundBy::Weights,
        ..case(name, SINGLE, trouble, Spoil::Folder(spoil))
    };
    cases.map(case).into()
}
