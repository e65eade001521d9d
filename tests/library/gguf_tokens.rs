//! Tokens of GGUF files: merged as their pre-tokenizer or their scores say, or refused by name.

use chaski::source::Source;
use chaski::tokenizer::Tokenizer;
use tempfile::tempdir;

use crate::gguf_file::{Gguf, f32, list, text, texts, truth, u32};

/// A file's tokens and what they make of a text.
fn tokenizer(gguf: &Gguf) -> chaski::Result<Tokenizer> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    gguf.write(&path);
    Tokenizer::load(&Source::find(path.to_str().unwrap())?)
}

/// As GPT-2 writes bytes: `Ġ` is a space.
fn of_bytes(pre: &str) -> Gguf {
    let mut tokens: Vec<String> = ["<|begin|>", "<|end|>", "<extra>"].map(str::to_owned).to_vec();
    let mut kinds = vec![3, 3, 4];
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let others = (0..256 - 188).map(|i| char::from_u32(256 + i).unwrap());
    tokens.extend(printable.chain(others).map(String::from));
    tokens.extend(["he", "ll", "hell", "hello", "Ġw", "12", "123"].map(str::to_owned));
    kinds.resize(tokens.len(), 1);
    let mut gguf = Gguf::of_ids();
    gguf.set("tokenizer.ggml.model", text("gpt2"));
    gguf.set("tokenizer.ggml.pre", text(pre));
    gguf.set(
        "tokenizer.ggml.tokens",
        texts(&tokens.iter().map(String::as_str).collect::<Vec<_>>()),
    );
    gguf.set("tokenizer.ggml.token_type", list(4, kinds.into_iter().map(u32)));
    gguf.set(
        "tokenizer.ggml.merges",
        texts(&["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3"]),
    );
    gguf.set("tokenizer.ggml.bos_token_id", u32(0));
    gguf.set("tokenizer.ggml.eos_token_id", u32(1));
    gguf
}

#[test]
fn tokens_of_bytes_are_merged_as_their_file_says() {
    let tokens = |tokenizer: &Tokenizer, text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        ids.iter().map(|id| tokenizer.decode(&[*id], true).unwrap()).collect()
    };
    let llama3 = tokenizer(&of_bytes("llama-bpe")).unwrap();
    assert_eq!(
        tokens(&llama3, "hello w<|end|>123<extra>"),
        ["hello", " w", "<|end|>", "123", "<extra>"]
    );
    assert_eq!(llama3.surround(vec![7]), [0, 7], "Llama 3's puts BOS before a text by itself");
    let digits = tokenizer(&of_bytes("smollm")).unwrap();
    assert_eq!(tokens(&digits, "hello 123"), ["hello", " ", "1", "2", "3"]);
    assert_eq!(digits.surround(vec![7]), [7]);
    for pre in ["command-r", "qwen2", "tekken", "deepseek-llm", "deepseek-coder"] {
        let split = tokenizer(&of_bytes(pre)).unwrap();
        assert_eq!(tokens(&split, "hello 123"), ["hello", " ", "1", "2", "3"], "{pre}");
        let has_bos = split.surround(vec![7]) == [0, 7];
        assert_eq!(has_bos, pre == "tekken");
    }
    let thousands = tokenizer(&of_bytes("default")).unwrap();
    assert_eq!(tokens(&thousands, "hello 1231"), ["hello", " ", "123", "1"]);
    let mut both = of_bytes("gpt-2");
    both.set("tokenizer.ggml.add_bos_token", truth(true));
    both.set("tokenizer.ggml.add_eos_token", truth(true));
    assert_eq!(tokenizer(&both).unwrap().surround(vec![7]), [0, 7, 1]);
}

#[test]
fn pieces_are_joined_by_their_scores_and_spelled_in_bytes_where_there_is_none() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut kinds = vec![2, 3, 3];
    kinds.resize(tokens.len(), 6);
    let pieces = [("▁h", -1.0), ("el", -2.0), ("lo", -3.0), ("▁hel", -4.0), ("ello", -0.5)];
    tokens.extend(pieces.map(|(piece, _)| piece.to_owned()));
    tokens.extend(["▁", "h", "e", "l", "o"].map(str::to_owned));
    let mut scores = vec![0.0; 259];
    scores.extend(pieces.map(|(_, score)| score));
    scores.extend([-10.0, -11.0, -12.0, -13.0, -14.0]);
    kinds.resize(tokens.len(), 1);
    let mut gguf = Gguf::of_ids();
    gguf.set("tokenizer.ggml.model", text("llama"));
    gguf.set(
        "tokenizer.ggml.tokens",
        texts(&tokens.iter().map(String::as_str).collect::<Vec<_>>()),
    );
    gguf.set("tokenizer.ggml.scores", list(6, scores.into_iter().map(f32)));
    gguf.set("tokenizer.ggml.token_type", list(4, kinds.into_iter().map(u32)));
    gguf.set("tokenizer.ggml.bos_token_id", u32(1));
    gguf.set("tokenizer.ggml.eos_token_id", u32(2));
    gguf.set("tokenizer.ggml.unknown_token_id", u32(0));
    let tokenizer = tokenizer(&gguf).unwrap();
    let of = |token: &str| tokens.iter().position(|other| other == token).unwrap() as u32;
    // The best pair first: ▁h, then el and lo, whose ello is better than ▁hel.
    assert_eq!(tokenizer.encode("hello").unwrap(), [of("▁h"), of("ello")]);
    assert_eq!(tokenizer.encode("é").unwrap(), [of("▁"), of("<0xC3>"), of("<0xA9>")]);
    assert_eq!(tokenizer.surround(vec![9]), [1, 9]);
    assert_eq!(tokenizer.decode(&[of("▁h"), of("ello")], true).unwrap(), "hello");
}

#[test]
fn what_is_wrong_with_tokens_is_told() {
    type Case = (&'static str, fn(&mut Gguf), &'static str);
    let cases: [Case; 5] = [
        (
            "pre",
            |g| g.set("tokenizer.ggml.pre", text("new-bpe")),
            "\"new-bpe\", which is not supported",
        ),
        (
            "no pre",
            |g| g.keys.retain(|(key, _)| key != "tokenizer.ggml.pre"),
            "convert the model again",
        ),
        ("model", |g| g.set("tokenizer.ggml.model", text("t5")), "gpt2 and llama are supported"),
        ("types", |g| g.set("tokenizer.ggml.token_type", list(4, [u32(1)])), "as long as tokens"),
        ("merges", |g| g.set("tokenizer.ggml.merges", texts(&["h é"])), "is not in the vocabulary"),
    ];
    for (name, change, expected) in cases {
        let mut gguf = of_bytes("llama-bpe");
        change(&mut gguf);
        let message = tokenizer(&gguf).err().unwrap().to_string();
        assert!(
            message.contains("model.gguf: ") && message.contains(expected),
            "{name}: {message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}
