//! Whether what was timed still computes what it should: on numbers that it has not met before.

use super::op_bench::{Group, OpBench, RunResult};
use crate::error::{Error, Result};
use crate::executor::Captured;
use crate::kernel::Replacement;

/// The relative L2 that two ways of rounding explain, in any of the types at hand.
const TOLERANCE: f64 = 1e-2;

impl RunResult {
    /// Runs the recording once, from numbers that are the same for all that are judged.
    ///
    /// # Errors
    /// A device that fails.
    pub fn by(recording: &mut Captured, bed: &mut OpBench, group: &Group) -> Result<Self> {
        bed.refill()?;
        bed.time(group.phase, recording)?;
        bed.left(group.phase)
    }

    /// That `source` has left what the built-in kernel has.
    ///
    /// # Errors
    /// What is different, in a line.
    pub fn check(&self, built_in: &Self, source: &Replacement) -> Result<()> {
        let parts = built_in.numbers.iter().zip(&self.numbers);
        let far = parts.map(|((name, right), (_, found))| (name, apart(right, found)));
        let far = far.filter(|(_, apart)| *apart > TOLERANCE).max_by(|a, b| a.1.total_cmp(&b.1));
        let what = match far {
            Some((name, apart)) => format!("{name} is {apart:.1e} off"),
            None if self.ids != built_in.ids => "it chooses another token".to_owned(),
            None => return Ok(()),
        };
        Err(Error::failed(format!(
            "{} computes something else once it has been timed: {what}",
            source.path()
        )))
    }
}

/// The relative L2; infinite where only one of two numbers is one.
fn apart(right: &[f32], found: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (right, found) in
        right.iter().map(|n| f64::from(*n)).zip(found.iter().map(|n| f64::from(*n)))
    {
        match (right.is_finite(), found.is_finite()) {
            (true, true) => {
                error += (right - found).powi(2);
                norm += right.powi(2);
            }
            (false, false) => {}
            _ => return f64::INFINITY,
        }
    }
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn what_is_off_is_told() {
        let nan = f32::NAN;
        assert_eq!(apart(&[3.0, 4.0, nan], &[3.0, 4.0, nan]), 0.0);
        assert_eq!(apart(&[3.0, 4.0], &[3.0, 4.5]), 0.1);
        assert_eq!(apart(&[1.0, nan], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(apart(&[0.0], &[1.0]), f64::INFINITY);
    }
}
