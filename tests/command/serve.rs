//! `chaski serve`: answers are those of the commands, alone and side by side, cached and not

use std::thread;

use serde_json::{Value, json};

use crate::http::{CHAT, COMPLETIONS, Served, joined, question, said};
use crate::process::chaski;

/// What the command prints.
fn printed(arguments: &[&str]) -> String {
    let (status, output, errors) = chaski(arguments, &[]);
    assert_eq!(status, Some(0), "{errors}");
    output
}

/// A text as a command prints it: its line ends.
fn line(text: &str) -> String {
    if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

#[test]
fn texts_are_those_of_the_commands() {
    let served = Served::new(&[]);
    for text in ["What is 27 + 58?", "Ana's code is 482. Ben's code is 913. What is Ben's code?"] {
        let own = printed(&["chat", "-p", text, "--temp", "0"]);
        let answer = served.ask(CHAT, &question(text));
        assert_eq!(line(said(&answer)), own);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(line(&joined(&served.stream(CHAT, &question(text)))), own);
    }
    for seed in ["1", "7"] {
        let draw = ["--temp", "2", "--top-k", "9", "--min-p", "0.01", "-s", seed, "-n", "40"];
        let penalties = ["--repeat-penalty", "1.1", "--presence-penalty", "0.3"];
        let draw = [&draw[..], &penalties].concat();
        let own = printed(&[&["generate", "-p", "The red box"][..], &draw].concat());
        let asked = json!({
            "prompt": "The red box", "temperature": 2, "top_k": 9, "min_p": 0.01, "max_tokens": 40,
            "seed": seed.parse::<u64>().unwrap(), "repeat_penalty": 1.1, "presence_penalty": 0.3,
        });
        // The second time it is in the cache.
        assert_eq!(line(said(&served.ask(COMPLETIONS, &asked))), own);
        assert_eq!(line(said(&served.ask(COMPLETIONS, &asked))), own);
        assert_eq!(line(&joined(&served.stream(COMPLETIONS, &asked))), own);
        let own = printed(&[&["chat", "-p", "What is 1 + 1?"][..], &draw].concat());
        let mut chat = asked.clone();
        chat["messages"] = json!([{ "role": "user", "content": "What is 1 + 1?" }]);
        assert_eq!(line(said(&served.ask(CHAT, &chat))), own);
    }
}

#[test]
fn answers_side_by_side_are_those_of_answers_alone() {
    let alone = Served::new(&["--sequences", "1"]);
    let asked: Vec<Value> = (0..8)
        .map(|i| {
            let prompt = format!("{} The box {i} is", "red and blue ".repeat(9 * i));
            let temperature = i % 3;
            json!({ "prompt": prompt, "temperature": temperature, "seed": i, "max_tokens": 60,
                    "ignore_eos": true })
        })
        .collect();
    let expected: Vec<Value> = asked.iter().map(|body| alone.ask(COMPLETIONS, body)).collect();
    for sequences in ["3", "8"] {
        let together = Served::new(&["--sequences", sequences, "--prefill-chunk", "16"]);
        let found: Vec<Value> = thread::scope(|scope| {
            let together = &together;
            let ask = |body| scope.spawn(move || together.ask(COMPLETIONS, body));
            let threads: Vec<_> = asked.iter().map(ask).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(said(found), said(expected), "{sequences}");
        }
        assert_eq!(together.metric("chaski_generated_tokens_total"), 480.0);
    }
}

/// There a token alone has other bits than one of a prompt, and the device runs ahead where it can.
#[test]
fn a_gpu_gives_the_same_alone_side_by_side_and_from_the_cache() {
    let asked = |i: u64| {
        let prompt =
            ["27 + 58 = ", "27 + 58 = 85, and", "The red box", "Ben's code is 9"][i as usize];
        json!({ "prompt": prompt, "max_tokens": 5 + 2 * i, "temperature": i, "seed": i, "ignore_eos": true })
    };
    let expected: Vec<String> = (0..4)
        .map(|i| {
            let body = asked(i);
            let (tokens, temperature) = (body["max_tokens"].to_string(), i.to_string());
            let prompt = ["generate", "--emulate", "1", "-p", body["prompt"].as_str().unwrap()];
            let draw = ["-n", &tokens, "--temp", &temperature, "-s", &temperature, "--ignore-eos"];
            printed(&[&prompt[..], &draw].concat())
        })
        .collect();
    let served = Served::new(&["--emulate", "1", "--sequences", "2"]);
    for _ in 0..2 {
        thread::scope(|scope| {
            for i in 0..4 {
                let (served, expected) = (&served, &expected);
                scope.spawn(move || {
                    let answer = served.ask(COMPLETIONS, &asked(i));
                    assert_eq!(line(said(&answer)), expected[i as usize]);
                });
            }
        });
    }
    assert!(served.metric("chaski_cached_tokens_total") > 0.0);
}

#[test]
fn what_is_in_the_cache_is_not_computed_again() {
    let served = Served::new(&["--sequences", "2"]);
    let first = json!({ "prompt": "One two three four five six seven eight", "max_tokens": 8,
                        "ignore_eos": true, "temperature": 0 });
    let usage = |answer: &Value| {
        let usage = &answer["usage"];
        let number = |value: &Value| value.as_u64().unwrap();
        (number(&usage["prompt_tokens"]), number(&usage["prompt_tokens_details"]["cached_tokens"]))
    };
    let answer = served.ask(COMPLETIONS, &first);
    let (tokens, cached) = usage(&answer);
    assert_eq!((cached, answer["usage"]["completion_tokens"].as_u64()), (0, Some(8)));
    assert_eq!(answer["usage"]["total_tokens"], tokens + 8);
    assert_eq!(usage(&served.ask(COMPLETIONS, &first)), (tokens, tokens - 2));
    // Another text takes the other place; the first is still there, its answer included.
    let other =
        json!({ "prompt": "Quite another text, which begins in its own way", "max_tokens": 4 });
    assert!(usage(&served.ask(COMPLETIONS, &other)).1 <= 1); // BOS
    let mut more = first.clone();
    more["prompt"] = json!(format!("{}{} and", first["prompt"].as_str().unwrap(), said(&answer)));
    assert!(usage(&served.ask(COMPLETIONS, &more)).1 >= tokens);
    // A third one takes the place of what was not used for longest.
    let third = json!({ "prompt": "[[[[[[[[ a third one ]]]]]]]]", "max_tokens": 4 });
    assert!(usage(&served.ask(COMPLETIONS, &third)).1 <= 1);
    assert!(usage(&served.ask(COMPLETIONS, &other)).1 <= 1);
    let sum = served.metric("chaski_cached_tokens_total");
    assert!(sum >= (2 * tokens - 2) as f64, "{sum}");
}

#[test]
fn several_answers_stop_texts_and_probabilities() {
    let served = Served::new(&[]);
    let mut several = question("What is 27 + 58?");
    several["n"] = json!(3);
    let answer = served.ask(CHAT, &several);
    let texts: Vec<_> =
        (0..3).map(|i| answer["choices"][i]["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(texts, ["27 + 58 = 85."; 3]);
    assert_eq!(answer["choices"][2]["index"], 2);
    let mut stopped = question("What is 27 + 58?");
    stopped["stop"] = json!(["= 8", "never"]);
    let answer = served.ask(CHAT, &stopped);
    assert_eq!(
        (said(&answer), &answer["choices"][0]["finish_reason"]),
        ("27 + 58 ", &json!("stop"))
    );
    stopped["max_tokens"] = json!(2);
    let answer = served.ask(CHAT, &stopped);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let several =
        json!({ "prompt": ["27 + 58 = ", [1, 2, 3]], "max_tokens": 2, "n": 2, "logprobs": 2 });
    let answer = served.ask(COMPLETIONS, &several);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 4);
    let lines = ["generate", "-p", "27 + 58 = ", "-n", "2", "--json", "--logprobs", "2"];
    let own = printed(&lines);
    let own: Vec<Value> = own.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = &answer["choices"][0]["logprobs"];
    for i in 0..2 {
        assert_eq!(told["tokens"][i], own[i]["text"]);
        assert_eq!(told["token_logprobs"][i], own[i]["logprob"]);
        let top = own[i]["top_logprobs"].as_array().unwrap();
        for one in top {
            assert_eq!(told["top_logprobs"][i][one["text"].as_str().unwrap()], one["logprob"]);
        }
    }
    let mut scored = question("What is 27 + 58?");
    (scored["logprobs"], scored["top_logprobs"]) = (json!(true), json!(2));
    let answer = served.ask(CHAT, &scored);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, "27 + 58 = 85.");
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    // Each token's comes with it in a stream, too.
    let events = served.stream(CHAT, &scored);
    let of = |event: &Value| event["choices"][0]["logprobs"]["content"].as_array().cloned();
    let streamed: Vec<Value> = events.iter().filter_map(of).flatten().collect();
    assert_eq!(&streamed, content);
}
