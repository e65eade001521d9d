#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| chaski_fuzz::gguf(input));
