use super::gemv::Gemv;
use super::matmul::matmul_cost;
use super::{launch, size};
use crate::case::{Case, Content, F32_NMSE, HALF, Judge, NUMBERS, Numbers, Setup};
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Op, Operands, Target};
use crate::vector::{Inputs, Rows, add, matmul, matmul_scratch};

/// One token's activations onto the residual stream: `y += weight x`
pub struct Project {
    /// `[1, K]`
    pub x: Slot<f32>,
    /// `[N, K]`
    pub weight: Weight,
    /// In and out. `[1, N]`
    pub y: Slot<f32>,
}

impl Op for Project {
    fn name(&self) -> &'static str {
        "project"
    }

    fn cost(&self, _position: usize) -> Cost {
        matmul_cost(self.weight, 1)
    }

    fn scratch(&self, threads: usize) -> usize {
        matmul_scratch(1, self.weight.cols, threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let rows = Rows::of(memory.weights, self.weight);
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x, y) = region.slots((self.x, self.y));
        let inputs = Inputs::pack(x, self.weight.cols, &mut scratch);
        matmul([([rows], y)], inputs, &mut scratch, &add);
    }

    fn operands(&self) -> Operands {
        Operands { input: vec![1, self.x.len()], matrices: vec![self.weight], norm: None }
    }

    fn launch(&self, target: &Target) -> Launch {
        let Weight { encoding, rows, cols, .. } = self.weight;
        let gemv = Gemv::of_rows(rows, cols);
        let arguments = kernel::Project {
            x: self.x,
            weight: self.weight,
            y: self.y,
            width: size(cols),
            rows: size(rows),
            parts: gemv.parts(self.name(), target),
            flow: target.tuning.flow(),
        }
        .arguments();
        launch(
            kernel::Project::KERNEL,
            (encoding, 0),
            Gemv::grid(target),
            gemv.shared_bytes(),
            arguments,
        )
    }
}
impl Project {
    /// Rows fewer and more than a grid has warps, odd ones too; K below, at and past what a warp takes
    /// at once (1024), and those of real models.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 8),
            (7, 40),
            (129, 264),
            (300, 1032),
            (5, 1024),
            (33, 2048),
            (2, 2056),
            (3, 4096),
            (2, 8192),
            (37, 8192), // an emulated GPU cuts these into parts and goes three rounds
            (1, 14336),
            (3, 28672),
            (8200, 2048),
        ];
        let mut cases = Vec::new();
        for (rows, cols) in sizes {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                let judge = numbers.judge(F32_NMSE);
                let op = Self {
                    x: setup.read("x", &[1, cols], numbers.upto(4)),
                    weight: setup.weight(dtype, rows, cols, numbers.upto(4)),
                    y: setup.changed("y", &[1, rows], numbers.upto(100), judge),
                };
                let name = format!("{} {rows} rows of {cols}", dtype.name());
                cases.push(setup.case(name, op));
            }
        }
        let infinite = |i| if i == 30 { f32::INFINITY } else { (i % 7) as f32 - 3.0 };
        for dtype in HALF {
            let mut setup = Setup::new(Numbers::Whole);
            let op = Self {
                x: setup.read("x", &[1, 40], Content::each(infinite)),
                weight: setup.weight(dtype, 9, 40, Content::Whole(-1.0, 1.0)),
                y: setup.changed("y", &[1, 9], Content::each(|_| 1.0), Judge::Exact),
            };
            cases.push(setup.case(format!("{} with an infinity", dtype.name()), op));
        }
        cases
    }
}
