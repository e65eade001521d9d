//! Downloads that break off, are interrupted, or bring something else than they should, from a hub that
//! stands in on loopback.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gguf_file::Gguf;
use crate::golden;
use crate::hub_user::{User, file, model, names};
use crate::stand_in::{COMMIT, File, Reply, Server};
use chaski::error::Error;
use chaski::hub::Told;
use chaski::source::{Repository, Source};

/// Answers that break off where `cut` says, by the number of the request for the weights.
fn breaking(cut: impl Fn(usize) -> Option<usize> + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::of_files(model(), move |request| {
        request.path.ends_with("/model.safetensors").then(|| {
            let cut = cut(count.fetch_add(1, Ordering::Relaxed));
            let reply = Reply::file(&file(&model(), "model.safetensors").bytes, request.from());
            Reply { cut, ..reply }
        })
    })
}

fn ranges(server: &Server, name: &str) -> Vec<usize> {
    let requests = server.requests().into_iter();
    let weights = requests.filter(|request| request.path.ends_with(&format!("/{name}")));
    weights.map(|request| request.from()).collect()
}

#[test]
fn a_download_that_breaks_off_goes_on() {
    let server =
        breaking(|number| [Some(1000), Some(0), Some(5000)].get(number).copied().flatten());
    let user = User::of(&server);
    user.pull("org/name").unwrap();
    user.assert_snapshot(&model());
    assert_eq!(ranges(&server, "model.safetensors"), [0, 1000, 1000, 6000]);
}

#[test]
fn the_next_run_goes_on_where_the_last_one_was() {
    let server = breaking(|number| match number {
        0 => Some(2000),
        1..=5 => Some(0),
        _ => None,
    });
    let user = User::of(&server);
    let message = user.refused();
    let size = model()[2].bytes.len();
    assert!(message.contains(&format!("broken off after 2000 of {size} bytes")), "{message}");
    assert!(message.contains("resumes there"), "{message}");
    // Until it is whole, nothing names it.
    assert!(!user.snapshot().join("model.safetensors").exists());
    assert!(!user.folder().join("refs").exists());
    user.pull("org/name").unwrap();
    user.assert_snapshot(&model());
    assert_eq!(ranges(&server, "model.safetensors").last(), Some(&2000));
    assert!(names(&user.folder().join("blobs")).iter().all(|name| !name.contains('.')));
}

/// With all of its parts, and without the others of the repository.
#[test]
fn a_gguf_is_downloaded_by_its_name_and_found_by_it() {
    let gguf = Gguf::of_folder(&golden::folder().join("mha-hd64-f32"));
    let [first, second] = gguf.clone().parts();
    let files: Vec<File> = [
        ("whole.gguf", gguf.bytes()),
        ("other.gguf", b"not asked for".to_vec()),
        ("m-00001-of-00002.gguf", first.bytes()),
        ("m-00002-of-00002.gguf", second.bytes()),
    ]
    .map(|(name, bytes)| File::new(name, bytes))
    .into();
    let (count, whole) = (AtomicUsize::new(0), files[0].bytes.clone());
    let server = Server::of_files(files.clone(), move |request| {
        request.path.ends_with("/whole.gguf").then(|| {
            let cut = (count.fetch_add(1, Ordering::Relaxed) == 0).then_some(3000);
            Reply { cut, ..Reply::file(&whole, request.from()) }
        })
    });
    let user = User::of(&server);
    let source = user.pull("org/name:whole.gguf").unwrap();
    assert!(matches!(source, Source::Gguf(_)));
    user.assert_snapshot(&files[..1]);
    assert_eq!(ranges(&server, "whole.gguf"), [0, 3000]);
    let parts = user.find("org/name:m-00001-of-00002.gguf").unwrap();
    user.assert_snapshot(&[files[0].clone(), files[2].clone(), files[3].clone()]);
    let asked = server.requests().len();
    for (name, expected) in [("whole.gguf", source), ("m-00002-of-00002.gguf", parts)] {
        assert_eq!(user.find(&format!("org/name:{name}")), Ok(expected));
    }
    assert_eq!(server.requests().len(), asked);
    let lone = Server::of_files(files[2..3].to_vec(), |_| None);
    let message = User::of(&lone).pull("org/name:m-00001-of-00002.gguf").unwrap_err().to_string();
    assert!(message.contains("has no \"m-00002-of-00002.gguf\", which"), "{message}");
}

#[test]
fn a_hub_that_cannot_go_on_begins_anew() {
    let count = AtomicUsize::new(0);
    let server = Server::of_files(model(), move |request| {
        request.path.ends_with("/model.safetensors").then(|| {
            let cut = (count.fetch_add(1, Ordering::Relaxed) == 0).then_some(3000);
            Reply { cut, ..Reply::file(&file(&model(), "model.safetensors").bytes, 0) }
        })
    });
    let user = User::of(&server);
    user.pull("org/name").unwrap();
    user.assert_snapshot(&model());
}

#[test]
fn a_wrong_length_or_hash_is_not_kept() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(Spoil, &str); 4] = [
        (|bytes| bytes.push(0), "bytes arrive where the hub listed"),
        (|bytes| bytes.truncate(bytes.len() - 1), "bytes arrive where the hub listed"),
        (|bytes| bytes[5000] ^= 1, "its hash is"),
        (|bytes| bytes.fill(0), "its hash is"),
    ];
    for (spoil, trouble) in cases {
        let server = Server::of_files(model(), move |request| {
            let mut bytes = file(&model(), "model.safetensors").bytes.clone();
            spoil(&mut bytes);
            let reply = Reply::file(&bytes, request.from().min(bytes.len()));
            request.path.ends_with("/model.safetensors").then_some(reply)
        });
        let user = User::of(&server);
        let message = user.refused();
        assert!(message.contains(trouble) && message.contains("model.safetensors"), "{message}");
        assert!(!user.snapshot().join("model.safetensors").exists());
        assert!(!user.folder().join("blobs").join(model()[2].hash()).exists());
    }
    // Where no length is told, too many bytes show when they come, and too few when they end.
    for (change, trouble) in [(9i64, "more than the"), (-9, "broken off after")] {
        let server = Server::of_files(model(), move |request| {
            let mut bytes = file(&model(), "model.safetensors").bytes.clone();
            bytes.resize((bytes.len() as i64 + change) as usize, 0);
            let reply = Reply::file(&bytes, request.from());
            let reply = Reply { silent: true, ..reply };
            request.path.ends_with("/model.safetensors").then_some(reply)
        });
        let message = User::of(&server).refused();
        assert!(message.contains(trouble), "{message}");
    }
}

#[test]
fn what_was_left_of_another_file_is_not_gone_on_from() {
    let server = Server::of_files(model(), |_| None);
    for length in [10, 10_000_000] {
        let user = User::of(&server);
        let blobs = user.folder().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        let partial = blobs.join(format!("{}.incomplete", model()[2].hash()));
        fs::write(partial, vec![7; length]).unwrap();
        user.pull("org/name").unwrap();
        user.assert_snapshot(&model());
    }
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    let server = Server::start(|_| {
        let list = serde_json::json!({"sha": COMMIT, "siblings": [
            {"rfilename": "model.safetensors", "size": 1u64 << 60, "blobId": "a".repeat(64)}]});
        Reply { body: list.to_string().into_bytes(), ..Reply::status(200) }
    });
    let user = User::of(&server);
    let message = user.refused();
    assert!(message.contains("takes 1.00 EiB") && message.contains("make room"), "{message}");
    assert!(!user.folder().exists());
}

#[test]
fn an_interrupted_download_keeps_what_it_has() {
    let server = Server::of_files(model(), |_| None);
    let user = User::of(&server);
    let size: usize = model()[..2].iter().map(|file| file.bytes.len()).sum();
    let interrupted =
        user.hub().pull(&Repository::parse("org/name").unwrap(), &|told| match told {
            Told::At(bytes) if bytes as usize > size => Err(Error::Interrupted),
            _ => Ok(()),
        });
    assert_eq!(interrupted, Err(Error::Interrupted));
    let blobs = names(&user.folder().join("blobs"));
    assert!(blobs.iter().any(|name| name.ends_with(".incomplete")), "{blobs:?}");
    user.pull("org/name").unwrap();
    assert!(
        *ranges(&server, "model.safetensors").last().unwrap() > 0
            || ranges(&server, "model.safetensors").len() == 1
    );
    user.assert_snapshot(&model());
}
