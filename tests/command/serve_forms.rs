//! `chaski serve`: streams, responses, tools, echoed prompts, texts and ids, and the page

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::http::{CHAT, COMPLETIONS, Served, question, said};
use crate::process::chaski;

#[test]
fn a_stream_is_in_openais_order() {
    let served = Served::new(&["--name", "adder"]);
    let mut asked = question("What is 27 + 58?");
    (asked["model"], asked["stream_options"]) = (json!("adder"), json!({ "include_usage": true }));
    let events = served.stream(CHAT, &asked);
    let [first, .., last, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(first["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    for event in &events {
        assert_eq!(
            (&event["object"], &event["model"]),
            (&json!("chat.completion.chunk"), &json!("adder"))
        );
        assert_eq!(event["id"], first["id"]);
    }
    let models = served.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "adder");
    assert_eq!(served.get("/health").json(), json!({ "status": "ok" }));
}

#[test]
fn a_prompt_is_echoed_with_its_probabilities() {
    let served = Served::new(&["-c", "256"]);
    let text = "27 + 58 = 85. ".repeat(12);
    let asked =
        json!({ "prompt": text, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0 });
    let answer = served.ask(COMPLETIONS, &asked);
    assert!(said(&answer).starts_with(&text));
    let scores = answer["choices"][0]["logprobs"].clone();
    let ids = served.ask("/tokenize", &json!({ "prompt": text }))["tokens"].clone();
    let count = ids.as_array().unwrap().len();
    // More than one step's, and none alone at the end.
    assert!(count > 64, "{count}");
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(scores[key].as_array().unwrap().len(), count + 1, "{key}");
    }
    assert_eq!(
        (&scores["token_logprobs"][0], &scores["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    // Against the logits that the command writes.
    let folder = tempdir().unwrap();
    let file = folder.path().join("logits.safetensors");
    let (status, _, errors) = chaski(&["logits", "-p", &text, "-o", file.to_str().unwrap()], &[]);
    assert_eq!(status, Some(0), "{errors}");
    let bytes = fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap();
    let vocab = logits.shape()[1];
    for i in 1..count {
        let row = &logits.data()[(i - 1) * vocab * 4..][..vocab * 4];
        let row = row.chunks(4).map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap())));
        let row: Vec<f64> = row.collect();
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        let logprob = row[ids[i].as_u64().unwrap() as usize] - sum.ln();
        let told = scores["token_logprobs"][i].as_f64().unwrap();
        assert!((told - logprob).abs() < 1e-5, "{i}: {told}, {logprob}");
        let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max) - sum.ln();
        let top = scores["top_logprobs"][i].as_object().unwrap().values().next().unwrap();
        assert!((top.as_f64().unwrap() - best).abs() < 1e-5, "{i}: {top}, {best}");
    }
    // By ids, after others were cached, and without an answer: the same.
    let mut again = asked.clone();
    (again["prompt"], again["max_tokens"]) = (json!([ids]), json!(0));
    let told = served.ask(COMPLETIONS, &again)["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(told.as_array().unwrap()[..], scores["token_logprobs"].as_array().unwrap()[..count]);
    again["logprobs"] = Value::Null;
    let answer = served.ask(COMPLETIONS, &again);
    assert_eq!((said(&answer), &answer["usage"]["completion_tokens"]), (&*text, &json!(0)));
}

#[test]
fn texts_become_ids_and_ids_texts() {
    let served = Served::new(&[]);
    let tokenize = |body: Value| served.ask("/tokenize", &body)["tokens"].clone();
    let (_, own, _) = chaski(&["tokenize", "--bos", "-p", "27 + 58"], &[]);
    let own: Value = serde_json::from_str(own.lines().last().unwrap()).unwrap();
    assert_eq!(tokenize(json!({ "prompt": "27 + 58" })), own);
    let bare = tokenize(json!({ "content": "27 + 58" }));
    assert_eq!(served.ask("/detokenize", &json!({ "tokens": bare }))["content"], "27 + 58");
    let asked = question("Hi");
    let ids = tokenize(asked.clone());
    let text = served.ask("/apply-template", &asked)["prompt"].clone();
    assert_eq!(served.ask("/detokenize", &json!({ "tokens": ids }))["prompt"], text);
    assert!(text.as_str().unwrap().contains("user<|end_header_id|>\n\nHi<|eot_id|>"), "{text}");
    assert_eq!(served.post("/detokenize", &json!({ "tokens": [99999] })).status, 400);
}

/// The events of a response's stream, by their types.
fn events(served: &Served, body: &Value) -> Vec<(String, Value)> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let reply = served.post("/v1/responses", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let event = |event: &str| {
        let (kind, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        let kind = kind.strip_prefix("event: ").unwrap().to_owned();
        assert_eq!(data["type"], kind);
        (kind, data)
    };
    reply.body.split("\n\n").filter(|event| !event.is_empty()).map(event).collect()
}

#[test]
fn responses_are_whole_or_events_in_order() {
    let served = Served::new(&[]);
    let part = json!({ "type": "input_text", "text": "What is 27 + 58?" });
    let items = json!([
        { "type": "reasoning", "summary": [] },
        { "role": "user", "content": [part] },
    ]);
    let told = json!([{ "type": "web_search" }]);
    for input in [json!("What is 27 + 58?"), items] {
        let asked = json!({ "input": input, "temperature": 0, "tools": told, "store": false });
        let response = served.ask("/v1/responses", &asked);
        assert_eq!(response["output"][0]["content"][0]["text"], "27 + 58 = 85.");
        assert_eq!(
            (&response["status"], &response["object"]),
            (&json!("completed"), &json!("response"))
        );
        assert_eq!(response["usage"]["output_tokens"], 12);
        let events = events(&served, &asked);
        let mut kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
        let deltas = kinds.iter().filter(|kind| **kind == "response.output_text.delta").count();
        assert!(deltas > 3);
        kinds.dedup();
        assert_eq!(
            kinds,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        for (number, (_, event)) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        let text: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
        assert_eq!(text, "27 + 58 = 85.");
        let last = &events.last().unwrap().1["response"];
        assert_eq!(last["output"][0]["content"], response["output"][0]["content"]);
    }
    let cut = json!({ "input": "What is 27 + 58?", "max_output_tokens": 2 });
    let response = served.ask("/v1/responses", &cut);
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    for (body, field) in [
        (json!({ "input": 5 }), "input"),
        (json!({ "input": "a", "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "input": "a", "text": { "format": { "type": "json_object" } } }), "text"),
    ] {
        let refused = served.post("/v1/responses", &body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(field)));
    }
}

/// A demo whose template has it continue a call that it is shown: what it copies is one.
#[test]
fn tools_reach_the_template_and_calls_come_back() {
    let folder = tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo");
    for entry in fs::read_dir(demo).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let file = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["chat_template"] = json!(
        "{{ bos_token }}{% for t in tools %}{{ t | tojson }}{% endfor %}\
         {% for m in messages %}[{{ m.role }}: \
         {{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.river }}{% endfor %}]{% endfor %}"
    );
    fs::write(&file, config.to_string()).unwrap();
    let served = Served::new(&["-m", folder.path().to_str().unwrap()]);
    let tool = json!({ "type": "function", "function": { "name": "level", "parameters": {} } });
    let call = json!({ "id": "c", "type": "function",
        "function": { "name": "level", "arguments": "{\"river\": \"Rin\"}" } });
    let messages = json!([
        { "role": "developer", "content": "Be brief" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c", "content": "3 m" },
    ]);
    let other = json!({ "type": "web_search" });
    let asked =
        json!({ "messages": messages, "tools": [tool, other], "temperature": 0, "max_tokens": 4 });
    let shown = served.ask("/apply-template", &asked)["prompt"].as_str().unwrap().to_owned();
    assert!(shown.contains(r#"{"type": "function", "function": {"name": "level""#), "{shown}");
    assert!(!shown.contains("web_search") && shown.contains("[system: Be brief]"), "{shown}");
    assert!(shown.ends_with("Rin][tool: 3 m]"), "{shown}");
    // What the demo says is no call, and comes as text, streamed or not.
    let answer = served.ask(CHAT, &asked);
    assert_eq!(answer["choices"][0]["message"].get("tool_calls"), None);
    assert_eq!(crate::http::joined(&served.stream(CHAT, &asked)), said(&answer));
    let mut none = asked.clone();
    none["tool_choice"] = json!("none");
    assert!(!served.ask("/apply-template", &none)["prompt"].as_str().unwrap().contains("level"));
    none["tool_choice"] = json!("required");
    assert_eq!(served.post(CHAT, &none).json()["error"]["param"], "tool_choice");
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let served = Served::new(&["--api-key", "sesame"]);
    let page = served.get("/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    for word in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.body.contains(word), "{word}");
    }
    for word in ["/v1/chat/completions", "Regenerate", "prefers", "viewport"] {
        let has =
            page.body.contains(word) || (word == "prefers" && page.body.contains("light-dark"));
        assert!(has, "{word}");
    }
}
