//! The steps around the encoding: those that tokenizers of the Llama family have, each with its
//! fields checked before the `tokenizers` crate sees them. Others are refused by name.

use std::sync::Mutex;

use serde_json::Value;
use tokenizers::pattern::Invert;
use tokenizers::{
    Decoder as _, DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper,
    PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use super::pattern::{Pattern, Time, TimedSearch};
use super::step::{MAX_CONTENT_BYTES, PipelineStep};
use super::tiktoken::byte_spelling;

/// How GPT-2 splits a text, and with it every ByteLevel that is not told otherwise.
pub(super) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How much longer than a text what the steps make of it may be: the longest that one character
/// becomes by NFKD is eleven times as long.
const MAX_GROWTH: usize = 16;

/// Before the encoding: what is done to a text ...
pub(super) struct Normalizers(Vec<Normalize>);
/// ... and how it is split.
pub(super) struct PreTokenizers(Vec<PreTokenize>);
/// After it: how tokens become a text.
pub(super) struct Decoders(Vec<Decode>);

enum Normalize {
    Replace(Replace),
    Known(NormalizerWrapper),
}

enum PreTokenize {
    Split { pattern: Pattern, behavior: SplitDelimiterBehavior, invert: bool },
    Bytes { adds_space: bool, pattern: Option<Pattern>, spelling: Box<[char; 256]> },
    Known(PreTokenizerWrapper),
}

enum Decode {
    Replace(Replace),
    /// Takes up to so many of a character off the beginning of each token.
    Strip(char, usize),
    Known(DecoderWrapper),
}

struct Replace {
    pattern: Pattern,
    content: String,
}

impl Replace {
    fn read(step: &PipelineStep) -> Result<Self, String> {
        Ok(Self { pattern: step.pattern()?, content: step.content("content")?.to_owned() })
    }
}

impl Normalizers {
    /// Reads a `normalizer`. The error is what is wrong, without the key.
    pub fn read(value: Option<&Value>) -> Result<Self, String> {
        let read = |step: PipelineStep| match step.kind {
            "Replace" => Replace::read(&step).map(Normalize::Replace),
            "Prepend" if step.content("prepend")?.is_empty() => {
                Err("Prepend: prepend is empty".to_owned())
            }
            "Strip" => {
                step.flag("strip_left", None)?;
                step.flag("strip_right", None)?;
                step.build_as_it_is().map(Normalize::Known)
            }
            "Prepend" | "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => {
                step.build_as_it_is().map(Normalize::Known)
            }
            _ => Err(step.not_supported()),
        };
        Ok(Self(
            PipelineStep::all(value, "normalizers")?
                .into_iter()
                .map(read)
                .collect::<Result<_, _>>()?,
        ))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For one text.
    pub fn within<'a>(&'a self, time: &'a Time) -> Normalizing<'a> {
        Normalizing { steps: self, time, failure: Mutex::new(None) }
    }
}

/// Normalizers at work on a text. The crate forgets their errors: they are kept here.
pub(super) struct Normalizing<'a> {
    steps: &'a Normalizers,
    time: &'a Time,
    failure: Mutex<Option<String>>,
}

impl Normalizing<'_> {
    /// What has gone wrong.
    pub fn failure(self) -> tokenizers::Result<()> {
        let failure = self.failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failure.map_or(Ok(()), |what| Err(what.into()))
    }
}

impl Normalizer for Normalizing<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let bytes = text.get().len();
        let step = |text: &mut NormalizedString, step: &Normalize| match step {
            Normalize::Replace(Replace { pattern, content }) => {
                text.replace(TimedSearch { pattern, time: self.time }, content)
            }
            Normalize::Known(known) => known.normalize(text),
        };
        let done = self.steps.0.iter().try_for_each(|normalize| {
            step(text, normalize)?;
            check_growth(bytes, text.get().len())
        });
        if let (Err(error), Ok(mut failure)) = (&done, self.failure.lock()) {
            *failure = Some(error.to_string());
        }
        done
    }
}

fn check_growth(before: usize, after: usize) -> tokenizers::Result<()> {
    match after <= MAX_GROWTH * (before + MAX_CONTENT_BYTES) {
        true => Ok(()),
        false => Err("its steps make a text too long".into()),
    }
}

impl PreTokenizers {
    /// Reads a `pre_tokenizer`. The error is what is wrong, without the key.
    pub fn read(value: Option<&Value>) -> Result<Self, String> {
        let steps = PipelineStep::all(value, "pretokenizers")?;
        if steps.iter().filter(|step| step.kind == "ByteLevel").count() > 1 {
            return Err("ByteLevel is there twice".to_owned());
        }
        Ok(Self(steps.iter().map(PreTokenize::read).collect::<Result<_, _>>()?))
    }

    pub fn pre_tokenize(
        &self,
        text: &mut PreTokenizedString,
        time: &Time,
    ) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| step.pre_tokenize(text, time))
    }
}

impl PreTokenize {
    fn read(step: &PipelineStep) -> Result<Self, String> {
        match step.kind {
            "Split" => Ok(Self::Split {
                pattern: step.pattern()?,
                behavior: step.build(step.text("behavior")?.into())?,
                invert: step.flag("invert", Some(false))?,
            }),
            "ByteLevel" => {
                let adds_space = step.flag("add_prefix_space", None)?;
                let splits = step.flag("use_regex", Some(true))?;
                let pattern = splits.then(|| Pattern::regex(GPT2_PATTERN)).transpose()?;
                Ok(Self::Bytes { adds_space, pattern, spelling: Box::new(byte_spelling()) })
            }
            "Metaspace" => {
                step.character("replacement")?;
                step.build_as_it_is().map(Self::Known)
            }
            "Digits" => {
                step.flag("individual_digits", None)?;
                step.build_as_it_is().map(Self::Known)
            }
            "Punctuation" | "Whitespace" | "WhitespaceSplit" => {
                step.build_as_it_is().map(Self::Known)
            }
            _ => Err(step.not_supported()),
        }
    }

    fn pre_tokenize(&self, text: &mut PreTokenizedString, time: &Time) -> tokenizers::Result<()> {
        match self {
            Self::Split { pattern, behavior, invert } => text.split(|_, part| {
                let search = TimedSearch { pattern, time };
                if *invert {
                    part.split(Invert(search), *behavior)
                } else {
                    part.split(search, *behavior)
                }
            }),
            Self::Bytes { adds_space, pattern, spelling } => {
                if *adds_space || pattern.is_some() {
                    text.split(|_, mut part| {
                        if *adds_space && !part.get().starts_with(' ') {
                            part.prepend(" ");
                        }
                        match pattern {
                            Some(pattern) => part.split(
                                TimedSearch { pattern, time },
                                SplitDelimiterBehavior::Isolated,
                            ),
                            None => Ok(vec![part]),
                        }
                    })?;
                }
                text.normalize(|part| {
                    // A character's further bytes are new characters.
                    let is_further = |byte: u8| isize::from(byte & 0xc0 == 0x80);
                    let spelled = part
                        .get()
                        .bytes()
                        .map(|byte| (spelling[usize::from(byte)], is_further(byte)));
                    part.transform(spelled.collect::<Vec<_>>(), 0);
                    Ok(())
                })
            }
            Self::Known(known) => known.pre_tokenize(text),
        }
    }
}

impl Decoders {
    /// Reads a `decoder`. The error is what is wrong, without the key.
    pub fn read(value: &Value) -> Result<Self, String> {
        let read = |step: PipelineStep| match step.kind {
            "Replace" => Replace::read(&step).map(Decode::Replace),
            "Strip" if step.count("stop")? > 0 => {
                Err("Strip: a stop above 0 is not supported".to_owned())
            }
            "Strip" => Ok(Decode::Strip(step.character("content")?, step.count("start")?)),
            "BPEDecoder" => {
                step.text("suffix").and_then(|_| step.build_as_it_is().map(Decode::Known))
            }
            "Metaspace" => {
                step.character("replacement").and_then(|_| step.build_as_it_is().map(Decode::Known))
            }
            "ByteLevel" => {
                step.flag("add_prefix_space", None)?;
                step.build_as_it_is().map(Decode::Known)
            }
            "ByteFallback" | "Fuse" => step.build_as_it_is().map(Decode::Known),
            _ => Err(step.not_supported()),
        };
        Ok(Self(
            PipelineStep::all(Some(value), "decoders")?
                .into_iter()
                .map(read)
                .collect::<Result<_, _>>()?,
        ))
    }

    /// The text of tokens as the encoding spells them.
    pub fn decode(&self, mut tokens: Vec<String>) -> tokenizers::Result<String> {
        let total = |tokens: &[String]| tokens.iter().map(String::len).sum::<usize>();
        let bytes = total(&tokens);
        let time = Time::for_text(bytes);
        for decode in &self.0 {
            // Some of the crate's decoders count on a token.
            if tokens.is_empty() {
                break;
            }
            tokens = match decode {
                Decode::Replace(Replace { pattern, content }) => {
                    let search = TimedSearch { pattern, time: &time };
                    tokens
                        .iter()
                        .map(|token| replaced(token, &search, content))
                        .collect::<Result<_, _>>()?
                }
                Decode::Strip(character, count) => tokens
                    .iter()
                    .map(|token| stripped(token, *character, *count).to_owned())
                    .collect(),
                Decode::Known(known) => known.decode_chain(tokens)?,
            };
            check_growth(bytes, total(&tokens))?;
        }
        Ok(tokens.concat())
    }
}

fn replaced(token: &str, search: &TimedSearch, content: &str) -> tokenizers::Result<String> {
    use tokenizers::pattern::Pattern as _;
    let parts = search.find_matches(token)?.into_iter();
    Ok(parts
        .map(|((start, end), is_match)| if is_match { content } else { &token[start..end] })
        .collect())
}

fn stripped(mut token: &str, character: char, count: usize) -> &str {
    for _ in 0..count {
        let Some(rest) = token.strip_prefix(character) else { break };
        token = rest;
    }
    token
}
