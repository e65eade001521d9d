//! What users of other programs are used to.

use std::ffi::OsString;

use clap::{Arg, CommandFactory};

use super::Arguments;

/// Options of llama.cpp and vLLM that have no like here, and what there is to say of each.
const HINTS: [(&[&str], &str); 6] = [
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

/// The command line as it is read: wherever a value is expected, -1 is one and no option.
pub fn command() -> clap::Command {
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
    with_negative_numbers(Arguments::command())
}

/// What to do instead, where one of the words is an option of another program's.
pub fn hint(words: &[OsString]) -> Option<String> {
    words.iter().filter_map(|word| word.to_str()?.split('=').next()).find_map(|given| {
        let (_, hint) = HINTS.iter().find(|(names, _)| names.contains(&given))?;
        Some(format!("{given}: {hint}"))
    })
}
