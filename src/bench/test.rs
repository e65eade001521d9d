//! The rows of a benchmark, in llama-bench's names.

use crate::model::Logits;
use crate::op::Cost;
use crate::rank::Rank;

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestKind {
    /// `pp512`: a prompt.
    Prompt,
    /// `tg128`: tokens one by one, each waited for, none of them chosen.
    Generation,
    /// `pp512+tg128`: one after the other, in one time.
    Both,
    /// `gen128`: what a person gets: tokens chosen on the device and streamed to the host, after a
    /// prompt. Its rate is that of the tokens after the first.
    Loop,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    pub kind: TestKind,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated.
    pub generate: usize,
    /// Tokens in the KV cache before.
    pub depth: usize,
}

/// Lists of sizes, which multiply.
#[derive(Debug, Clone)]
pub struct Grid {
    pub prompts: Vec<usize>,
    pub generations: Vec<usize>,
    /// Prompt and generation.
    pub pairs: Vec<(usize, usize)>,
    pub depths: Vec<usize>,
    /// Whether every generation is also measured as [`TestKind::Loop`].
    pub real_loop: bool,
}

impl Grid {
    /// All tests, depth by depth. A size of 0 is none.
    pub fn tests(&self) -> Vec<Test> {
        let present = |sizes: &[usize]| -> Vec<usize> {
            sizes.iter().copied().filter(|size| *size > 0).collect()
        };
        let (prompts, generations) = (present(&self.prompts), present(&self.generations));
        // Before a person's answer there is a prompt.
        let first_prompt = prompts.first().copied().unwrap_or(1);
        let mut tests = Vec::new();
        for &depth in &self.depths {
            let test = |kind, prompt, generate| Test { kind, prompt, generate, depth };
            tests.extend(prompts.iter().map(|p| test(TestKind::Prompt, *p, 0)));
            tests.extend(generations.iter().map(|n| test(TestKind::Generation, 0, *n)));
            tests.extend(self.pairs.iter().map(|(p, n)| test(TestKind::Both, *p, *n)));
            let answers = generations.iter().filter(|n| self.real_loop && **n > 1);
            tests.extend(answers.map(|n| test(TestKind::Loop, first_prompt, *n)));
        }
        tests
    }
}

impl Test {
    /// `tg128@d8192`
    pub fn name(&self) -> String {
        let Self { kind, prompt, generate, depth } = self;
        let name = match kind {
            TestKind::Prompt => format!("pp{prompt}"),
            TestKind::Generation => format!("tg{generate}"),
            TestKind::Both => format!("pp{prompt}+tg{generate}"),
            TestKind::Loop => format!("gen{generate}"),
        };
        if *depth == 0 { name } else { format!("{name}@d{depth}") }
    }

    /// Tokens that the row's rate counts.
    pub fn tokens(&self) -> usize {
        match self.kind {
            TestKind::Loop => self.generate - 1,
            _ => self.prompt + self.generate,
        }
    }

    /// Tokens that the KV cache must hold, the warm-up's two included.
    pub fn context(&self) -> usize {
        self.depth + (self.prompt + self.generate).max(2)
    }

    /// What the tokens that count must move and compute.
    pub fn cost(&self, rank: &Rank) -> Cost {
        let (mut cost, mut position) = (Cost::default(), self.depth);
        let end = position + self.prompt;
        while position < end {
            let tokens = rank.chunk().min(end - position);
            if self.kind != TestKind::Loop {
                cost = cost + rank.cost(tokens, position, wanted(position + tokens == end));
            }
            position += tokens;
        }
        let generated = self.tokens().min(self.generate);
        (end..end + generated).fold(cost, |cost, position| cost + rank.decode_cost(position))
    }
}

/// The logits that a prompt's step is asked for: the last step's, of the last token.
pub(super) fn wanted(is_last: bool) -> Logits {
    if is_last { Logits::Last } else { Logits::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_multiply_and_names_are_llama_benchs() {
        let grid = Grid {
            prompts: vec![512, 0, 2048],
            generations: vec![1, 128],
            pairs: vec![(64, 16)],
            depths: vec![0, 8192],
            real_loop: true,
        };
        let names: Vec<String> = grid.tests().iter().map(Test::name).collect();
        let at_zero = ["pp512", "pp2048", "tg1", "tg128", "pp64+tg16", "gen128"];
        let deep = at_zero.map(|name| format!("{name}@d8192"));
        assert_eq!(names[..6], at_zero.map(str::to_owned));
        assert_eq!(names[6..], deep);
        let answer = grid.tests()[11];
        assert_eq!((answer.tokens(), answer.context()), (127, 8192 + 512 + 128));
    }
}
