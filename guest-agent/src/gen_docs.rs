//! Man pages and shell completions, made from `cli`. They are committed under `packaging/`; a test
//! fails when they are out of date.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

use crate::cli::Cli;

/// Writes `man/*.1` and `completions/*` into this folder.
pub fn write(folder: &Path) -> io::Result<()> {
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "hostsnap", &completions)?;
    }
    Ok(())
}
