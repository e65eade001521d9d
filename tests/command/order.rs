//! What can be checked is checked before weights are made, loaded or computed with.

use std::fs;

use tempfile::tempdir;

use crate::process::chaski;

/// 2.3 GiB of weights, and no tokenizer.
const LARGE: &str = "synthetic:llama3.2-1b";

/// Each ends before the line that tells of the model which is about to be loaded.
#[test]
fn what_is_wrong_is_told_before_anything_is_loaded() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (short, unwritable) = (at("short.txt"), at("none/x"));
    fs::write(&short, "a few words").unwrap();
    let long = vec!["1"; 2000].join(",");
    let demo = "demo";
    for (model, arguments, status, told) in [
        (LARGE, &["generate", "-f", "/no/such/file"][..], 1, "cannot read /no/such/file"),
        (LARGE, &["generate", "-p", "a"], 1, "tokenizer"),
        (LARGE, &["generate", "--ids", "1,128256", "--print-ids"], 1, "token id 128256"),
        (LARGE, &["generate", "--ids", "1,x", "--print-ids"], 1, "\"x\" is not a token id"),
        (LARGE, &["generate", "--ids", "1", "--print-ids", "--top-p", "2"], 2, "--top-p is 2"),
        (LARGE, &["generate", "--ids", "1,2", "--print-ids", "-c", "1"], 1, "2 tokens and the"),
        (
            LARGE,
            &["generate", "--ids", "1", "--print-ids", "--stop-id", "128256"],
            2,
            "below 128256",
        ),
        (demo, &["generate", "--ids", &long], 1, "2000 tokens and the context holds 1024"),
        (demo, &["generate", "--ids", ","], 1, "the prompt is empty"),
        (LARGE, &["chat", "-f", "/no/such/file"], 1, "cannot read /no/such/file"),
        (LARGE, &["chat", "-p", "a"], 1, "tokenizer"),
        (demo, &["chat", "-p", "a", "-c", "4"], 1, "and the context holds 4"),
        (demo, &["chat", "-p", "a", "--min-p", "3"], 2, "--min-p is 3"),
        (LARGE, &["logits", "--ids", "1,2", "--out", &unwritable], 1, "cannot write"),
        (LARGE, &["logits", "--ids", "128256", "--out", "/dev/null"], 1, "token id 128256"),
        (LARGE, &["perplexity", "-f", "/no/such/file"], 1, "cannot read /no/such/file"),
        (demo, &["perplexity", "-f", &short], 1, "give a longer one"),
        (demo, &["perplexity", "-f", &short, "-c", "9", "--stride", "99"], 1, "lower --stride"),
        ("demo,synthetic:none", &["bench", "-r", "1"], 1, "synthetic:none: the known shapes"),
        (LARGE, &["bench", "-d", "2000000"], 1, "a context of 2000640 tokens needs"),
        (LARGE, &["bench", "--profile", "--trace", &unwritable], 1, "cannot write"),
        (LARGE, &["kernels", "bench", "mma_peak", "--device", "cpu"], 2, "no step of this model"),
        (LARGE, &["kernels", "bench", "--device", "cpu", "--tune", &unwritable], 1, "cannot write"),
    ] {
        let ask = [arguments, &["-m", model]].concat();
        let (found, printed, errors) = chaski(&ask, &[]);
        assert_eq!((found, &*printed), (Some(status), ""), "{ask:?}: {errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("chaski: ") && last.contains(told), "{ask:?}: {errors}");
        assert!(!errors.contains("KV cache ") && !errors.contains("ceilings"), "{ask:?}: {errors}");
    }
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
