//! Who computes which rows: workers take runs of rows from a queue until none is left.

use std::slice::ChunksMut;
use std::sync::Mutex;

use rayon::prelude::*;

use super::Rows;

/// Rows of a task for several tokens at most: they are widened once for every block of tokens.
pub const MANY_ROWS: usize = 128;
/// Rows of a task for a few tokens at most: enough to be read in four long streams.
pub const FEW_ROWS: usize = 256;
/// Tokens that are few.
pub const FEW: usize = 6;

/// The rows of all products, in order.
pub struct Queue<'a, 'y, const M: usize, const N: usize> {
    jobs: [Job<'a, 'y, M>; N],
}

struct Job<'a, 'y, const M: usize> {
    /// What is left of them.
    weights: [Rows<'a>; M],
    /// Rows of a task.
    rows: usize,
    /// What is left of each token's output. `[T]`
    columns: Vec<ChunksMut<'y, f32>>,
}

impl<'a, 'y, const M: usize, const N: usize> Queue<'a, 'y, M, N> {
    pub fn new(
        products: [([Rows<'a>; M], &'y mut [f32]); N],
        tokens: usize,
        workers: usize,
    ) -> Self {
        let jobs = products.map(|(weights, y)| {
            let count = weights[0].count();
            // About as many each for all workers, in two rounds at least: who is late takes fewer.
            let most = if tokens <= FEW { FEW_ROWS } else { MANY_ROWS };
            let rounds = count.div_ceil(most * workers).max(2);
            let rows = count.div_ceil(rounds * workers).next_multiple_of(4).clamp(16, most);
            let columns = y.chunks_mut(count).map(|row| row.chunks_mut(rows)).collect();
            Job { weights, rows, columns }
        });
        Self { jobs }
    }

    /// How many tasks are left.
    pub fn tasks(&self) -> usize {
        self.jobs.iter().map(|job| job.weights[0].count().div_ceil(job.rows)).sum()
    }

    /// The rows of the next task; in `columns`, the output of each token.
    fn next(&mut self, columns: &mut Vec<&'y mut [f32]>) -> Option<[Rows<'a>; M]> {
        let job = self.jobs.iter_mut().find(|job| job.weights[0].count() > 0)?;
        columns.clear();
        columns.extend(job.columns.iter_mut().filter_map(Iterator::next));
        Some(job.weights.each_mut().map(|weight| weight.take(job.rows)))
    }
}

/// Does all tasks, by a worker for each of `own`, what the worker has for itself.
pub fn share<'y, Own: Send, const M: usize, const N: usize>(
    queue: Queue<'_, 'y, M, N>,
    own: impl ExactSizeIterator<Item = Own> + Send,
    work: impl Fn([Rows<'_>; M], &mut [&'y mut [f32]], &mut Own) + Sync,
) {
    let (queue, alone) = (Mutex::new(queue), own.len() == 1);
    let next = |columns: &mut _| queue.lock().expect("no worker has panicked").next(columns);
    let all = |mut own: Own| {
        let mut columns = Vec::new();
        while let Some(rows) = next(&mut columns) {
            work(rows, &mut columns, &mut own);
        }
    };
    if alone {
        own.for_each(all);
    } else {
        let own: Vec<_> = own.collect();
        own.into_par_iter().with_max_len(1).for_each(all);
    }
}
