//! How sums advance along K: step by step, each lane by what is its own of a step.

use std::marker::PhantomData;

use bytemuck::Pod;
use pulp::Simd;

use super::sums::Sum;
use super::{Element, LANES, Lanes};

/// What a row has in a step, and how that is multiplied with what an input has there.
pub trait Steps: Copy {
    type Simd: Simd;
    /// Of a row.
    type Element: Pod;
    /// All that a row has in a step: an array of elements, the same number for each lane.
    type Step: Pod;

    fn simd(self) -> Self::Simd;

    /// A step of a row as [`Self::mul_add`] takes it.
    fn lanes(self, stored: &Self::Step) -> Lanes;

    /// `sum + a b`, lane by lane.
    fn mul_add<const P: usize>(
        self,
        a: Sum<Self::Simd, P>,
        b: Sum<Self::Simd, P>,
        sum: &mut Sum<Self::Simd, P>,
    );
}

/// Elements of a step.
pub const fn step_len<K: Steps>() -> usize {
    size_of::<K::Step>() / size_of::<K::Element>()
}

/// One number a lane, of any type in rows and f32 in inputs.
#[derive(Clone, Copy)]
pub struct Singles<S, W>(S, PhantomData<W>);

impl<S, W> Singles<S, W> {
    #[inline(always)]
    pub fn new(simd: S) -> Self {
        Self(simd, PhantomData)
    }
}

impl<S: Simd, W: Element> Steps for Singles<S, W> {
    type Simd = S;
    type Element = W;
    type Step = [W; LANES];

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn lanes(self, stored: &[W; LANES]) -> Lanes {
        W::widen_lanes(self.0, stored)
    }

    #[inline(always)]
    fn mul_add<const P: usize>(self, a: Sum<S, P>, b: Sum<S, P>, sum: &mut Sum<S, P>) {
        super::sums::mul_add(self.0, a, b, sum);
    }
}
