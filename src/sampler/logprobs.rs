//! The probabilities that a model gives tokens.

/// log softmax(logits)
pub struct Logprobs<'l> {
    /// `[V]`
    logits: &'l [f32],
    /// log sum exp(logits)
    normaliser: f64,
}

impl<'l> Logprobs<'l> {
    pub fn new(logits: &'l [f32]) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
        Self { logits, normaliser: max + sum.ln() }
    }

    /// That of a token.
    pub fn of(&self, id: u32) -> f64 {
        f64::from(self.logits[id as usize]) - self.normaliser
    }

    /// The `count` most probable ids, the most probable one first; the lower one of equals.
    pub fn top(&self, count: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| {
            let logit = |id: &u32| self.logits[*id as usize];
            logit(b).total_cmp(&logit(a)).then(a.cmp(b))
        };
        if count < ids.len() {
            ids.select_nth_unstable_by(count, order);
            ids.truncate(count);
        }
        ids.sort_unstable_by(order);
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_are_first_and_probabilities_sum_to_one() {
        let logits = [1.0, 3.0, -2.0, 3.0, 0.0];
        let logprobs = Logprobs::new(&logits);
        assert_eq!(logprobs.top(3), [1, 3, 0]);
        assert_eq!(logprobs.top(9), [1, 3, 0, 4, 2]);
        assert!(logprobs.top(0).is_empty());
        let sum: f64 = (0..5).map(|id| logprobs.of(id).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}
