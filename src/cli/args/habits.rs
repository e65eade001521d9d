//! What users of other programs are used to.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, CommandFactory};

use super::CommandLine;
use super::examples::as_help;

/// Options of llama.cpp and vLLM that have no like here, and what there is to say of each.
const HINTS: [(&[&str], &str); 12] = [
    (
        &["--n-predict", "--predict", "--num-predict", "--max-new-tokens", "--n-gen"],
        "how many tokens are generated: -n N",
    ),
    (
        &["--max-model-len", "--max-seq-len", "--n-ctx", "--ctx", "--num-ctx"],
        "how many tokens the context holds: --context N",
    ),
    (
        &["-hf", "-hfr", "--hf-repo", "--hf-file", "--model-path", "--model-url"],
        "a model at the hub is named by -m ORGANISATION/NAME[:FILE]",
    ),
    (
        &["-cnv", "-no-cnv", "--conversation", "-i", "--interactive", "-it"],
        "chaski chat is a conversation, chaski generate continues a text",
    ),
    (
        &["--quantization", "--quantize", "--load-in-4bit", "--load-in-8bit"],
        "weights are used as they are: a model in GGUF may be quantised, -m FILE.gguf",
    ),
    (
        &["--host", "--port", "--api-key"],
        "there is no server: chat and generate read standard input",
    ),
    (
        &["-ngl", "--n-gpu-layers", "--gpu-layers", "--gpu-memory-utilization"],
        "a model runs on the GPU as a whole, or on the CPU: --device cuda or cpu says which",
    ),
    (&["-fa", "--flash-attn"], "attention never writes its scores to memory: leave it out"),
    (
        &["-ctk", "-ctv", "--cache-type-k", "--cache-type-v", "--kv-cache-dtype"],
        "keys and values are of one type: --kv-type f16",
    ),
    (
        &["-b", "-ub", "--batch-size", "--ubatch-size", "--max-num-batched-tokens"],
        "how much of a prompt is computed at once: --prefill-chunk N",
    ),
    (
        &["--mlock", "--no-mmap", "--mmap", "-lm", "--load-mode"],
        "weights are mapped on the CPU and copied to a GPU: leave it out",
    ),
    (
        &["-sm", "-ts", "--split-mode", "--tensor-split", "--tensor-parallel-size", "-tp"],
        "--tensor-parallel N splits a model over N GPUs, --devices 0,1 names them",
    ),
];

/// The command line as it is read: wherever a value is expected, -1 is one and no option. Help ends with
/// examples.
pub fn command() -> clap::Command {
    fn with_examples(command: clap::Command, page: &str) -> clap::Command {
        let command = match as_help(page) {
            Some(examples) => command.after_long_help(examples),
            None => command,
        };
        command.mut_subcommands(|own| {
            let page = format!("{page}-{}", own.get_name());
            with_examples(own, &page)
        })
    }
    fn with_negative_numbers(command: clap::Command) -> clap::Command {
        let takes_them = |argument: &Arg| {
            argument.get_action().takes_values() && !argument.is_allow_hyphen_values_set()
        };
        let arguments = command.mut_args(|argument| match takes_them(&argument) {
            true => argument.allow_negative_numbers(true),
            false => argument,
        });
        arguments.mut_subcommands(with_negative_numbers)
    }
    with_examples(with_negative_numbers(CommandLine::command()), "chaski")
}

/// What to do instead, where what was not understood is an option of another program's. Those of several
/// letters after one dash may have been taken for others.
pub fn hint(words: &[OsString], error: &clap::Error) -> Option<String> {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unknown)) => unknown.split('=').next(),
        _ => None,
    };
    let is_short = |word: &&str| word.len() > 2 && !word.starts_with("--");
    let words = words.iter().take_while(|word| *word != "--");
    let short = words.filter_map(|word| word.to_str()?.split('=').next()).filter(is_short);
    unknown.into_iter().chain(short).find_map(|given| {
        let (_, hint) = HINTS.iter().find(|(names, _)| names.contains(&given))?;
        Some(format!("{given}: {hint}"))
    })
}
