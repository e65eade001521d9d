//! Two engines in one process, on the CPU and on an emulated GPU, that answer by turns.

use chaski::engine::{Device, Model, Options, silent};
use chaski::sampler::SamplingOptions;
use chaski::session::{Next, Session, StopCriteria};
use chaski::source::Source;

use crate::emulated;

const TOKENS: usize = 12;
const PROMPTS: [&[u32]; 2] = [&[1, 2, 3, 4, 5], &[9, 8, 7]];

/// The demo on the CPU, and another model on the GPU.
fn sessions() -> [Session; 2] {
    emulated::start();
    let synthetic = Source::find("synthetic:tiny").unwrap();
    [(Source::Demo, Device::Cpu, 1), (synthetic, Device::Cuda(0), 2)].map(
        |(source, device, threads)| {
            let options = Options {
                device,
                context: Some(64),
                trust_kernels: true,
                threads: Some(threads),
                ..Options::default()
            };
            Model::of(source, options).unwrap().load(&silent()).unwrap().session()
        },
    )
}

#[test]
fn two_models_at_once_say_what_each_says_alone() {
    let stop = StopCriteria { max_tokens: TOKENS, ..StopCriteria::default() };
    let sampling = SamplingOptions { temperature: 0.8, seed: 3, ..SamplingOptions::default() };
    let mut alone = sessions();
    let alone = [0, 1].map(|i| {
        let keep_on = |_| Ok(Next::Continue);
        alone[i].generate(PROMPTS[i], &sampling, stop, keep_on).unwrap().ids
    });
    let mut sessions = sessions();
    let mut generations =
        [0, 1].map(|i| sessions[i].begin(PROMPTS[i], &sampling, stop, false).unwrap());
    let mut said = [Vec::new(), Vec::new()];
    for _ in 0..=TOKENS {
        for i in [0, 1] {
            let step = generations[i].next(&mut sessions[i]).unwrap();
            said[i].extend(step.map(|step| step.id));
        }
    }
    assert_eq!(said, alone);
    assert_eq!(said.map(|ids| ids.len()), [TOKENS; 2]);
}
