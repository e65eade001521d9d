//! How numbers are stored: activations and the KV cache as floats, weights in rows of blocks.
//!
//! `build.rs` reads it, too: what kernels for an encoding are called is said here and nowhere else.

/// A type of floating-point numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Float {
    Bf16,
    F16,
    F32,
}

impl Float {
    const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The type's name in safetensors files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    /// The type that safetensors files call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|float| float.name() == name)
    }
}

/// How the rows of a weight are stored: in blocks of so many columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Each number by itself.
    Plain(Float),
    /// Small whole numbers with a scale for some of them.
    Blocks(Blocks),
    /// Floats of eight bits, four of them an exponent, with a scale for each row, which lies elsewhere.
    E4m3,
}

/// ggml's types of blocks that GGUF files of Llamas have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocks {
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Blocks {
    pub const ALL: [Self; 8] = [
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Columns of a block, and its bytes.
    pub const fn size(self) -> (usize, usize) {
        match self {
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

impl From<Float> for Encoding {
    fn from(float: Float) -> Self {
        Self::Plain(float)
    }
}

impl Encoding {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = Float::ALL.into_iter().map(Self::Plain);
        plain.chain(Blocks::ALL.into_iter().map(Self::Blocks)).chain([Self::E4m3])
    }

    /// The encoding that safetensors or ggml call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|encoding| encoding.name() == name)
    }

    /// Columns of a block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(float) => (1, float.bytes()),
            Self::Blocks(blocks) => blocks.size(),
            Self::E4m3 => (1, 1),
        }
    }

    /// Bytes of so many columns of a row.
    ///
    /// # Panics
    /// When they are not of whole blocks.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let (block_cols, block_bytes) = self.block();
        assert!(cols.is_multiple_of(block_cols), "a block of weights is cut");
        cols / block_cols * block_bytes
    }

    /// For people; safetensors' and ggml's names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain(float) => float.name(),
            Self::Blocks(blocks) => blocks.name(),
            Self::E4m3 => "F8_E4M3",
        }
    }

    /// What GEMMs on a GPU multiply with such weights: `Activation<W>` of the kernels.
    pub const fn activation(self) -> Float {
        match self {
            Self::Plain(float) => float,
            Self::Blocks(_) | Self::E4m3 => Float::F16,
        }
    }

    /// The type `W` of kernels for such weights, which is also the suffix of what they export; none, if there
    /// are no such kernels.
    pub const fn kernel_type(self) -> Option<&'static str> {
        match self {
            Self::Plain(Float::Bf16) => Some("bf16"),
            Self::Plain(Float::F16) => Some("f16"),
            Self::Plain(Float::F32) | Self::Blocks(_) | Self::E4m3 => None,
        }
    }

    /// Every encoding that there are kernels for, and its type in them.
    pub fn of_kernels() -> impl Iterator<Item = (Self, &'static str)> {
        Self::all().filter_map(|encoding| Some((encoding, encoding.kernel_type()?)))
    }
}
