//! What was found about a GPU in this process, and kept, decides the plan of a model that is loaded.

use std::fs;
use std::sync::Arc;

use chaski::engine::{Device, Engine, Model, Options, silent};
use chaski::executor::cuda::Settings;
use chaski::kernel::Paths;
use chaski::source::Source;
use serde_json::{Value, json};

use crate::emulated;

#[test]
fn a_tuned_step_is_that_of_a_model_that_is_loaded() {
    emulated::start();
    let cache = tempfile::tempdir().unwrap();
    let paths = Paths { cache: Some(cache.path().to_owned()), ..Paths::default() };
    let cuda = Arc::new(Settings { paths, ..Settings::default() });
    let load = || -> Engine {
        let cuda = cuda.clone();
        let options = Options { device: Device::Cuda(0), cuda, text: false, ..Options::default() };
        let model = Model::of(Source::find("synthetic:tiny").unwrap(), options).unwrap();
        model.load(&silent()).unwrap()
    };
    assert!(load().plan.sizes.chunk > 512);
    let mut kept = fs::read_dir(cache.path().join("chaski/qualified")).unwrap();
    let file = kept.next().unwrap().unwrap().path();
    let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut verdicts = record["verdicts"].as_array_mut().unwrap().iter_mut();
    let tuned = verdicts.find(|verdict| verdict["tuned"].is_object()).unwrap();
    tuned["tuned"]["tuning"]["chunk"] = json!(512);
    fs::write(&file, record.to_string()).unwrap();
    assert_eq!(load().plan.sizes.chunk, 512);
}
