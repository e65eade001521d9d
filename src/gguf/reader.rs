//! A file's bytes, taken one after the other.

/// What is left of a file.
pub struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

/// Texts may be long (templates), names are not.
const MAX_TEXT_BYTES: u64 = 16 << 20;

impl<'a> Reader<'a> {
    pub fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    /// Where it is in the file.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> usize {
        self.file.len()
    }

    /// # Errors
    /// Fewer are left.
    pub fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let taken = self.file[self.at..].get(..bytes).ok_or_else(|| {
            let left = self.file.len() - self.at;
            format!("truncated: {bytes} bytes are needed where {left} are left; fetch it again")
        })?;
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(*self.take(N)?.first_chunk().expect("as many as taken"))
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length, then as many bytes, which must be UTF-8.
    pub fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        if length > MAX_TEXT_BYTES {
            return Err(format!("a text of {length} bytes is over {} MiB", MAX_TEXT_BYTES >> 20));
        }
        std::str::from_utf8(self.take(length as usize)?)
            .map_err(|_| "a text is not UTF-8".to_owned())
    }
}
