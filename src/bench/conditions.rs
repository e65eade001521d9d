//! The state of the machine while something is measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::executor::cuda::{Nvml, Reading, THROTTLE_REASONS};

/// Time between two looks at the GPU: NVML itself averages over as much, and asking disturbs.
const PERIOD: Duration = Duration::from_millis(100);

/// What was seen over a stretch of time; `None` where nothing tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    /// Means.
    pub sm_clock_mhz: Option<f64>,
    pub memory_clock_mhz: Option<f64>,
    pub power_w: Option<f64>,
    /// The highest.
    pub temperature_c: Option<u32>,
    /// All that came up, but for "idle".
    pub throttle_reasons: Option<Vec<&'static str>>,
    /// Spent from the first look to the last.
    pub energy_j: Option<f64>,
}

/// Does `work` and looks at the GPU meanwhile.
pub fn watched<R>(nvml: Option<&Nvml>, work: impl FnOnce() -> R) -> (R, Conditions) {
    let Some(nvml) = nvml else {
        return (work(), Conditions::default());
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut readings = vec![nvml.read()];
            while !done.load(Ordering::Acquire) {
                thread::park_timeout(PERIOD);
                readings.push(nvml.read());
            }
            readings
        });
        let result = work();
        done.store(true, Ordering::Release);
        watcher.thread().unpark();
        let readings = watcher.join().expect("the watcher does not panic");
        (result, Conditions::new(&readings))
    })
}

impl Conditions {
    /// What `readings`, first to last, come to.
    fn new(readings: &[Reading]) -> Self {
        let mean = |value: fn(&Reading) -> Option<f64>| {
            let values: Vec<f64> = readings.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let throttle = readings.iter().filter_map(|reading| reading.throttle);
        let throttle = throttle.reduce(|all, bits| all | bits);
        let energy = |reading: Option<&Reading>| reading.and_then(|reading| reading.energy_j);
        let energy = energy(readings.first()).zip(energy(readings.last()));
        let reasons = |bits: u64| {
            let set = THROTTLE_REASONS.iter().enumerate().skip(1);
            set.filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, reason)| *reason).collect()
        };
        Self {
            sm_clock_mhz: mean(|reading| reading.sm_clock_mhz.map(f64::from)),
            memory_clock_mhz: mean(|reading| reading.memory_clock_mhz.map(f64::from)),
            power_w: mean(|reading| reading.power_w),
            temperature_c: readings.iter().filter_map(|reading| reading.temperature_c).max(),
            throttle_reasons: throttle.map(reasons),
            energy_j: energy.map(|(first, last)| last - first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_come_to_means_and_all_reasons() {
        let reading = |clock, throttle| Reading {
            energy_j: Some(f64::from(clock)),
            sm_clock_mhz: Some(clock),
            throttle: Some(throttle),
            temperature_c: Some(clock / 20),
            ..Reading::default()
        };
        let seen = Conditions::new(&[reading(1000, 1), reading(1400, 0b10_0101)]);
        assert_eq!((seen.sm_clock_mhz, seen.power_w), (Some(1200.0), None));
        assert_eq!((seen.temperature_c, seen.energy_j), (Some(70), Some(400.0)));
        assert_eq!(seen.throttle_reasons, Some(vec!["power cap", "thermal slowdown"]));
        assert_eq!(Conditions::new(&[]), Conditions::default());
    }
}
