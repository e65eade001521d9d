//! Models from a hub, which stands in on loopback: what is fetched, where it is put, and all that can go
//! wrong on the way.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use crate::hub_user::{User, file, model, names};
use crate::process::chaski;
use crate::stand_in::{COMMIT, File, Reply, Request, Server};
use chaski::hub::{Hub, HubOptions, Told};
use chaski::source::{Repository, Source};
use tempfile::tempdir;

const LICENCE: &str = "accept its licence at";

/// Those, and what is never fetched.
fn with_others(files: &[File]) -> Vec<File> {
    let others = [
        "README.md",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.fp16.safetensors",
        "model.gguf",
        "original/consolidated.00.pth",
        "original/params.json",
        "onnx/config.json",
        "../evil.json",
        "..",
        "/etc/evil.json",
        "a/../../evil.json",
        "..\\evil.json",
    ];
    files.iter().cloned().chain(others.map(|name| File::new(name, "no"))).collect()
}

#[test]
fn what_transformers_would_load_is_fetched_into_the_cache_of_its_makers() {
    let mut files = model();
    files.push(File::new("tokenizer.json", "{}"));
    files.push(File::new("chat_template.jinja", "{{ messages }}"));
    let server = Server::of_files(with_others(&files), |_| None);
    let user = User::of(&server);
    assert_eq!(user.pull("org/name"), Ok(Source::Directory(user.snapshot())));
    user.assert_snapshot(&files);
    assert_eq!(fs::read_to_string(user.folder().join("refs/main")).unwrap(), COMMIT);
    let mut blobs = names(&user.folder().join("blobs"));
    blobs.sort();
    let mut hashes: Vec<String> = files.iter().map(File::hash).collect();
    hashes.sort();
    assert_eq!(blobs, hashes);
    for file in &files {
        let link = fs::read_link(user.snapshot().join(&file.name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(file.hash()));
    }
    assert_eq!(names(&user.home.path().join("hub/.locks/models--org--name")).len(), files.len());
    assert_eq!(server.paths().len(), 1 + files.len());
    assert!(!user.home.path().join("evil.json").exists());

    let told = user.told.lock().unwrap().clone();
    let size: usize = files.iter().map(|file| file.bytes.len()).sum();
    let Told::Plan { line, bytes } = &told[0] else { panic!("{told:?}") };
    assert_eq!(*bytes as usize, size);
    assert!(line.starts_with("org/name: downloading 5 files of 01234567, "), "{line}");
    assert!(line.contains(&server.endpoint), "{line}");
    assert_eq!(told[told.len() - 2..], [Told::At(size as u64), Told::Done]);
}

#[test]
fn what_the_cache_has_is_used_without_asking() {
    let server = Server::of_files(model(), |_| None);
    let user = User::of(&server);
    let snapshot = Ok(Source::Directory(user.snapshot()));
    assert_eq!(user.find("org/name"), snapshot);
    let asked = server.paths().len();
    assert_eq!(user.find("org/name"), snapshot);
    assert_eq!(
        user.offline().find(&Repository::parse("org/name").unwrap(), &|_| panic!()),
        snapshot
    );
    assert_eq!(server.paths().len(), asked);
    // Asked for by name, the newest commit is looked at, and nothing fetched twice.
    assert_eq!(user.pull("org/name"), snapshot);
    assert_eq!(server.paths().len(), asked + 1);
    // What has gone is fetched again, and nothing else.
    fs::remove_file(user.snapshot().join("model.safetensors")).unwrap();
    fs::remove_file(user.folder().join("blobs").join(model()[2].hash())).unwrap();
    assert_eq!(user.find("org/name"), snapshot);
    assert_eq!(server.paths().len(), asked + 3);
    user.assert_snapshot(&model());
}

#[test]
fn offline_nobody_is_asked() {
    let server = Server::of_files(model(), |_| None);
    for (key, value) in
        [("HF_HUB_OFFLINE", "1"), ("HF_HUB_OFFLINE", "yes"), ("TRANSFORMERS_OFFLINE", "True")]
    {
        let user = User::of(&server).with(key, value);
        let message = user.find("org/name").unwrap_err().to_string();
        assert!(message.contains("not in the Hugging Face cache"), "{message}");
        assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
        assert!(user.refused().contains("`offline`"));
        // A part of it is given as it is: what is missing is told when it is read.
        fs::create_dir_all(user.snapshot()).unwrap();
        assert_eq!(user.find("org/name"), Ok(Source::Directory(user.snapshot())));
    }
    let user = User::of(&server).with("HF_HUB_OFFLINE", "0");
    user.find("org/name").unwrap();
    assert_eq!(server.paths().len(), 4);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index = |file: &str| {
        let map =
            format!(r#"{{"weight_map": {{"a": "x-00001-of-2.safetensors", "b": "{file}"}}}}"#);
        File::new("model.safetensors.index.json", map)
    };
    let mut files = model();
    files.pop();
    files.push(File::new("x-00001-of-2.safetensors", "one"));
    files.push(File::new("odd name #2?é%20.safetensors", "two"));
    let stray = File::new("model-00003-of-00003.safetensors", "three");
    files.push(index("odd name #2?é%20.safetensors"));
    let server = Server::of_files([&files[..], &[stray]].concat(), |_| None);
    let user = User::of(&server);
    user.pull("org/name").unwrap();
    user.assert_snapshot(&files);
    assert!(
        server
            .paths()
            .iter()
            .any(|path| path.ends_with("/odd%20name%20%232%3F%C3%A9%2520.safetensors"))
    );

    for (file, trouble) in [
        (
            "gone.safetensors",
            "has no \"gone.safetensors\", which \"model.safetensors.index.json\" names",
        ),
        ("../evil.safetensors", "weight_map puts tensor"),
    ] {
        let mut files = files.clone();
        *files.last_mut().unwrap() = index(file);
        let message = User::of(&Server::of_files(files, |_| None)).refused();
        assert!(message.contains(trouble), "{message}");
    }
}

#[test]
fn a_file_can_be_asked_for_by_name() {
    let mut files = model();
    let other = File::new("my weights.safetensors", "others");
    files.push(other.clone());
    let server = Server::of_files(files.clone(), |_| None);
    let user = User::of(&server);
    let source = user.pull("org/name:my weights.safetensors").unwrap();
    assert_eq!(source.weights(), Some("my weights.safetensors"));
    user.assert_snapshot(&[files[0].clone(), files[1].clone(), other]);
    let message = user.pull("org/name:none.safetensors").unwrap_err().to_string();
    assert!(message.contains("has no \"none.safetensors\""), "{message}");
}

#[test]
fn other_formats_are_named() {
    for (name, trouble) in [
        ("pytorch_model.bin", "is a pickle"),
        ("model.gguf", "llama.cpp's format"),
        ("original/consolidated.00.pth", "Meta's own format"),
        ("adapter_model.safetensors", "an adapter's"),
        ("model-00001-of-00002.safetensors", "their index is not"),
    ] {
        let files = vec![model()[0].clone(), File::new(name, "no")];
        let server = Server::of_files(files, |_| None);
        let message = User::of(&server).refused();
        assert!(message.contains("org/name has no model.safetensors"), "{message}");
        assert!(message.contains(trouble), "{message}");
        assert_eq!(server.paths().len(), 1);
    }
}

#[test]
fn gated_private_and_missing_models_are_told_apart() {
    let answers = |listing: Option<(u16, &'static str)>, file: Option<(u16, &'static str)>| {
        let refused = |(status, code): (u16, &str)| {
            Some(Reply::status(status).with("x-error-code", code).with("x-error-message", "no"))
        };
        Server::of_files(model(), move |request| match request.path.starts_with("/api/") {
            true => listing.and_then(refused),
            false => file.and_then(refused),
        })
    };
    // The list of a gated model is public, its files are not.
    for (listing, file, token, expected) in [
        (None, Some((401, "GatedRepo")), None, vec![LICENCE, "no token was sent", "HF_TOKEN"]),
        (None, Some((403, "GatedRepo")), Some("t"), vec![LICENCE, "has no access"]),
        (Some((403, "")), None, Some("t"), vec![LICENCE, "has no access"]),
        (Some((401, "RepoNotFound")), None, None, vec!["has no model org/name", "check the name"]),
        (Some((404, "RepoNotFound")), None, Some("t"), vec!["has no model org/name"]),
        (Some((404, "")), None, None, vec!["has no model org/name"]),
        (None, Some((404, "EntryNotFound")), None, vec!["lacks a file that it lists"]),
        (Some((418, "Teapot")), None, None, vec!["status 418 Teapot"]),
    ] {
        let server = answers(listing, file);
        let mut user = User::of(&server);
        if let Some(token) = token {
            user = user.with("HF_TOKEN", token);
        }
        let message = user.refused();
        for part in expected {
            assert!(message.contains(part), "{listing:?} {file:?}: {message}");
        }
        assert!(message.contains("org/name") && message.contains(&server.endpoint), "{message}");
        assert!(!user.folder().join("refs").exists());
    }
}

#[test]
fn tokens_are_found_where_they_are_kept_and_go_to_the_hub_alone() {
    let elsewhere = Server::start(|request| {
        Reply::file(&file(&model(), "model.safetensors").bytes, request.from())
    });
    let place = elsewhere.endpoint.clone();
    let server = Server::of_files(model(), move |request| {
        let moved = |to: String| Some(Reply::status(307).with("location", to));
        match request.path.as_str() {
            path if path.ends_with("/model.safetensors") => moved(format!("{place}/blob?signed=1")),
            path if path.ends_with("/config.json") => moved(format!("{path}?moved=1")),
            path if path.ends_with("/config.json?moved=1") => {
                Some(Reply::file(&file(&model(), "config.json").bytes, 0))
            }
            _ => None,
        }
    });
    let token = |request: &Request| request.headers.get("authorization").cloned();
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let put = |user: &User, name: &str, text: &str| {
        fs::write(user.home.path().join(name), text).unwrap();
    };
    let mut asked = 0;
    let mut check = |user: User, expected: Option<String>| {
        user.pull("org/name").unwrap();
        let requests = server.requests().split_off(asked);
        asked += requests.len();
        assert_eq!(requests.len(), 5);
        assert!(requests.iter().all(|request| token(request) == expected), "{requests:?}");
        user.assert_snapshot(&model());
    };
    check(User::of(&server), None);
    check(User::of(&server).with("HF_TOKEN", " hf_a\n"), bearer("hf_a"));
    check(User::of(&server).with("HUGGING_FACE_HUB_TOKEN", "hf_b"), bearer("hf_b"));
    let user = User::of(&server);
    put(&user, "token", "hf_c\n");
    check(user, bearer("hf_c"));
    let user = User::of(&server).with("HOME", "/none");
    put(&user, "other", "hf_d");
    let path = user.home.path().join("other").display().to_string();
    check(user.with("HF_TOKEN_PATH", &path), bearer("hf_d"));
    let user = User::of(&server).with("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1").with("HF_TOKEN", "x");
    check(user, None);
    assert_eq!(elsewhere.requests().len(), 6);
    assert!(elsewhere.requests().iter().all(|request| token(request).is_none()));

    let odd = BTreeMap::from([("HF_TOKEN", "hf\u{7}"), ("HF_HOME", "/none")]);
    let Err(error) = Hub::new(HubOptions::from_variables(&|key| odd.get(key).map(OsString::from)))
    else {
        panic!()
    };
    assert!(error.to_string().contains("HF_TOKEN") && !error.to_string().contains("hf\u{7}"));
}

/// Hubs that list names alone tell the rest about each file, before they send it elsewhere.
#[test]
fn sizes_and_hashes_may_come_in_headers() {
    let server = Server::of_files(model(), |request| {
        if request.path.starts_with("/api/") {
            let names = model().into_iter().map(|file| serde_json::json!({"rfilename": file.name}));
            let list = serde_json::json!({"sha": COMMIT, "siblings": names.collect::<Vec<_>>()});
            return Some(Reply { body: list.to_string().into_bytes(), ..Reply::status(200) });
        }
        if request.method != "HEAD" {
            return None;
        }
        let files = model();
        let file = files.iter().find(|file| request.path.ends_with(&format!("/{}", file.name)))?;
        let (tag, size) = (format!("\"{}\"", file.hash()), file.bytes.len().to_string());
        Some(match file.large {
            true => Reply::status(302)
                .with("location", "http://127.0.0.1:1/nobody")
                .with("x-linked-etag", tag)
                .with("x-linked-size", size),
            false => {
                Reply::status(200).with("etag", format!("W/{tag}")).with("content-length", size)
            }
        })
    });
    let user = User::of(&server);
    user.pull("org/name").unwrap();
    user.assert_snapshot(&model());
}

#[test]
fn answers_that_are_no_hubs_are_told() {
    for (body, trouble) in [
        ("<html>login</html>", "broken JSON"),
        ("{}", "it names no commit"),
        (r#"{"sha": "../../x", "siblings": []}"#, "it names no commit"),
        (r#"{"sha": "0123"}"#, "it lists no files"),
        (r#"{"sha": "0123", "siblings": []}"#, "has no model.safetensors and no"),
        (
            r#"{"sha": "01", "siblings": [{"rfilename": "model.safetensors", "size": 1, "blobId": "../x"}]}"#,
            "it tells no hash and size",
        ),
    ] {
        let server = Server::start(move |_| Reply { body: body.into(), ..Reply::status(200) });
        let message = User::of(&server).refused();
        assert!(message.contains(trouble), "{message}");
    }
    for location in ["/round/and/round", "http://127.0.0.1:1/"] {
        let server = Server::start(move |_| Reply::status(302).with("location", location));
        let message = User::of(&server).refused();
        assert!(message.contains("redirected") || message.contains("does not answer"), "{message}");
    }
    let nobody = User::of(&Server::start(|_| Reply::status(503)));
    assert!(nobody.refused().contains("503"));
    let nobody = nobody.with("HF_ENDPOINT", "http://127.0.0.1:1/");
    assert!(nobody.refused().contains("http://127.0.0.1:1 does not answer"));
}

/// As a user sees it: a model by its name, and a cache where Python's makers look for it.
#[test]
fn commands_fetch_a_model_by_its_name() {
    let server = Server::of_files(with_others(&model()), |_| None);
    let home = tempdir().unwrap();
    let home = home.path().display().to_string();
    let run = |args: &[&str], more: &[(&str, &str)]| {
        let common = [
            ("HF_ENDPOINT", server.endpoint.as_str()),
            ("HOME", &home),
            ("HF_HOME", "$HOME/hf"),
            ("HF_HUB_CACHE", ""),
            ("HF_TOKEN", ""),
        ];
        chaski(args, &[&common[..], more].concat())
    };
    let generate = ["generate", "-m", "org/name", "--ids", "1,2,3", "-n", "8", "--print-ids"];
    let generate = [&generate[..], &["--temp", "0", "--device", "cpu"]].concat();
    let (status, _, errors) = run(&[&generate[..], &["--offline"]].concat(), &[]);
    assert_eq!((status, server.paths().len()), (Some(1), 0), "{errors}");
    assert!(errors.contains("not in the Hugging Face cache"), "{errors}");

    let (status, answer, errors) = run(&generate, &[]);
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(errors.matches("org/name: downloading 3 files").count(), 1, "{errors}");
    let asked = server.paths().len();
    let (status, again, errors) = run(&generate, &[]);
    assert_eq!((status, &again), (Some(0), &answer), "{errors}");
    assert!(!errors.contains("downloading"), "{errors}");
    let (status, again, _) = run(&generate, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!((status, again), (Some(0), answer.clone()));
    assert_eq!(server.paths().len(), asked);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mha7-hd32-bf16");
    let mut local = generate.clone();
    local[2] = golden.to_str().unwrap();
    assert_eq!(run(&local, &[]).1, answer);

    let (status, path, errors) = run(&["pull", "org/name"], &[]);
    assert_eq!(status, Some(0), "{errors}");
    let snapshot = format!("{home}/hf/hub/models--org--name/snapshots/{COMMIT}");
    assert_eq!(path.trim(), snapshot);
    let (status, _, errors) = run(&["pull", "org/name", "--offline"], &[]);
    assert_eq!(status, Some(1), "{errors}");
    let (status, _, errors) = run(&["pull", "name"], &[]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("ORGANISATION/NAME"), "{errors}");
}
