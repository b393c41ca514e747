//! Completion scripts, from the same description the parser uses.

use clap::CommandFactory;

pub fn print(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut super::Arguments::command(), "keywheel", &mut std::io::stdout());
}
