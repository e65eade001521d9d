//! A model's norms may be of any type, whatever its matrices are of: the same numbers give the same bits.

use std::fs;
use std::path::Path;

use crate::emulated;
use crate::golden::{expected, folder};
use chaski::engine::{Device, Model, Options, silent};
use chaski::model::Logits;
use chaski::source::Source;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

const TYPES: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// Numbers that no type rounds, as they are stored.
fn norm(dtype: Dtype, len: usize) -> Vec<u8> {
    let number = |i: usize| 1.0 + (7 * i % 64) as f32 / 64.0;
    let bytes = |number: f32| match dtype {
        Dtype::BF16 => bf16::from_f32(number).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(number).to_le_bytes().to_vec(),
        _ => number.to_le_bytes().to_vec(),
    };
    (0..len).map(number).flat_map(bytes).collect()
}

/// The model in `case` with such norms, in `folder`.
fn write(case: &Path, norms: Dtype, folder: &Path) {
    for file in ["config.json", "generation_config.json"] {
        fs::copy(case.join(file), folder.join(file)).unwrap();
    }
    let file = fs::read(case.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let stored = tensors.iter().map(|(name, tensor)| {
        let (dtype, data) = match tensor.shape() {
            [len] => (norms, norm(norms, *len)),
            _ => (tensor.dtype(), tensor.data().to_vec()),
        };
        (name, dtype, tensor.shape().to_vec(), data)
    });
    let stored: Vec<_> = stored.collect();
    let views = stored.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Logits of a prefill and of a token more.
fn logits(folder: &Path, device: Device, ids: &[u32]) -> Vec<f32> {
    emulated::start();
    let options = Options {
        device,
        context: Some(64),
        scored: usize::MAX,
        trust_kernels: true,
        ..Options::default()
    };
    let model = Model::of(Source::Directory(folder.to_owned()), options).unwrap();
    let mut engine = model.load(&silent()).unwrap();
    let (last, before) = ids.split_last().unwrap();
    let mut logits = engine.team.prefill(before, Logits::All).unwrap().to_vec();
    logits.extend(engine.team.decode(*last).unwrap());
    logits
}

#[test]
fn norms_of_any_type_beside_matrices_of_any_give_the_same_bits() {
    let (cpu, gpu) = (Device::Cpu, Device::Cuda(0));
    for (name, devices) in [
        ("gqa4-hd64-bf16-tied", &[cpu, gpu][..]),
        ("gqa8-hd64-f16", &[cpu, gpu]),
        ("mha-hd64-f32", &[cpu]),
    ] {
        let case = folder().join(name);
        let ids = &expected(&case).ids[..20];
        for device in devices {
            let found = TYPES.map(|norms| {
                let folder = tempfile::tempdir().unwrap();
                write(&case, norms, folder.path());
                logits(folder.path(), *device, ids)
            });
            assert!(found[0].iter().all(|logit| logit.is_finite()), "{name} on {device:?}");
            assert!(found.iter().all(|other| *other == found[0]), "{name} on {device:?}");
        }
    }
}
