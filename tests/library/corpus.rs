//! The fuzz targets' corpus and mutations of it, through the targets' own entry points.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::{Index, select};

#[path = "../fuzz/entry.rs"]
mod entry;

use entry::TARGETS;

/// Every target's seeds, by its place in [`TARGETS`].
static CORPORA: LazyLock<Vec<Vec<Vec<u8>>>> =
    LazyLock::new(|| TARGETS.iter().map(|(name, _)| corpus(name)).collect());

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(corpora.join(target)).expect("a corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// One step away from an input.
#[derive(Debug, Clone)]
enum Mutation {
    Set(Index, u8),
    Flip(Index, u8),
    Remove(Index, usize),
    /// Copies some bytes from one place to another.
    Copy(Index, Index, usize),
    Insert(Index, &'static str),
    Truncate(Index),
}

/// What JSON, configs, headers and templates are made of, and what breaks them.
const PIECES: [&str; 36] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0000",
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e999",
    "0.5",
    "18446744073709551615",
    "99999999999999999999",
    "[[[[[[[[",
    "{\"a\":",
    "\"a\":1,",
    "..",
    "/",
    "BF16",
    "F32",
    "llama3",
    "\u{2028}",
    "\n",
    "{{ ns.a }}",
    "{% for x in ns.a %}",
    "{% endfor %}",
    "{% set ns.a = [ns.a, ns.a] %}",
    "|join(ns.a)",
    "<|eot_id|>",
    "(a+)+$",
    "{1000}",
];

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (place(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (place(), 1..40_usize).prop_map(|(at, count)| Mutation::Remove(at, count)),
        (place(), place(), 1..80_usize)
            .prop_map(|(from, to, count)| Mutation::Copy(from, to, count)),
        (place(), select(&PIECES[..])).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        place().prop_map(Mutation::Truncate),
    ]
}

impl Mutation {
    fn apply(&self, input: &mut Vec<u8>) {
        let len = input.len();
        let place = |index: &Index| index.index(len + 1);
        let span = |index: &Index, count: usize| place(index)..(place(index) + count).min(len);
        match self {
            Mutation::Set(at, byte) => {
                input.iter_mut().skip(place(at)).take(1).for_each(|b| *b = *byte)
            }
            Mutation::Flip(at, bit) => {
                input.iter_mut().skip(place(at)).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            Mutation::Remove(at, count) => drop(input.drain(span(at, *count))),
            Mutation::Copy(from, to, count) => {
                let copied = input[span(from, *count)].to_vec();
                input.splice(place(to)..place(to), copied);
            }
            Mutation::Insert(at, piece) => drop(input.splice(place(at)..place(at), piece.bytes())),
            Mutation::Truncate(at) => input.truncate(place(at)),
        }
    }
}

#[test]
fn every_seed_runs() {
    for ((name, run), seeds) in TARGETS.iter().zip(&*CORPORA) {
        assert!(seeds.len() >= 5, "{name} has {} seeds", seeds.len());
        seeds.iter().for_each(|seed| run(seed));
    }
}

/// Every how many cases a target is run: some write files, and run what these say.
fn rarity(target: &str) -> usize {
    if matches!(target, "gguf" | "tokenizer" | "chat_template") { 20 } else { 1 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn mutated_seeds_are_read_or_refused(
        seed in any::<Index>(),
        turn in any::<Index>(),
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        for ((name, run), seeds) in TARGETS.iter().zip(&*CORPORA) {
            if turn.index(rarity(name)) != 0 {
                continue;
            }
            let mut input = seed.get(seeds).clone();
            for mutation in &mutations {
                mutation.apply(&mut input);
            }
            run(&input);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        turn in any::<Index>(),
        input in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        for (name, run) in TARGETS {
            if turn.index(rarity(name)) == 0 {
                run(&input);
            }
        }
    }
}
