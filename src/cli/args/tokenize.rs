//! Arguments of `tokenize` and `detokenize`.

use std::path::PathBuf;

use clap::Args;

use super::StyleArgs;

#[derive(Debug, Args)]
#[group(id = "tokenize_source", required = false, multiple = false)]
pub struct TokenizeSource {
    /// The text; control tokens written in it are recognised
    pub text: Option<String>,

    /// The text, as generate has it
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Read one text from FILE; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Read one text a line, each a JSON string, and print one array a line
    #[arg(long, value_name = "FILE")]
    pub jsonl: Option<PathBuf>,

    /// Read a conversation, a JSON array of {"role", "content"} or an object with "messages", "tools"
    /// and "documents", up to the answer's beginning
    #[arg(long, value_name = "FILE")]
    pub chat: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    pub source: TokenizeSource,

    /// Begin with BOS, if the tokenizer puts it before a text (a conversation has what its format says)
    #[arg(long)]
    pub bos: bool,

    /// Take control tokens written in the text as plain text
    #[arg(long)]
    pub plain: bool,

    /// The model whose tokenizer to use
    #[arg(short, long, default_value = "demo", value_name = "MODEL")]
    pub model: String,

    #[command(flatten)]
    pub style: StyleArgs,
}

#[derive(Debug, Args)]
pub struct DetokenizeArgs {
    /// Token ids, separated by commas or spaces [default: from standard input]
    #[arg(value_name = "IDS")]
    pub ids: Vec<String>,

    /// Read the ids from FILE
    #[arg(short, long, value_name = "FILE", conflicts_with = "ids")]
    pub file: Option<PathBuf>,

    /// Leave control tokens out
    #[arg(long)]
    pub skip_control: bool,

    /// The model whose tokenizer to use
    #[arg(short, long, default_value = "demo", value_name = "MODEL")]
    pub model: String,
}
