//! What the preprocessor makes of a CUDA file, as far as its declarations need: a kernel may be one that a
//! macro declares, or lie in a header beside the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::source::read;

/// A text without comments, directives and what is quoted, its macros replaced.
#[derive(Debug, Clone, Default)]
pub struct Preprocessed {
    pub text: String,
    /// Of each line of it: the file, by number, and the line there, from 1.
    places: Vec<(usize, usize)>,
    /// The file itself, and what it includes that lies beside it: paths and texts.
    pub files: Vec<(PathBuf, String)>,
}

impl Preprocessed {
    pub fn new(path: &Path, text: String) -> Self {
        let folder = folder_of(path);
        let made = Self { files: vec![(path.to_owned(), text)], ..Self::default() };
        let known = ["__CUDACC__", "__CUDA_ARCH__", "__cplusplus"];
        let macros = known.map(|name| (name.to_owned(), Macro::default())).into();
        let mut state = State { made, macros, folder, bytes_left: MOST_BYTES };
        state.file(0);
        state.made
    }

    /// Where the byte at `at` of the text comes from, `mine.cu:12`.
    pub fn place(&self, at: usize) -> String {
        let line = self.text[..at].matches('\n').count();
        let (file, line) = self.places[line];
        format!("{}:{line}", self.files[file].0.display())
    }
}

/// What all expansions may add up to, how deep they may nest, and what a macro with its arguments may
/// take: for files that mean no good.
const MOST_BYTES: usize = 1 << 20;
const MOST_NESTED: usize = 64;
const LONGEST_CALL: usize = 1 << 14;

#[derive(Debug, Clone, Default)]
struct Macro {
    /// None: it takes no arguments, and no brackets.
    parameters: Option<Vec<String>>,
    body: String,
}

struct State {
    made: Preprocessed,
    macros: BTreeMap<String, Macro>,
    /// Of the file itself.
    folder: PathBuf,
    bytes_left: usize,
}

/// An open #if: whether what follows is there, and whether a branch has been taken for certain.
#[derive(Clone, Copy)]
struct Branch {
    is_taken: bool,
    was_taken: bool,
}

impl State {
    /// Adds the file of this number.
    fn file(&mut self, number: usize) {
        let raw = self.made.files[number].1.clone();
        let plain = without_comments(&raw);
        let mut lines = (1..).zip(plain.lines().zip(raw.lines()));
        let mut branches: Vec<Branch> = Vec::new();
        while let Some((line, (text, raw))) = lines.next() {
            let mut text = text.to_owned();
            while text.ends_with('\\') {
                text.pop();
                let Some((_, (more, _))) = lines.next() else { break };
                text += more;
            }
            let is_there = branches.iter().all(|branch| branch.is_taken);
            if let Some(directive) = text.trim_start().strip_prefix('#') {
                match (self.condition(directive.trim(), &mut branches), is_there) {
                    (false, true) => self.directive(directive.trim(), raw, number),
                    _ => continue,
                }
            } else if is_there {
                // The arguments of a macro may take several lines.
                while text.len() < LONGEST_CALL && self.is_cut(&text) {
                    let Some((_, (more, _))) = lines.next() else { break };
                    text = text + " " + more;
                }
                let text = self.expand(&text, &BTreeSet::new());
                self.made.text += &text.replace('\n', " ");
                self.made.text.push('\n');
                self.made.places.push((number, line));
            }
        }
    }

    /// Follows conditions; false: the directive is none. One that is not understood may be true, and so may
    /// what comes instead of it.
    fn condition(&self, directive: &str, branches: &mut Vec<Branch>) -> bool {
        let (word, rest) = split_word(directive);
        match word {
            "if" | "ifdef" | "ifndef" => {
                let value = self.value(word, rest.trim());
                let (is_taken, was_taken) = (value != Some(false), value == Some(true));
                branches.push(Branch { is_taken, was_taken });
            }
            "elif" | "else" => {
                let value = if word == "else" { Some(true) } else { self.value("if", rest.trim()) };
                if let Some(branch) = branches.last_mut() {
                    branch.is_taken = !branch.was_taken && value != Some(false);
                    branch.was_taken |= value == Some(true);
                }
            }
            "endif" => drop(branches.pop()),
            _ => return false,
        }
        true
    }

    fn value(&self, word: &str, condition: &str) -> Option<bool> {
        let known = |name: &str| self.macros.contains_key(name);
        match word {
            "ifdef" => return Some(known(condition)),
            "ifndef" => return Some(!known(condition)),
            _ => (),
        }
        let (is_not, rest) = match condition.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, condition),
        };
        let name = rest.strip_prefix("defined").map(|name| name.trim_matches(['(', ')', ' ']));
        let value = match name.filter(|name| name.chars().all(is_word)) {
            Some(name) => Some(known(name)),
            None => rest.parse().ok().map(|number: i64| number != 0),
        };
        value.map(|value| value != is_not)
    }

    fn directive(&mut self, directive: &str, raw: &str, number: usize) {
        let (word, rest) = split_word(directive);
        match word {
            "define" => {
                let (name, rest) = split_word(rest);
                let brackets = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
                let of_brackets = |(names, body): (&str, &str)| Macro {
                    parameters: Some(names.split(',').map(|name| name.trim().to_owned()).collect()),
                    body: body.trim().to_owned(),
                };
                let plain = || Macro { parameters: None, body: rest.trim().to_owned() };
                self.macros.insert(name.to_owned(), brackets.map_or_else(plain, of_brackets));
            }
            "undef" => drop(self.macros.remove(rest.trim())),
            "include" => {
                let Some(name) = raw.split('"').nth(1) else { return };
                let here = folder_of(&self.made.files[number].0).join(name);
                let places = [here, self.folder.join(name)];
                let is_new =
                    |path: &&PathBuf| self.made.files.iter().all(|(known, _)| known != *path);
                let Some(path) = places.iter().find(|path| path.is_file()).filter(is_new) else {
                    return;
                };
                if let Ok(text) = read(path) {
                    self.made.files.push((path.clone(), text));
                    self.file(self.made.files.len() - 1);
                }
            }
            _ => (),
        }
    }

    /// Whether the arguments of a macro begin in the text and do not end there.
    fn is_cut(&self, text: &str) -> bool {
        let names = words(text).filter(|(_, word)| {
            self.macros.get(*word).is_some_and(|of_name| of_name.parameters.is_some())
        });
        names
            .map(|(at, word)| text[at + word.len()..].trim_start())
            .any(|rest| rest.starts_with('(') && bracketed(rest).is_none())
    }

    /// With all macros replaced but those that are being replaced.
    fn expand(&mut self, text: &str, hidden: &BTreeSet<String>) -> String {
        let mut made = String::new();
        let mut rest = text;
        while let Some((at, word)) = words(rest).next() {
            made += &rest[..at];
            rest = &rest[at + word.len()..];
            if !self.macros.contains_key(word) {
                made += word;
                continue;
            }
            let mut hidden = hidden.clone();
            let word = &self.meant(word, &mut hidden);
            let known = self.macros.get(word).filter(|_| !hidden.contains(word)).cloned();
            let Some(known) = known.filter(|_| self.bytes_left > 0 && hidden.len() < MOST_NESTED)
            else {
                made += word;
                continue;
            };
            let body = match &known.parameters {
                None => known.body,
                Some(parameters) => match bracketed(rest.trim_start()) {
                    None => {
                        made += word;
                        continue;
                    }
                    Some(inside) => {
                        let skipped = rest.len() - rest.trim_start().len();
                        rest = &rest[skipped + inside.len()..];
                        self.body(&known.body, parameters, &inside[1..inside.len() - 1], &hidden)
                    }
                },
            };
            self.bytes_left = self.bytes_left.saturating_sub(body.len() + 1);
            hidden.insert(word.to_owned());
            made += &self.expand(&body, &hidden);
        }
        made + rest
    }

    /// The macro that a macro is another name of, with those between.
    fn meant(&self, word: &str, hidden: &mut BTreeSet<String>) -> String {
        let mut word = word.to_owned();
        while let Some(Macro { parameters: None, body }) = self.macros.get(&word)
            && self.macros.contains_key(body)
            && hidden.insert(word.clone())
        {
            word.clone_from(body);
        }
        word
    }

    /// A macro's body with its arguments in place of its parameters.
    fn body(
        &mut self,
        body: &str,
        parameters: &[String],
        inside: &str,
        hidden: &BTreeSet<String>,
    ) -> String {
        let mut given: Vec<&str> = apart(inside).into_iter().map(str::trim).collect();
        let more = (parameters.last().is_some_and(|name| name == "..."))
            .then(|| given.split_off(given.len().min(parameters.len() - 1)).join(", "));
        let mut made = String::new();
        let mut rest = body;
        while let Some((at, word)) = words(rest).next() {
            made += &rest[..at];
            rest = &rest[at + word.len()..];
            let place = parameters.iter().position(|name| name == word);
            let argument = match (place, &more) {
                (Some(place), _) => given.get(place).copied().unwrap_or_default(),
                (None, Some(more)) if word == "__VA_ARGS__" => more,
                _ => word,
            };
            let is_pasted = made.trim_end().ends_with("##") || rest.trim_start().starts_with("##");
            made += &if is_pasted { argument.to_owned() } else { self.expand(argument, hidden) };
        }
        let made = made + rest;
        let parts: Vec<_> = made.split("##").collect();
        let last = parts.len() - 1;
        let trimmed = parts.iter().enumerate().map(|(i, part)| {
            let part = if i > 0 { part.trim_start() } else { part };
            if i < last { part.trim_end() } else { part }
        });
        trimmed.collect()
    }
}

/// Where headers are that the file at `path` includes by their names, as compilers are told.
pub fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// The words of a text, each with where it begins. Numbers are none.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += text[at..].find(is_word)?;
            let rest = &text[at..];
            let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
            let begin = at;
            at += word.len();
            if !word.starts_with(|c: char| c.is_ascii_digit()) {
                return Some((begin, word));
            }
        }
    })
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    text.split_at(end)
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What commas outside of brackets divide.
pub fn apart(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => (),
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// From the bracket that the text begins with to the one that closes it.
pub fn bracketed(text: &str) -> Option<&str> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return (at > 0).then(|| &text[..=at]);
        }
    }
    None
}

/// The text with spaces in place of comments and of what is quoted: no line moves.
fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped || c == '\n';
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.map_or(rest.len(), |end| end + 2)
            }
            _ => {
                plain.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        let (skipped, left) = rest.split_at(length);
        // What is quoted counts as a word: extern "C".
        plain.extend(skipped.chars().map(|c| if c == '\n' { c } else { ' ' }));
        rest = left;
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let made = Preprocessed::new(Path::new("mine.cu"), text.to_owned());
        let lines = made.text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.map(|words| words.join(" ")).filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn macros_are_replaced_as_the_preprocessor_does() {
        let text = "
#define THREADS 128 // of a block
#define KERNEL(name, T, ...) \\
    __global__ void name##_##T(T* x, __VA_ARGS__)
#define F KERNEL
KERNEL(scale, float,
       int n, float (*f)[2]) {}
F(add, int, unsigned n);
#define LOOP LOOP + 1
LOOP; THREADS2; f(THREADS); KERNEL;
#undef THREADS
THREADS /* KERNEL(a, b, c) */
";
        let expected = [
            "__global__ void scale_float(float* x, int n, float (*f)[2]) {}",
            "__global__ void add_int(int* x, unsigned n);",
            "LOOP + 1; THREADS2; f(128); KERNEL;",
            "THREADS",
        ];
        assert_eq!(lines(text), expected);
    }

    #[test]
    fn conditions_are_followed_where_they_are_known() {
        let text = "
#define A
#ifdef A
a
#else
b
#endif
#ifndef A
c
#elif 1
d
#endif
#if 0
#if 1
e
#endif
#elif defined(A) && VERSION > 3
f
#else
g
#endif
#if !defined(__CUDACC__)
h
#endif
";
        assert_eq!(lines(text), ["a", "d", "f", "g"]);
    }

    #[test]
    fn what_lies_beside_is_included_once_and_lines_keep_their_places() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("lib")).unwrap();
        fs::write(at("lib/a.cuh"), "#include \"b.cuh\"\n#include \"mine.cu\"\nint a;\n").unwrap();
        fs::write(at("lib/b.cuh"), "#define B 7\n").unwrap();
        let text =
            "#include \"lib/a.cuh\"\n#include \"none.h\"\n#include \"lib/a.cuh\"\n\nint b = B;\n";
        let made = Preprocessed::new(&at("mine.cu"), text.to_owned());
        assert_eq!(made.text, "int a;\n\nint b = 7;\n");
        assert_eq!(made.files.len(), 3);
        let place = |text: &str| made.place(made.text.find(text).unwrap());
        assert_eq!(place("int a"), format!("{}:3", at("lib/a.cuh").display()));
        assert_eq!(place("int b"), format!("{}:5", at("mine.cu").display()));
    }

    #[test]
    fn what_grows_without_bound_is_cut() {
        let mut text = "#define A0 x x x x x x x x\n".to_owned();
        for level in 1..40 {
            let before = level - 1;
            text += &format!("#define A{level} A{before} A{before} A{before} A{before}\n");
        }
        assert!(lines(&(text + "A39\n")).len() <= 1);
    }
}
