//! A zip file's members where they lie. Only members that are stored as they are: of others the bytes would
//! have to be made.
//!
//! PKWARE's APPNOTE.TXT 6.3.10 has the records; numbers are little-endian.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::json::quote;

/// Many times those of Llama 3.1 405B.
const MAX_MEMBERS: u64 = 1 << 16;

/// The fixed bytes of each record, which begins with its signature.
const END: usize = 22;
const END_64: usize = 56;
const LOCATOR_64: usize = 20;
const CENTRAL: usize = 46;
const LOCAL: usize = 30;

const END_SIGNATURE: u64 = 0x0605_4b50;
const END_64_SIGNATURE: u64 = 0x0606_4b50;
const LOCATOR_64_SIGNATURE: u64 = 0x0706_4b50;
const CENTRAL_SIGNATURE: u64 = 0x0201_4b50;
const LOCAL_SIGNATURE: u64 = 0x0403_4b50;

/// The extra field with the numbers that do not fit into a record's 32 bits.
const EXTRA_64: u64 = 1;

/// Where each member's bytes lie in the `file`.
///
/// # Errors
/// What is no zip, is cut off or damaged; members that are compressed, encrypted, there twice, or overlap.
pub fn members(file: &[u8]) -> Result<BTreeMap<&str, Range<usize>>, String> {
    let (directory, count) = directory(file)?;
    let mut rest = &file[directory.clone()];
    let (mut members, mut taken) = (BTreeMap::new(), Vec::new());
    for number in 0..count {
        let (entry, after) =
            Entry::read(rest).ok_or_else(|| format!("its list of members ends at {number}"))?;
        rest = after;
        let name = std::str::from_utf8(entry.name)
            .map_err(|_| format!("the name of member {number} is not UTF-8"))?;
        let range = entry
            .range(&file[..directory.start])
            .map_err(|what| format!("member {} {what}", quote(name)))?;
        taken.push((entry.header as usize..range.end, name));
        if members.insert(name, range).is_some() {
            return Err(format!("member {} is there twice", quote(name)));
        }
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes follow its list of members", rest.len()));
    }
    taken.sort_by_key(|(range, _)| range.start);
    match taken.windows(2).find(|two| two[0].0.end > two[1].0.start) {
        None => Ok(members),
        Some(two) => Err(format!("member {} overlaps member {}", quote(two[1].1), quote(two[0].1))),
    }
}

/// Where the list of members lies, and how many it has.
fn directory(file: &[u8]) -> Result<(Range<usize>, u64), String> {
    let record = |at: Option<usize>, bytes: usize, signature| {
        let record = file.get(at?..)?.get(..bytes)?;
        (number(record, 0, 4) == signature).then_some(record)
    };
    let end_at = file.len().checked_sub(END);
    let Some(end) = record(end_at, END, END_SIGNATURE) else {
        return Err(match file.starts_with(b"PK") {
            true => "truncated: the end of a zip file is not there; fetch it again".to_owned(),
            false => "not a file of torch.save since 1.6: it is no zip file".to_owned(),
        });
    };
    let locator_at = end_at.and_then(|at| at.checked_sub(LOCATOR_64));
    let (count, bytes, start, before) = match record(locator_at, LOCATOR_64, LOCATOR_64_SIGNATURE) {
        None => (number(end, 10, 2), number(end, 12, 4), number(end, 16, 4), end_at),
        Some(locator) => {
            let at = usize::try_from(number(locator, 8, 8)).ok();
            let end = record(at, END_64, END_64_SIGNATURE)
                .ok_or("its zip64 record is not where it says")?;
            (number(end, 32, 8), number(end, 40, 8), number(end, 48, 8), at)
        }
    };
    if count > MAX_MEMBERS {
        return Err(format!("says that it has {count} members: no Llama has over {MAX_MEMBERS}"));
    }
    let end = start.checked_add(bytes).filter(|end| Some(*end) == before.map(|at| at as u64));
    match end {
        Some(end) => Ok((start as usize..end as usize, count)),
        None => Err("its list of members is not where it says".to_owned()),
    }
}

/// What the list says of a member.
struct Entry<'a> {
    name: &'a [u8],
    is_encrypted: bool,
    method: u64,
    packed_bytes: u64,
    bytes: u64,
    /// Where its local header begins.
    header: u64,
}

impl<'a> Entry<'a> {
    /// The first one, and what follows it.
    fn read(list: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (fixed, rest) = list.split_at_checked(CENTRAL)?;
        let [name, extra, comment] = [28, 30, 32].map(|at| number(fixed, at, 2) as usize);
        let (name, rest) = rest.split_at_checked(name)?;
        let (extra, rest) = rest.split_at_checked(extra)?;
        let (_, rest) = rest.split_at_checked(comment)?;
        let mut wide = wide(extra);
        let mut number = |at| match number(fixed, at, 4) {
            0xffff_ffff => {
                let (first, others) = wide.split_at_checked(8)?;
                wide = others;
                Some(self::number(first, 0, 8))
            }
            small => Some(small),
        };
        let (bytes, packed_bytes, header) = (number(24)?, number(20)?, number(42)?);
        let (flags, method) = (self::number(fixed, 8, 2), self::number(fixed, 10, 2));
        let is_encrypted = flags & 1 == 1;
        let entry = Self { name, is_encrypted, method, packed_bytes, bytes, header };
        (self::number(fixed, 0, 4) == CENTRAL_SIGNATURE).then_some((entry, rest))
    }

    /// Where its bytes lie, behind its header in `file`.
    fn range(&self, file: &[u8]) -> Result<Range<usize>, String> {
        if self.is_encrypted {
            return Err("is encrypted".to_owned());
        }
        if self.method != 0 || self.packed_bytes != self.bytes {
            return Err("is compressed: torch.save stores what it writes as it is".to_owned());
        }
        let header = usize::try_from(self.header).ok().and_then(|at| file.get(at..));
        let header = header.filter(|header| header.len() >= LOCAL);
        let is_it = |header: &&[u8]| {
            let (name, method) = (number(header, 26, 2) as usize, number(header, 8, 2));
            number(header, 0, 4) == LOCAL_SIGNATURE
                && method == self.method
                && header.get(LOCAL..LOCAL + name) == Some(self.name)
        };
        let header = header.filter(is_it).ok_or("is not where the list of members says")?;
        let start = self.header as usize + LOCAL + self.name.len() + number(header, 28, 2) as usize;
        let end = usize::try_from(self.bytes).ok().and_then(|bytes| start.checked_add(bytes));
        end.filter(|end| *end <= file.len())
            .map(|end| start..end)
            .ok_or_else(|| format!("has {} bytes, of which not all are there", self.bytes))
    }
}

/// The numbers that the extra fields have for a record.
fn wide(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, others)) = rest.split_at_checked(number(head, 2, 2) as usize) else {
            break;
        };
        if number(head, 0, 2) == EXTRA_64 {
            return field;
        }
        extra = others;
    }
    &[]
}

/// The number of so many bytes at this place.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..][..len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
