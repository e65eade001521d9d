//! What the outside world can do to us: one line that says what was being done, to what, and what to do now.
//! Our own mistakes are assertions, not errors.

use std::fmt;

/// Why a command ended early. The variant decides the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The arguments make no sense together: exit status 2.
    Usage(String),
    /// A file, a device or the system failed us: exit status 1.
    Failed(String),
    /// The user pressed Ctrl-C: exit status 130.
    Interrupted,
    /// Whoever read standard output has left, as `head` does, and has all it wanted: exit status 0, and not
    /// a word.
    ReaderLeft,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// The process's exit status for this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
            Self::Interrupted => 130,
            Self::ReaderLeft => 0,
        }
    }
}

/// `12.34 MiB`, in the largest unit that leaves a digit before the point.
pub fn binary(bytes: usize) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{:.2} {}", bytes as f64 / 1024f64.powi(unit as i32), UNITS[unit]),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Failed(message) => f.write_str(message),
            Self::Interrupted => f.write_str("interrupted"),
            Self::ReaderLeft => f.write_str("the reader of standard output has left"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1 << 20, "1.00 MiB"),
            (13_002_342, "12.40 MiB"),
            (3 << 40, "3.00 TiB"),
        ] {
            assert_eq!(binary(bytes), text);
        }
    }
}
