//! The forms of a kernel's code: what a driver refuses gives way to the next, and what has no instruction to
//! wait for the kernel before is not launched early. As a user runs it, on an emulated GPU.

use crate::process::chaski;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa4-hd64-bf16-tied");

/// What a few tokens of a small model come to, under these variables, or the error.
fn answer(variables: &[(&str, &str)]) -> Result<String, String> {
    let ask = ["generate", "-m", MODEL, "--ids", "1,2,3", "--print-ids", "-n", "6", "--temp", "0"];
    let arguments = [&ask[..], &["--emulate", "1", "--device", "cuda"]].concat();
    let (status, said, errors) = chaski(&arguments, variables);
    if status == Some(0) { Ok(said) } else { Err(errors) }
}

/// The first kernel's machine code; its PTX, too.
#[test]
fn an_image_that_is_refused_gives_way_to_the_next() {
    let right = answer(&[]).unwrap();
    let invalid = "cuModuleLoadData:1:200";
    for fault in ["cuModuleLoadData:1:222", &format!("{invalid},cuModuleLoadData:2:222")] {
        assert_eq!(answer(&[("CHASKI_EMULATE_FAULT", fault)]).as_ref(), Ok(&right), "{fault}");
    }
    // Nothing is left, and the first refusal is the one to tell.
    let fault = format!("{invalid},cuModuleLoadData:2:222,cuModuleLoadData:3:218");
    let told = answer(&[("CHASKI_EMULATE_FAULT", &fault)]).unwrap_err();
    assert!(told.contains("cannot be loaded: device kernel image is invalid"), "{told}");
    // What is no matter of the image ends it at once.
    let told = answer(&[("CHASKI_EMULATE_FAULT", "cuModuleLoadData:1:2")]).unwrap_err();
    assert!(told.contains("cannot be loaded: out of memory"), "{told}");
}

/// PTX for 8.0 has no instruction to wait with: the emulated GPU ends a kernel that was launched early and
/// does not wait.
#[test]
fn code_for_older_gpus_is_not_launched_early() {
    let right = answer(&[]).unwrap();
    for archs in ["sm_80", "sm_100a"] {
        assert_eq!(answer(&[("CHASKI_EMULATE_ARCHS", archs)]).as_ref(), Ok(&right), "{archs}");
    }
    let newer = [("CHASKI_EMULATE_CAPABILITY", "10.3")];
    assert_eq!(answer(&newer).as_ref(), Ok(&right), "PTX for 10.0");
    let told = answer(&[("CHASKI_EMULATE_ARCHS", "sm_75")]).unwrap_err();
    assert!(told.contains("CHASKI_EMULATE_ARCHS: \"sm_75\" is unknown"), "{told}");
}
