//! Ops that are plain GEMMs, or next to nothing else: what other libraries have too.

use std::any::Any;

use crate::executor::cuda::Product;
use crate::memory::Weight;
use crate::op::Op;
use crate::ops::{Matmul, NormHead, Project};

/// The GEMMs in `op`, if they are all or next to all that it does.
pub fn products(op: &dyn Op) -> Vec<Product> {
    let op: &dyn Any = op;
    if let Some(op) = op.downcast_ref::<Matmul<1>>() {
        of_matmul(op)
    } else if let Some(op) = op.downcast_ref::<Matmul<2>>() {
        of_matmul(op)
    } else if let Some(op) = op.downcast_ref::<Matmul<3>>() {
        of_matmul(op)
    } else if let Some(Project { weight, y, .. }) = op.downcast_ref() {
        vec![Product { x: None, weight: *weight, residual: true, y: *y }]
    } else if let Some(NormHead { head, logits, .. }) = op.downcast_ref() {
        vec![Product { x: None, weight: *head, residual: false, y: *logits }]
    } else {
        Vec::new()
    }
}

fn of_matmul<const N: usize>(op: &Matmul<N>) -> Vec<Product> {
    let Matmul { x, residual, .. } = *op;
    let product = |(weight, y): (Weight, _)| {
        let x = (x.dtype == weight.encoding.activation()).then_some(x);
        Product { x, weight, residual, y }
    };
    op.products.map(product).to_vec()
}
