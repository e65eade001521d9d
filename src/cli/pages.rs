//! Shell completions and manual pages, from the same definitions as the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::{CommandLine, examples};
use super::output::{note, print};
use crate::error::{Error, Result};
use crate::kernel::KERNELS;

pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "chaski", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Fish {
        // clap_complete has words for options alone there.
        let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        script += &format!(
            "complete -c chaski -n \"__fish_chaski_using_subcommand kernels; and \
             __fish_seen_subcommand_from source check bench\" -f -a \"{}\"\n",
            names.join(" ")
        );
    }
    print(&script)
}

/// Writes `chaski.1` and one page a command into `directory`, which is made if it is not there.
pub fn man(directory: &Path) -> Result<()> {
    let failed = |error| {
        Error::failed(format!("cannot write manual pages to {}: {error}", directory.display()))
    };
    fs::create_dir_all(directory).map_err(failed)?;
    let mut command = CommandLine::command().disable_help_subcommand(true);
    command.build();
    write_pages(&command, directory).map_err(failed)?;
    note(format_args!("{}: manual pages written", directory.display()));
    Ok(())
}

/// The page of a command, and those of its own.
fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    for own in command.get_subcommands().filter(|own| !own.is_hide_set()) {
        write_pages(own, directory)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    // What it says at its end in a terminal has a section of its own here.
    let mut man = Man::new(command.clone().after_long_help(None::<&str>));
    man = man.manual("Chaski").source(format!("chaski {}", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render(&mut page)?;
    page.extend(sections(name).into_bytes());
    fs::write(directory.join(man.get_filename()), page)
}

/// What a page has beside what the command line is made of.
fn sections(name: &str) -> String {
    let examples = examples(name).iter().map(|(line, what)| (format!("$ {line}"), *what));
    let environment = environment();
    let environment = environment.iter().map(|(name, what)| (name.clone(), &**what));
    let files = FILES.map(|(file, what)| (file.to_owned(), what)).into_iter();
    section("EXAMPLES", examples) + &section("ENVIRONMENT", environment) + &section("FILES", files)
}

/// Terms with what there is to say of each; nothing, where there are none.
fn section<'t>(title: &str, terms: impl Iterator<Item = (String, &'t str)>) -> String {
    let term =
        |(term, what): (String, &str)| format!(".TP\n\\fB{}\\fR\n{}\n", roff(&term), roff(what));
    match terms.map(term).collect::<String>() {
        none if none.is_empty() => none,
        terms => format!(".SH {title}\n{terms}"),
    }
}

/// Plain text for roff, in which a backslash means something, as do points and apostrophes that begin a line.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// What ordinary use may set: of docs/environment.md the variables of a run and those of others.
fn environment() -> Vec<(String, String)> {
    let table = include_str!("../../docs/environment.md");
    let is_heading = |cells: &[&str]| cells[1].trim().starts_with("**");
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split('|').collect()).collect();
    let of_run = rows.iter().skip_while(|row| !is_heading(row)).skip(1);
    let of_run = of_run.take_while(|row| !is_heading(row));
    let of_others = rows.iter().filter(|row| row.len() == 4 && row[1].contains('`'));
    let text = |cell: &str| cell.trim().replace('`', "");
    let row = |row: &Vec<&str>| match row[..] {
        [_, name, values, effect, _] => {
            (text(name), format!("{} ({})", text(effect), text(values)))
        }
        _ => (text(row[1]), text(row[2])),
    };
    of_run.chain(of_others).map(row).collect()
}

/// What the program leaves on the disk, or finds there.
const FILES: [(&str, &str); 3] = [
    (
        "$XDG_CACHE_HOME/chaski, else ~/.cache/chaski",
        "compiled kernels, the emulated driver, and verdicts about GPUs; all of it is made anew",
    ),
    (
        "$XDG_STATE_HOME/chaski/history, else ~/.local/state/chaski/history",
        "what was typed in chat at a terminal, unless --no-history or CHASKI_HISTORY=off",
    ),
    ("$HF_HOME/hub, else ~/.cache/huggingface/hub", "models, shared with huggingface_hub"),
];
