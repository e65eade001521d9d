//! The checkpoints that the repository holds load, and their tensors are what another reader finds
//! in the same files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bad_models::tiny;
use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, Dims};
use chaski::encoding::Float;
use chaski::model::{Weights, check_tie};
use chaski::source::Source;
use safetensors::SafeTensors;

/// The directories of tests/golden that hold a model.
fn golden_models() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(golden).expect("tests/golden");
    let mut models: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    models.sort();
    assert!(models.len() >= 6, "only {} golden models", models.len());
    models
}

#[test]
fn tensors_lie_where_the_files_say() {
    for model in golden_models() {
        let source = Source::Directory(model.clone());
        let checkpoint = Checkpoint::open(&source).expect("a checkpoint");
        let mut files: Vec<PathBuf> = fs::read_dir(&model)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("model"))
            })
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        files.sort();
        let mut seen = 0;
        for path in files {
            let file = fs::read(&path).expect("a file");
            for (name, expected) in SafeTensors::deserialize(&file).expect("safetensors").tensors()
            {
                let tensor = checkpoint.tensor(&name).expect("the tensor");
                assert_eq!(tensor.encoding.name(), expected.dtype().to_string());
                assert_eq!(tensor.shape, expected.shape());
                let bytes = checkpoint.bytes(tensor.offset, tensor.bytes);
                assert_eq!(bytes, expected.data(), "{name}");
                assert_eq!(bytes.as_ptr().addr() % tensor.encoding.row_bytes(1), 0);
                assert_eq!(checkpoint.path_of(&name), path.display().to_string());
                seen += 1;
            }
        }
        assert_eq!(checkpoint.tensors().len(), seen);
    }
}

#[test]
fn tensors_are_listed_in_the_order_in_which_they_lie() {
    for model in golden_models() {
        let checkpoint = Checkpoint::open(&Source::Directory(model)).expect("a checkpoint");
        checkpoint.read_ahead();
        let mut end = 0;
        for (name, tensor) in checkpoint.tensors() {
            assert!(tensor.offset >= end, "{name}");
            end = tensor.offset + tensor.bytes;
        }
        assert_eq!(end, checkpoint.total_bytes());
    }
}

#[test]
fn parameters_are_counted_as_the_files_hold_them() {
    for source in golden_models().into_iter().map(Source::Directory).chain([Source::Demo]) {
        let config = Config::load(&source).expect("a config");
        let checkpoint = Checkpoint::open(&source).expect("a checkpoint");
        let tied = checkpoint.tensor("lm_head.weight").is_none();
        let held: usize = checkpoint.tensors().map(|(_, tensor)| tensor.len()).sum();
        assert_eq!(config.parameters(tied), held as u64, "{source}");
    }
}

#[test]
fn the_demo_is_aligned_and_bf16() {
    let checkpoint = Checkpoint::open(&Source::Demo).expect("the demo");
    assert_eq!(checkpoint.encoding(), Float::Bf16.into());
    assert_eq!(checkpoint.bytes(0, 1).as_ptr().addr() % 64, 0);
    assert!(checkpoint.total_bytes() <= 4 << 20, "{} bytes", checkpoint.total_bytes());
}

/// As transformers reads them: `tie_word_embeddings` and the two matrices.
#[test]
fn a_head_is_tied_as_config_and_files_say() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let open = |path: &Path| Checkpoint::open(&Source::Directory(path.to_owned())).unwrap();
    let [tied, untied] =
        ["gqa4-hd64-bf16-tied", "gqa8-hd64-f16"].map(|name| open(&golden.join(name)));
    assert_eq!(check_tie(Some(true), &tied), Ok(None));
    assert!(check_tie(None, &tied).unwrap().unwrap().contains("there is no lm_head.weight"));
    let error = check_tie(Some(false), &tied).unwrap_err().to_string();
    assert!(error.contains("tensor lm_head.weight is missing"), "{error}");
    assert!(error.contains("tie_word_embeddings false"), "{error}");
    for says in [None, Some(false)] {
        assert_eq!(check_tie(says, &untied), Ok(None));
    }
    assert!(check_tie(Some(true), &untied).unwrap().unwrap().contains("differs"));
}

/// Two matrices of the same numbers are tied whatever; where the embedding is missing, the head is it.
#[test]
fn either_of_two_tied_matrices_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_good(folder.path());
    let source = Source::Directory(folder.path().to_owned());
    let mut weights = tiny::weights();
    weights.push(("lm_head.weight".to_owned(), weights[0].1.clone()));
    tiny::write_part(folder.path(), tiny::SINGLE, &weights);
    assert_eq!(check_tie(Some(true), &Checkpoint::open(&source).unwrap()), Ok(None));

    weights.remove(0);
    tiny::write_part(folder.path(), tiny::SINGLE, &weights);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let dims = Dims::new(&Config::load(&source).unwrap(), 1).unwrap();
    assert_eq!(check_tie(Some(true), &checkpoint), Ok(None));
    assert!(Weights::locate(&checkpoint, &dims).unwrap().tied());
    let error = check_tie(Some(false), &checkpoint).unwrap_err().to_string();
    assert!(error.contains("model.embed_tokens.weight is missing"), "{error}");
}

/// Each tensor has its own type, and most of the bytes give the checkpoint's.
#[test]
fn weights_may_be_of_several_types() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, types, exception) in [
        ("gqa5-hd80-bf16-f32-norms-head", "BF16 and F32", Some(Float::F32)),
        ("gqa2-hd96-bf16-f16", "BF16 and F16", Some(Float::F16)),
        ("mha7-hd32-bf16", "BF16", None),
    ] {
        let checkpoint = Checkpoint::open(&Source::Directory(golden.join(name))).unwrap();
        assert_eq!(
            (checkpoint.encoding(), checkpoint.types().as_str()),
            (Float::Bf16.into(), types)
        );
        assert_eq!(
            checkpoint.exception().map(|(_, tensor)| tensor.encoding),
            exception.map(Float::into)
        );
    }
}

/// Which of a folder's files are read is transformers' rule, and what is not is told.
#[test]
fn files_are_chosen_as_transformers_chooses_them() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_sharded(folder.path());
    let source = Source::Directory(folder.path().to_owned());
    let (files, passed_over) = (Checkpoint::files, || Checkpoint::passed_over(&source));
    let names = || files(&source).unwrap().names.into_iter().collect::<Vec<_>>();
    assert_eq!((names(), passed_over()), (tiny::SHARDS.map(str::to_owned).into(), None));

    // What the index does not name, and what other programs put beside it.
    for name in
        ["model-00003-of-00003.safetensors", "consolidated.safetensors", "expected.safetensors"]
    {
        tiny::write(folder.path(), name, "no weights");
    }
    for name in ["consolidated.00.pth", "pytorch_model.bin", "model.gguf"] {
        tiny::write(folder.path(), name, "no weights");
    }
    assert_eq!(names(), tiny::SHARDS);
    let told = passed_over().unwrap();
    assert!(
        told.contains(r#""consolidated.safetensors", "model-00003-of-00003.safetensors""#),
        "{told}"
    );
    assert!(!told.contains("expected"), "{told}");
    Checkpoint::open(&source).unwrap();

    // A link that leads nowhere is no file; a file of that name comes before the index.
    #[cfg(unix)]
    {
        let link = folder.path().join(tiny::SINGLE);
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert_eq!(names(), tiny::SHARDS);
        fs::remove_file(link).unwrap();
    }
    tiny::write_part(folder.path(), tiny::SINGLE, &tiny::weights());
    assert_eq!(names(), [tiny::SINGLE]);
    assert!(passed_over().unwrap().contains("beside model.safetensors are not read"));
    assert_eq!(Checkpoint::open(&source).unwrap().tensors().len(), tiny::weights().len());

    // One that is asked for comes before all.
    let chosen = |weights: &str| Source::Chosen {
        directory: folder.path().to_owned(),
        weights: weights.to_owned(),
    };
    let shards = files(&chosen(tiny::INDEX)).unwrap().names;
    assert!(shards.iter().eq(&tiny::SHARDS));
    assert_eq!(Checkpoint::open(&chosen(tiny::SHARDS[0])).unwrap().tensors().len(), 5);
    let error = files(&chosen("none.safetensors")).unwrap_err().to_string();
    assert!(error.contains("none.safetensors: no such file"), "{error}");
}

/// Adapters beside a whole model are told, since transformers would apply them.
#[test]
fn an_adapter_beside_a_model_is_told() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_good(folder.path());
    tiny::write(folder.path(), "adapter_config.json", "{}");
    let told = Checkpoint::passed_over(&Source::Directory(folder.path().to_owned())).unwrap();
    assert!(told.contains("adapter_config.json is an adapter's"), "{told}");
}
