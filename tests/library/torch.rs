//! Files of `torch.save` that break the rules, or would have something run, are refused in one line.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use chaski::torch;

use crate::pth::{Member, Said, pickle, put, text, zip};

/// Of `scripts/golden_meta.py`.
const GOLDEN: &str = "tests/golden/meta/split/meta/consolidated.00.pth";

fn good() -> Vec<Member> {
    let tensors = [Said::matrix("a", "0", [4, 3]), Said::matrix("b", "1", [2, 2])];
    of(pickle(&tensors))
}

fn of(pickle: Vec<u8>) -> Vec<Member> {
    vec![
        Member::new("m/data.pkl", pickle),
        Member::new("m/byteorder", "little"),
        Member::new("m/data/0", vec![0; 48]),
        Member::new("m/data/1", vec![1; 16]),
        Member::new("m/version", "3\n"),
    ]
}

/// What is said of a file, at once and in one line.
fn refused(name: &str, file: &[u8]) -> String {
    let start = Instant::now();
    let message = torch::parse(file).err().unwrap_or_else(|| panic!("{name}: it is read"));
    assert!(start.elapsed() < Duration::from_secs(1), "{name}");
    assert!(!message.contains(char::is_control) && message.len() < 500, "{name}: {message}");
    message
}

/// Pickles in a file that is right otherwise, and what is said of each.
fn check_pickles(cases: Vec<(&str, Vec<u8>, &str)>) {
    for (name, code, expected) in cases {
        let message = refused(name, &zip(&of(code), false));
        assert!(message.contains(expected), "{name}: {message}");
    }
}

fn program(code: &[u8]) -> Vec<u8> {
    [b"\x80\x02", code, b"."].concat()
}

#[test]
fn pickles_that_would_have_something_run_are_refused_by_name() {
    check_pickles(vec![
        (
            "os.system",
            program(&[&b"cos\nsystem\n"[..], &text("id"), b"\x85R"].concat()),
            "os.system",
        ),
        ("eval", program(b"c__builtin__\neval\n)R"), "__builtin__.eval"),
        ("a class of torch", program(b"ctorch\nLongStorage\n"), "torch.LongStorage"),
        ("a call of a text", program(&[&text("x")[..], b")R"].concat()), "calls something"),
        ("a call with items", program(b"ccollections\nOrderedDict\nN\x85R"), "calls something"),
        (
            "a call of a number",
            program(b"ctorch._utils\n_rebuild_tensor_v2\nK\x01R"),
            "without arg",
        ),
        (
            "a tensor of nothing",
            program(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
            "calls something",
        ),
        ("INST", program(b"(ios\nsystem\n"), "opcode 0x69"),
        ("OBJ", program(b"(o"), "opcode 0x6f"),
        ("STACK_GLOBAL", program(b"\x93"), "opcode 0x93"),
        ("EXT1", program(b"\x82\x01"), "opcode 0x82"),
        ("an id of text", program(&[&text("storage")[..], b"Q"].concat()), "no storage's"),
        ("an id without numbers", program(b")Q"), "no storage's"),
    ]);
}

#[test]
fn pickles_that_make_no_sense_are_refused() {
    let nested = [b"(".repeat(100_000), b"t".repeat(100_000)].concat();
    let bomb = [&b")q\0"[..], &b"h\0h\0\x86q\0".repeat(100)].concat();
    check_pickles(vec![
        ("protocol 4", b"\x80\x04}.".to_vec(), "protocol 4"),
        ("nothing", Vec::new(), "cut off"),
        ("no end", b"\x80\x02}".to_vec(), "cut off"),
        ("two values", program(b"}}"), "left over"),
        ("more after the end", b"\x80\x02}.}".to_vec(), "left over"),
        ("no dictionary", program(b"K\x01"), "no dictionary of tensors"),
        (
            "a number in it",
            program(&[&b"}"[..], &text("a"), b"K\x01s"].concat()),
            "\"a\" is no tensor",
        ),
        ("keys of numbers", program(b"}K\x01K\x01s"), "no texts"),
        ("a long text", program(b"X\xff\xff\xff\xff"), "cut off"),
        ("a long number", program(b"\x8a\xff"), "no size"),
        ("an empty stack", program(b"\x86"), "more values than there are"),
        ("no mark", program(b"t"), "more values than there are"),
        ("through a mark", program(b"N(\x85"), "more values than there are"),
        ("no memo", program(b"h\x05"), "takes value 5"),
        ("no dictionary to set", program(b"NNNs"), "sets what is no dictionary"),
        ("odd items", program(b"}(Nu"), "more values than there are"),
        ("deep tuples", program(&nested), "deep"),
        ("a bomb", program(&bomb), "deep"),
        ("a long name", program(&text(&"x".repeat(3 << 20))), "over 2 MiB"),
    ]);
}

#[test]
fn tensors_that_are_not_there_are_refused_by_name() {
    let tensor = |change: fn(&mut Said)| {
        let mut said = Said::matrix("a", "0", [4, 3]);
        change(&mut said);
        pickle(&[said])
    };
    let two = |a: Said, b: Said| pickle(&[a, b]);
    let part = |name, first| Said { first, shape: vec![2, 3], ..Said::matrix(name, "0", [4, 3]) };
    check_pickles(vec![
        ("other strides", tensor(|t| t.stride = vec![1, 4]), "does not lie row after row"),
        ("negative strides", tensor(|t| t.stride = vec![3, -1]), "does not lie row after row"),
        ("fewer strides", tensor(|t| t.stride = vec![3]), "2 dimensions and 1 strides"),
        ("no rows", tensor(|t| t.shape = vec![0, 3]), "is empty"),
        ("negative rows", tensor(|t| t.shape = vec![-4, -3]), "is empty"),
        (
            "huge",
            tensor(|t| (t.shape, t.stride) = (vec![2, i64::MAX], vec![i64::MAX, 1])),
            "too large",
        ),
        (
            "many dimensions",
            tensor(|t| (t.shape, t.stride) = (vec![1; 9], vec![1; 9])),
            "9 dimensions",
        ),
        ("past the end", tensor(|t| t.first = 1), "has 12 numbers from 1 on, of 12"),
        ("before the start", tensor(|t| t.first = -1), "from -1 on"),
        ("wraps", tensor(|t| t.first = i64::MAX), "from 9223372036854775807 on"),
        ("more than the member", tensor(|t| t.len = 13), "in a member of 48 bytes"),
        ("many more", tensor(|t| t.len = i64::MAX), "in a member of 48 bytes"),
        ("another type", tensor(|t| t.class = "torch\nHalfStorage"), "in a member of 48 bytes"),
        ("no member", tensor(|t| t.member = "9"), "member \"9\", which is not there"),
        ("a member elsewhere", tensor(|t| t.member = "../../x"), "which is not there"),
        ("twice", two(part("a", 0), part("a", 6)), "\"a\" is there twice"),
        ("overlapping", two(part("a", 0), part("b", 3)), "\"b\" overlaps \"a\""),
    ]);
    let shared = two(part("a", 6), part("b", 6));
    assert_eq!(torch::parse(&zip(&of(shared), false)).unwrap().len(), 2);
}

/// What is done to a good file, and what is said of it.
type Change = (&'static str, fn(&mut Vec<Member>), &'static str);

#[test]
fn zips_that_are_not_whole_are_refused_by_name() {
    for wide in [false, true] {
        let tensors = torch::parse(&zip(&good(), wide)).unwrap();
        let places: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
        assert_eq!(places, [("a", 48), ("b", 16)]);
        assert!(tensors.iter().all(|tensor| tensor.offset.is_multiple_of(64)));
        let changes: [Change; 12] = [
            ("deflated", |m| m[2].method = 8, "\"m/data/0\" is compressed"),
            ("encrypted", |m| m[2].flags = 1, "\"m/data/0\" is encrypted"),
            ("twice", |m| m.push(m[2].clone()), "\"m/data/0\" is there twice"),
            ("two pickles", |m| m.push(Member::new("n/data.pkl", "")), "one member data.pkl"),
            ("no pickle", |m| drop(m.remove(0)), "one member data.pkl"),
            ("big-endian", |m| m[1].bytes = b"big".to_vec(), "not little-endian"),
            ("a long member", |m| m[2].size = Some(1 << 20), "has 1048576 bytes, of which not all"),
            ("a short member", |m| m[2].size = Some(44), "in a member of 44 bytes"),
            ("an overlap", |m| m[2].size = Some(150), "overlaps member"),
            ("a header elsewhere", |m| m[2].header = Some(3), "is not where the list"),
            ("another's header", |m| m[2].header = Some(0), "is not where the list"),
            ("a header past the end", |m| m[2].header = Some(1 << 31), "is not where the list"),
        ];
        for (name, change, expected) in changes {
            let mut members = good();
            change(&mut members);
            let message = refused(name, &zip(&members, wide));
            assert!(message.contains(expected), "{name}: {message}");
        }
    }
    let mut huge = good();
    (huge[2].size, huge[3].header) = (Some(u64::MAX), Some(u64::MAX));
    let message = refused("zip64 lies", &zip(&huge, true));
    assert!(message.contains("of which not all are there"), "{message}");

    let whole = zip(&good(), true);
    let at = |file: &[u8], back: usize| file.len() - back;
    for (name, back, bytes, expected) in [
        ("its record elsewhere", 34, u64::MAX, "zip64 record is not where"),
        ("many members", 66, 1 << 40, "no Llama has over 65536"),
        ("more members", 66, 6, "its list of members ends at 5"),
        ("fewer members", 66, 4, "follow its list of members"),
        ("a long list", 58, 1 << 40, "its list of members is not where"),
        ("a list elsewhere", 50, u64::MAX, "its list of members is not where"),
    ] {
        let (mut file, mut number) = (whole.clone(), Vec::new());
        put(&mut number, &[(8, bytes)]);
        let place = at(&file, back);
        file[place..place + 8].copy_from_slice(&number);
        let message = refused(name, &file);
        assert!(message.contains(expected), "{name}: {message}");
    }
    assert!(refused("before torch 1.6", b"\x80\x02\x8a\nl\xfc\x9cF").contains("it is no zip file"));
}

/// Cut anywhere, a file is no longer whole; of any wrong bit it says something, or nothing is wrong.
#[test]
fn cuts_and_flips_are_refused_or_make_no_difference() {
    let file = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN)).unwrap();
    let whole = torch::parse(&file).unwrap();
    for end in 0..file.len() {
        refused("a cut", &file[..end]);
    }
    let data = whole.iter().map(|tensor| tensor.offset..tensor.offset + tensor.bytes);
    let data: Vec<_> = data.collect();
    let mut told = 0;
    for place in (0..file.len()).filter(|place| !data.iter().any(|data| data.contains(place))) {
        for bit in 0..8 {
            let mut file = file.clone();
            file[place] ^= 1 << bit;
            match torch::parse(&file) {
                Ok(tensors) => assert!(tensors.iter().all(|t| t.offset + t.bytes <= file.len())),
                Err(message) => {
                    assert!(!message.contains(char::is_control), "{message}");
                    told += 1;
                }
            }
        }
    }
    assert!(told > 10_000, "{told}");
}
