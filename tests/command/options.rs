//! Options: what is said of them, of those that play no part, and of others' names for them.

use std::fs;

use serde_json::Value;
use tempfile::tempdir;

use crate::process::chaski;

/// Standard output and standard error of what must succeed.
fn run(arguments: &[&str]) -> (String, String) {
    let (status, printed, errors) = chaski(arguments, &[]);
    assert_eq!(status, Some(0), "{arguments:?}: {errors}");
    (printed, errors)
}

#[test]
fn help_begins_with_the_commands_own_options_and_ends_with_examples() {
    for command in
        [&["generate"][..], &["chat"], &["bench"], &["kernels", "check"], &["perplexity"]]
    {
        let (help, _) = run(&[command, &["--help"]].concat());
        let at = |part: &str| help.find(part).unwrap_or_else(|| panic!("{part}: {help}"));
        assert!(at("\nOptions:\n") < at("--emulate <N>"), "{help}");
        assert!(at("--device <DEVICE>") < at("\nAny command:\n"), "{help}");
        assert!(at("\nAny command:\n") < at("--emulate <N>\n"), "{help}");
        assert!(at("--quiet") < at("\nExamples:\n  chaski "), "{help}");
    }
    let (help, _) = run(&["generate", "--help"]);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("Temperature: divides the logits, so the higher it is, the flatter"));
    let sampling = &help[help.find("Sampling:").unwrap()..help.find("Stopping:").unwrap()];
    let said = sampling.matches("[default: generation_config.json's, else ").count();
    assert_eq!((said, sampling.matches("--").count()), (7, 10), "{sampling}");
}

#[test]
fn what_plays_no_part_in_a_greedy_choice_is_told() {
    let ask = |more: &[&str]| run(&[&["generate", "-p", "27 + 58 = ", "-n", "2"], more].concat());
    let told = |more: &[&str]| {
        let (_, errors) = ask(more);
        let line = errors.lines().find(|line| line.contains(" no effect at temperature 0"));
        line.map(|line| line.split(" ha").next().unwrap().to_owned())
    };
    assert_eq!(told(&["--top-k", "5", "--seed", "3"]).as_deref(), Some("--top-k, --seed"));
    assert_eq!(told(&["--min-p", "0.1", "--temp", "0"]).as_deref(), Some("--min-p"));
    assert_eq!(told(&["--min-p", "0.1", "--temp", "0.5"]), None);
    assert_eq!(told(&["--repeat-penalty", "1.1"]), None);
    assert_eq!(told(&[]), None);
}

#[test]
fn more_threads_than_run_at_once_are_not_started() {
    let (text, errors) = run(&["generate", "-p", "27 + 58 = ", "-n", "2", "-t", "1000"]);
    assert_eq!(text, "85\n");
    assert_eq!(errors.matches("--threads 1000: this machine runs ").count(), 1, "{errors}");
}

#[test]
fn nonsense_is_refused_and_others_names_lead_on() {
    for (arguments, told) in [
        (&["generate", "-p", "a", "--stop", ""][..], "would end every answer at once"),
        (&["generate", "-p", "a", "--stop-id", "999999"], "the model's ids are below "),
        (&["bench", "--n-predict", "5"], "error: --n-predict: how many tokens are generated: -n N"),
        (&["generate", "-p", "a", "--max-model-len", "5"], "holds: --context N"),
        (&["generate", "-p", "a", "-ngl", "5"], "error: -ngl: a model runs on the GPU as a whole"),
        (&["chat", "--port", "80"], "there is no server"),
        (&["kernels", "source", "rmsnorm"], "a similar value exists: 'rms_norm'"),
        (&["kernels", "check", "atend_decode"], "a similar value exists: 'attend_decode'"),
    ] {
        let (status, printed, errors) = chaski(arguments, &[]);
        assert_eq!((status, &*printed), (Some(2), ""), "{arguments:?}: {errors}");
        assert!(errors.contains(told), "{arguments:?}: {errors}");
    }
    let (status, _, errors) = chaski(&["inspect", "-m", "synthetic:llama3-8"], &[]);
    assert_eq!(status, Some(1));
    assert!(errors.ends_with("; did you mean llama3-8b?\n"), "{errors}");
    // What is understood is understood, whatever else is wrong.
    let (_, _, errors) = chaski(&["generate", "-p", "a", "--n-predict", "x"], &[]);
    assert!(errors.contains("invalid value 'x'"), "{errors}");
}

#[test]
fn quiet_leaves_errors_alone() {
    let (text, errors) = run(&["generate", "-q", "-p", "27 + 58 = ", "--temp", "1", "-n", "1"]);
    assert!(!text.is_empty() && errors.is_empty(), "{errors}");
    let (_, errors) =
        run(&["bench", "--quiet", "-m", "synthetic:tiny", "-p", "2", "-n", "2", "-r", "1"]);
    assert_eq!(errors, "");
    let (status, _, errors) =
        chaski(&["--quiet", "generate", "-m", "/no/such/model", "-p", "a"], &[]);
    assert_eq!((status, errors.lines().count()), (Some(1), 1), "{errors}");
}

#[test]
fn a_text_to_tokenize_may_be_a_prompt() {
    assert_eq!(
        run(&["tokenize", "-p", "-1 <|eot_id|>"]).0,
        run(&["tokenize", "--", "-1 <|eot_id|>"]).0
    );
    assert_eq!(chaski(&["tokenize", "-p", "a", "b"], &[]).0, Some(2));
}

#[test]
fn the_perplexity_so_far_is_a_line_of_json() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "What is 2 + 3? The red box holds 17. ".repeat(12)).unwrap();
    let ask = ["perplexity", "-f", text.to_str().unwrap(), "-c", "32"];
    let (printed, errors) = run(&[&ask[..], &["--json"]].concat());
    let lines: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, windows) = lines.split_last().unwrap();
    assert!(windows.len() > 1);
    for (i, line) in windows.iter().enumerate() {
        // The second half of each window but for its last token.
        assert_eq!((&line["window"], &line["tokens"]), (&(i + 1).into(), &(15 * (i + 1)).into()));
        assert!(line["perplexity"].as_f64().unwrap() > 1.0);
    }
    let so_far = windows.last().unwrap();
    assert_eq!(
        (&last["perplexity"], &last["windows"]),
        (&so_far["perplexity"], &windows.len().into())
    );
    assert_eq!((&last["model"], &last["window_tokens"]), (&"demo".into(), &32.into()));
    let in_words = format!("perplexity {:.4} +/- ", last["perplexity"].as_f64().unwrap());
    assert!(run(&ask).0.starts_with(&in_words));
    assert!(
        errors.contains(&format!("tokens scored in {} windows of 32", windows.len())),
        "{errors}"
    );
    let (_, errors) = run(&[&ask[..], &["--chunks", "1"]].concat());
    assert!(errors.contains("15 tokens scored in 1 window of 32"), "{errors}");
}

#[test]
fn devices_are_listed_for_programs_too() {
    let (text, _) = run(&["devices", "--json", "--emulate", "2"]);
    let devices: Vec<Value> = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> =
        devices.iter().map(|device| device["device"].as_str().unwrap()).collect();
    assert_eq!(names, ["cpu", "cuda:0", "cuda:1"]);
    assert!(devices[0]["threads"].as_u64().unwrap() > 0);
    assert_eq!(
        (&devices[1]["emulated"], &devices[1]["compute_capability"]),
        (&true.into(), &"9.0".into())
    );
    assert!(devices[2]["free_bytes"].as_u64() <= devices[2]["total_bytes"].as_u64());
}

#[test]
fn one_is_no_plural() {
    let (_, errors) = run(&[
        "generate",
        "-m",
        "synthetic:tiny",
        "--layers",
        "1",
        "--ids",
        "1",
        "-n",
        "2",
        "-t",
        "1",
        "--print-ids",
    ]);
    for words in
        [": 1 layer, ", ", 1 thread)", "prefill      1 token in ", "decode       1 token in "]
    {
        assert!(errors.contains(words), "{words}: {errors}");
    }
}

#[test]
fn pages_have_examples_environment_and_files_and_shells_complete_kernels() {
    let folder = tempdir().unwrap();
    run(&["man", folder.path().to_str().unwrap()]);
    for (page, example) in [
        ("chaski.1", "chaski chat\\fR"),
        ("chaski-chat.1", "\\-\\-system"),
        ("chaski-kernels-check.1", "chaski kernels check rms_norm"),
    ] {
        let page = fs::read_to_string(folder.path().join(page)).unwrap();
        let [examples, environment, files] = [".SH EXAMPLES\n", ".SH ENVIRONMENT\n", ".SH FILES\n"]
            .map(|title| page.split(title).nth(1).unwrap_or_else(|| panic!("{title}: {page}")));
        assert!(examples.split(".SH").next().unwrap().contains(example), "{examples}");
        for name in ["CHASKI_EMULATE", "HF_TOKEN", "XDG_STATE_HOME"] {
            assert!(environment.split(".SH").next().unwrap().contains(name), "{environment}");
        }
        assert!(!environment.contains("CHASKI_MUTATIONS"), "it is of tests");
        assert!(files.contains("chaski/history"), "{files}");
        assert!(!page.contains("SH EXTRA"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).0.contains("gate_up_swiglu_hopper"), "{shell}");
    }
}
