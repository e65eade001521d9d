//! Command lines to begin with, for help and manual pages.

/// A command line and what it does.
type Example = (&'static str, &'static str);

/// By the name of the command's page.
const EXAMPLES: [(&str, &[Example]); 15] = [
    (
        "chaski",
        &[
            ("chaski chat", "talk to the built-in demo model"),
            ("chaski pull HuggingFaceTB/SmolLM2-135M-Instruct", "download a model"),
            ("chaski chat -m HuggingFaceTB/SmolLM2-135M-Instruct", "and talk to it"),
        ],
    ),
    (
        "chaski-generate",
        &[
            (r#"chaski generate -p "27 + 58 = " -n 1 --json --logprobs 5"#, "the likeliest tokens"),
            (r#"chaski generate -p "Once" --temp 0.8 --top-p 0.95 --seed 7"#, "a draw to repeat"),
            ("chaski generate -m ./llama --ids 128000,9906 --print-ids", "ids in, ids out"),
        ],
    ),
    (
        "chaski-chat",
        &[
            ("chaski chat -m meta-llama/Llama-3.2-1B-Instruct", "a conversation; /help in it"),
            (r#"chaski chat -p "What is 27 + 58?""#, "one question"),
            ("chaski chat --system \"Answer in verse\" -f question.txt", "a question in a file"),
        ],
    ),
    (
        "chaski-serve",
        &[
            ("chaski serve", "the demo model at http://127.0.0.1:8080"),
            ("chaski serve -m meta-llama/Llama-3.2-1B-Instruct --sequences 2", "two at a time"),
            ("chaski serve --host 0.0.0.0 --api-key-file key.txt", "for other machines"),
        ],
    ),
    (
        "chaski-logits",
        &[("chaski logits -f prompt.txt -o logits.safetensors", "logits of every position")],
    ),
    (
        "chaski-perplexity",
        &[
            ("chaski perplexity -m ./llama -f wiki.test.raw -c 512", "as llama.cpp measures it"),
            ("chaski perplexity -m ./llama -f wiki.test.raw --chunks 8 --json", "a first look"),
        ],
    ),
    (
        "chaski-bench",
        &[
            ("chaski bench -m ./llama -p 512 -n 128 -d 0,4096", "speed, also deep in a context"),
            ("chaski bench -m synthetic:llama3.2-1b --profile", "where a step's time goes"),
            ("chaski bench -m ./llama --startup", "where the time to the second token goes"),
        ],
    ),
    (
        "chaski-tokenize",
        &[
            (r#"chaski tokenize -m ./llama -p "Hello""#, "the ids of a text"),
            ("chaski tokenize -m ./llama --chat messages.json", "the ids of a conversation"),
        ],
    ),
    ("chaski-detokenize", &[("chaski detokenize -m ./llama 128000,9906", "the text of ids")]),
    (
        "chaski-inspect",
        &[("chaski inspect -m synthetic:llama3.1-70b --memory 80G", "how many GPUs it takes")],
    ),
    (
        "chaski-synthesize",
        &[(
            "chaski synthesize -m synthetic:llama3.2-1b -o ./weights",
            "weights without a download",
        )],
    ),
    (
        "chaski-quantize",
        &[("chaski quantize -m ./llama --type q8_0 -o llama-Q8_0.gguf", "half of 16-bit weights")],
    ),
    (
        "chaski-diff",
        &[(r#"chaski diff --emulate 1 -p "Hello""#, "the kernels against the CPU, op by op")],
    ),
    (
        "chaski-kernels-check",
        &[
            ("chaski kernels check rms_norm --emulate 1", "a kernel, without a GPU"),
            (
                "chaski kernels check --source mine.cu --emulate 1 --sanitize all",
                "one's own, for races too",
            ),
        ],
    ),
    (
        "chaski-kernels-bench",
        &[
            ("chaski kernels bench matmul", "at the sizes of Llama 3 8B"),
            ("chaski kernels bench --source mine.cu --against built-in", "one's own beside ours"),
        ],
    ),
];

/// Of the command whose manual page has this name.
pub fn examples(page: &str) -> &'static [Example] {
    EXAMPLES.iter().find(|(name, _)| *name == page).map_or(&[], |(_, examples)| examples)
}

/// As they stand at the end of a command's help; nothing, where there are none.
pub fn as_help(page: &str) -> Option<String> {
    let examples = examples(page);
    let longest = examples.iter().map(|(line, _)| line.len()).max()?;
    let lines = examples.iter().map(|(line, what)| format!("  {line:<longest$}  {what}"));
    Some(format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::command;

    /// The words of a command line that has double quotes and no other.
    fn words(line: &str) -> Vec<String> {
        let part = |(i, part): (usize, &str)| -> Vec<String> {
            match i % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            }
        };
        line.split('"').enumerate().flat_map(part).collect()
    }

    #[test]
    fn every_example_is_of_its_command_and_is_understood() {
        for (page, examples) in EXAMPLES {
            for (line, _) in examples {
                let found = command().try_get_matches_from(words(line));
                assert!(found.is_ok(), "{line}: {}", found.unwrap_err());
                assert!(line.replacen(' ', "-", 2).starts_with(page), "{page}: {line}");
            }
        }
    }
}
